"""What a decoder samples from: temperature, then top-k, then top-p, many rows at once.

Knows nothing about critics. The arithmetic is that of transformers and of vLLM, so that a cap can
be put on the distribution that is really drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# So many of the best tokens are looked at before the whole vocabulary is sorted.
_FIRST_SORTED: Final = 1024
GREEDY_BELOW: Final = 1e-5  # vLLM's own bound: a smaller temperature takes the best token


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 and top_k 1 are greedy: the best token is taken; top_k 0 keeps all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 1e6:  # noqa: PLR2004 - a bound against infinity and NaN
            raise ValueError("temperature must be a finite number of at least 0")
        if self.top_k < 0:
            raise ValueError("top_k must be at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken, so that nothing needs to be cut."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def divisor(self) -> float:
        """What the logits are divided by."""
        return 1.0 if self.greedy else self.temperature

    @property
    def kept(self) -> float:
        """The least probability mass that top-p keeps."""
        return 1.0 if self.greedy else self.top_p


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One number per row, as a (rows, 1) tensor."""
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)


def divisors(samplings: Sequence[Sampling], device: torch.device) -> Tensor:
    """What each row is divided by, (rows, 1)."""
    return column([one.divisor for one in samplings], device)


def cut(logits: Tensor, samplings: Sequence[Sampling], caps: Tensor | None = None) -> Tensor:
    """Return the logits with -inf for what top-k and top-p cut; they leave at least one token.

    Args:
        logits: (rows, vocabulary), already divided by the temperature.
        samplings: one per row.
        caps: (rows, vocabulary), the most that each token may have: as many of the best tokens are
            left as can hold all the probability.
    """
    filters = [not one.greedy and (one.top_k > 0 or one.top_p < 1) for one in samplings]
    if not any(filters):
        return logits
    vocabulary, device = logits.shape[-1], logits.device
    chosen = torch.tensor(filters, device=device).unsqueeze(1)
    kept = column([one.kept for one in samplings], device)
    ranks = [min(one.top_k or vocabulary, vocabulary) for one in samplings]
    top_k = torch.tensor(ranks, device=device).unsqueeze(1)
    best, settled = _best(min(_FIRST_SORTED, vocabulary), logits, kept, top_k, caps)
    if not bool((settled | ~chosen).all()):
        best, _ = _best(vocabulary, logits, kept, top_k, caps)
    return torch.where(chosen, best, logits)


def _best(
    width: int, logits: Tensor, kept: Tensor, top_k: Tensor, caps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cut the `width` best tokens and drop all others; settled (rows, 1) if that is right.

    It is where the last of them is dropped, for then so are all that are worse; and where all that
    top-k leaves are among them, for top-p counts their mass alone.
    """
    ordered, token_ids = logits.topk(width)  # (rows, width), descending
    weakest = ordered.gather(1, (top_k - 1).clamp(max=width - 1))
    dropped = (ordered < weakest) & (top_k < width)
    whole = logits.logsumexp(-1, keepdim=True)
    left = ordered.masked_fill(dropped, -torch.inf)
    total = torch.where(top_k < width, left.logsumexp(-1, keepdim=True), whole)
    probabilities = (left - total).exp()
    # A row without top-p keeps its smallest probabilities, even those that round to nothing.
    dropped |= (probabilities.cumsum(-1) - probabilities >= kept) & (kept < 1)
    dropped[:, 0] = False
    if caps is not None:
        held = caps.gather(1, token_ids)
        dropped &= held.cumsum(-1) - held >= 1  # by the better tokens
    best = torch.full_like(logits, -torch.inf)
    best.scatter_(1, token_ids, ordered.masked_fill(dropped, -torch.inf))
    return best, dropped[:, -1:] & ((top_k < width) | (top_k == logits.shape[-1]))
