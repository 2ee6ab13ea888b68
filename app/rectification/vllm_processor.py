"""Rectification inside vLLM: the one module that knows vLLM's interface.

Knows nothing about HTTP. vLLM has two interfaces for custom logits processors, one per model
runner. The class here speaks both, so that one entry point serves either:

- the first runner gives `update_state(BatchUpdate)` and `apply(logits)`: rows are added, removed
  and moved, and a row's output is a list that grows;
- the second runner gives `add_request(slot, params)` and `apply(logits, context)`: a request keeps
  its slot, rows change their order at every step, and the tokens lie on the device.

**Where it stands.** Both run it before temperature, top-k and top-p. It therefore gives back logits
that come out right behind them: multiplied by the temperature, with caps smaller by the share that
top-p may cut off. Without top-p the caps are exact; with it they hold, a little stricter than
asked. What vLLM does later and cannot be foreseen (penalties, min_p) is refused at admission. A row
that needs no change is not touched.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from app.rectification.sampling import Sampling, divisors
from app.rectification.steering import Control, Controls, TextValues, ended, steer
from app.rectification.vllm_policy import ServerPolicy, sampling_of

_INTERFACES: Final = (
    "vllm.v1.sample.logits_processor.interface",
    "vllm.v1.worker.gpu.sample.logits_processor.interface",
)
_PLACEHOLDER: Final = -1  # stands for a token that is still on the device
_log = logging.getLogger(__name__)


def _interfaces() -> Iterator[type]:
    """The abstract classes of vLLM that are installed; none where vLLM is not."""
    for name in _INTERFACES:
        try:
            yield import_module(name).LogitsProcessor
        except ImportError:
            continue


@dataclass(slots=True)
class _Request:
    """A rectified request. `text` is what the critic reads: the prompt and the output so far."""

    key: int
    control: Control
    sampling: Sampling
    text: list[int] = field(default_factory=list)
    prompt_length: int = 0
    output: Sequence[int] = ()

    def catch_up(self) -> None:
        """Take over what the first runner has added to `output`, or taken back from it."""
        del self.text[self.prompt_length + len(self.output) :]
        news = self.output[len(self.text) - self.prompt_length :]
        if _PLACEHOLDER in news:
            raise RuntimeError(
                "a processor that steers cannot read placeholders: start vLLM with"
                " --logits-processors or with --no-async-scheduling"
            )
        self.text.extend(news)


class Rectification(*_interfaces()):  # type: ignore[misc] # the bases depend on what is installed
    """Steers every request by the server's policy and what the request asks for within it.

    Called by one thread, like every logits processor. Raises `ValueError` at start for a
    configuration in which it could not keep its promise.
    """

    # vLLM makes a class that is both an entry point and named by --logits-processors twice.
    _by_config: ClassVar[WeakValueDictionary[int, Rectification]] = WeakValueDictionary()

    def __init__(
        self,
        vllm_config: Any,
        place: Any,
        is_pin_memory: bool | None = None,  # noqa: FBT001 - vLLM passes it by position
    ) -> None:
        """Load the critic, or stay idle where the environment names none.

        Args:
            vllm_config: vLLM's configuration.
            place: the device (first runner) or the state of the requests (second runner).
            is_pin_memory: given by the first runner only.
        """
        self._requests: dict[int, _Request] = {}  # by row (first runner) or by slot (second)
        self._numbers = itertools.count()
        self._columns: tuple[list[int], Controls] | None = None
        self._states: Any = place if is_pin_memory is None else None
        self._policy = self._admitted(vllm_config)
        if self._policy is None:
            return
        self._config = vllm_config  # held, so that its id stays its own
        self._by_config[id(vllm_config)] = self
        device = torch.device(place if self._states is None else place.device)
        self._values = self.load(self._policy.critic, device, _vocabulary(vllm_config))
        self._end_token_id = _end_token_id(vllm_config)

    @staticmethod
    def load(folder: Path, device: torch.device, vocabulary: int) -> TextValues:
        """Load the critic onto the device. Raises `ValueError` for another vocabulary."""
        from app.rectification.critic_model import Critic  # noqa: PLC0415 - the frontend needs none
        from app.rectification.critic_rows import CriticRows  # noqa: PLC0415

        critic = Critic.load(folder).to(device)
        if critic.shape.vocabulary != vocabulary:
            raise ValueError("the critic and the model must have the same vocabulary")
        return CriticRows(critic)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request at admission; raises `ValueError`."""
        policy = ServerPolicy.read(os.environ)
        if policy is not None:
            policy.check(sampling_params)

    @classmethod
    def needs_output_token_ids(cls) -> bool:
        """Ask the first runner to fill in its placeholders before `apply`."""
        return True

    def is_argmax_invariant(self) -> bool:
        """Steering may change the best token."""
        return False

    # The first runner

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch, in the order that vLLM prescribes: removed, added, moved."""
        policy = self._policy
        if batch_update is None or policy is None:
            return
        for row in batch_update.removed:
            self._drop(row)
        for row, params, prompt, output in batch_update.added:
            self._add(policy, row, params, prompt or (), output)
        for source, target, direction in batch_update.moved:
            moving, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moving is not None:
                self._requests[target] = moving
            if replaced is None:
                continue
            if direction.name == "SWAP":
                self._requests[source] = replaced
            else:
                self._values.forget(replaced.key)

    # The second runner

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take over a slot, whatever was in it; returns whether the request is rectified."""
        return self._policy is not None and self._add(self._policy, req_idx, sampling_params)

    # Both

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Steer the rows in place: (rows, vocabulary)."""
        if not self._requests:
            return logits
        rows = self._grown_rows() if ctx is None else self._grown_slots(ctx)
        if not rows:
            return logits
        requests = list(rows.values())
        texts: dict[Hashable, Sequence[int]] = {one.key: one.text for one in requests}
        values = self._values.q_values(texts)
        at = torch.tensor(list(rows), device=logits.device)
        samplings = [one.sampling for one in requests]
        steered = steer(
            logits[at],
            values.to(logits.device),
            self._controls(requests, logits.device),
            samplings,
            filters_follow=True,
        )
        result = steered.log_probs * divisors(samplings, logits.device)
        result = ended(result, steered.dead_ends, self._end_token_id)
        changed = steered.changed
        logits[at[changed]] = result[changed].to(logits.dtype)
        return logits

    def _add(
        self,
        policy: ServerPolicy,
        index: int,
        params: Any,
        prompt: Sequence[int] = (),
        output: Sequence[int] = (),
    ) -> bool:
        self._drop(index)
        control = policy.control_of(params)
        if control.mode == "off":
            return False
        self._requests[index] = _Request(
            next(self._numbers), control, sampling_of(params), list(prompt), len(prompt), output
        )
        return True

    def _drop(self, index: int) -> None:
        request = self._requests.pop(index, None)
        if request is not None:
            self._values.forget(request.key)

    def _grown_rows(self) -> dict[int, _Request]:
        for request in self._requests.values():
            request.catch_up()
        return self._requests

    def _grown_slots(self, ctx: Any) -> dict[int, _Request]:
        """Read what is new of each text from the device: the newest tokens of all at once."""
        newest: list[int] = ctx.input_ids.tolist()
        lengths: list[int] = ctx.seq_lens_upper_bound_np.tolist()  # exact without drafts
        rows = {}
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            request = self._requests.get(slot)
            if request is None:
                continue
            known = len(request.text)
            if known == lengths[row] - 1:
                request.text.append(newest[row])
            else:
                news = self._states.all_token_ids.gpu[slot, known : lengths[row]]
                request.text.extend(news.tolist())
            rows[row] = request
        return rows

    def _controls(self, requests: list[_Request], device: torch.device) -> Controls:
        """The controls as tensors, made anew only when the rows are other requests than before."""
        keys = [one.key for one in requests]
        if self._columns is None or self._columns[0] != keys:
            self._columns = keys, Controls.of([one.control for one in requests], device)
        return self._columns[1]

    def _admitted(self, vllm_config: Any) -> ServerPolicy | None:
        """Return the policy if this instance is to work; raises `ValueError` where it could not."""
        policy = ServerPolicy.read(os.environ)
        named = _named(vllm_config)
        if policy is None:
            if named:
                raise ValueError("rectification is asked for, but no critic is named")
            _log.info("rectification_idle")
            return None
        if id(vllm_config) in self._by_config:
            return None
        if getattr(vllm_config, "speculative_config", None) is not None:
            raise ValueError("rectification does not work with speculative decoding")
        if getattr(vllm_config.model_config, "enable_prompt_embeds", False):
            raise ValueError("rectification does not work with prompt embeddings")
        ahead = getattr(vllm_config.scheduler_config, "async_scheduling", False)
        if not named and (ahead or self._states is not None):
            raise ValueError("name the processor with --logits-processors as well")
        return policy


def _named(vllm_config: Any) -> bool:
    """Whether --logits-processors names this class: then vLLM validates and repairs for it."""
    named = getattr(vllm_config.model_config, "logits_processors", None) or ()
    return any(
        one is Rectification or one == f"{__name__}:{Rectification.__name__}" for one in named
    )


def _vocabulary(vllm_config: Any) -> int:
    return int(vllm_config.model_config.get_vocab_size())


def _end_token_id(vllm_config: Any) -> int | None:
    """The token that ends a text, for rows in a dead end; of several, the first."""
    found = getattr(vllm_config.model_config.hf_config, "eos_token_id", None)
    if isinstance(found, list):
        found = found[0] if found else None
    return None if found is None else int(found)
