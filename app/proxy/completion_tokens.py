"""The next tokens of a text from an OpenAI-compatible `/v1/completions` with log-probabilities.

Knows nothing about critics or sockets. The text goes there as token ids: only so do a server and a
critic agree on what has been said.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

import orjson

from app.domain.errors import UpstreamError, UpstreamProtocolError
from app.proxy.upstream import UpstreamReply
from app.rectification.next_tokens import NextChunk, NextToken

_MOST_ALTERNATIVES: Final = 20
_BY_ID: Final = "token_id:"
NAMES_AS_IDS: Final[Mapping[str, Any]] = MappingProxyType({"return_tokens_as_token_ids": True})
"""What asks vLLM to name tokens by their ids, as `token_id:17`."""
_NO_VOCABULARY: Final[Mapping[str, int]] = MappingProxyType({})
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class _Complete(Protocol):
    def __call__(
        self, payload: Mapping[str, Any], *, headers: Mapping[str, str]
    ) -> Awaitable[UpstreamReply]: ...


class CompletionTokens:
    """One model, asked with one way of sampling. Safe for several texts at once.

    The server must report the log-probabilities of the model itself, before temperature and
    filters: OpenAI's API does, and vLLM unless `--logprobs-mode` says otherwise.

    Args:
        complete: Sends a payload: `HttpUpstream.complete`.
        sampling: `model`, `temperature`, `top_p` and the like.
        alternatives: How many are asked for: OpenAI allows 5, vLLM 20.
        extra: What else is sent. Servers that refuse what they do not know need it empty.
        vocabulary: The id of each token by its text, where tokens are not named by ids. Leave out
            texts that several tokens have.
    """

    def __init__(
        self,
        complete: _Complete,
        sampling: Mapping[str, Any],
        *,
        alternatives: int = _MOST_ALTERNATIVES,
        extra: Mapping[str, Any] = NAMES_AS_IDS,
        vocabulary: Mapping[str, int] = _NO_VOCABULARY,
    ) -> None:
        if not 1 <= alternatives <= _MOST_ALTERNATIVES:
            raise ValueError("alternatives must lie between 1 and 20")
        self._complete = complete
        self._fixed = {**sampling, **extra, "logprobs": alternatives}
        self._alternatives = alternatives
        self._vocabulary = vocabulary

    async def __call__(self, token_ids: Sequence[int], count: int) -> NextChunk:
        """Draw at most `count` tokens.

        Raises:
            UpstreamError: There was no answer, or one that says no.
            UpstreamProtocolError: The answer is no completion with log-probabilities.
        """
        payload = {**self._fixed, "prompt": list(token_ids), "max_tokens": count}
        reply = await self._complete(payload, headers=_NO_HEADERS)
        if not reply.ok:
            raise UpstreamError(f"the upstream answered with status {reply.status}")
        try:
            choice = orjson.loads(reply.body or b"")["choices"][0]
            chunk = NextChunk(tuple(self._tokens(choice)), choice["finish_reason"] != "length")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            # `from None`: such an exception may carry the document.
            raise UpstreamProtocolError(
                "the upstream's answer is no completion with log-probabilities of known tokens"
            ) from None
        if len(chunk.tokens) > count:
            raise UpstreamProtocolError("the upstream said more than it was asked for")
        return chunk

    def _tokens(self, choice: Mapping[str, Any]) -> list[NextToken]:
        logprobs = choice["logprobs"]
        return [
            NextToken(self._required(name), self._likeliest(top))
            for name, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
        ]

    def _likeliest(self, top: Mapping[str, float]) -> dict[int, float]:
        """As many as were asked for: a draw that is none of them comes on top."""
        best = sorted(top.items(), key=lambda item: -item[1])[: self._alternatives]
        known = ((self._token_id(name), float(log_prob)) for name, log_prob in best)
        return {token_id: log_prob for token_id, log_prob in known if token_id is not None}

    def _required(self, name: str) -> int:
        token_id = self._token_id(name)
        if token_id is None:
            raise ValueError("an unknown token")
        return token_id

    def _token_id(self, name: str) -> int | None:
        number = name.removeprefix(_BY_ID)
        if number != name and number.isdecimal():
            return int(number)
        return self._vocabulary.get(name)
