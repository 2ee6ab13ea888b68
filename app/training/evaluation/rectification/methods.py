"""Every way to steer that is compared: scores of the next token in, what is drawn from out.

Knows nothing about texts' words, drawing or figures. An instance serves one batch, whose rows stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from app.rectification.baselines import bad_words, class_likelihood, dexperts, gedi
from app.rectification.critic_model import Critic
from app.rectification.critic_rows import CriticRows
from app.rectification.rectify import authors_cap, caps_of, log_probs_of
from app.rectification.sampling import Sampling, cut
from app.rectification.steering import Control, steer
from app.training.evaluation.rectification.reader import Reader, Tokens

TOP_P: Final = 0.9
"""The protocol's nucleus; every method draws from one."""
_SAMPLING: Final = Sampling(top_p=TOP_P)


@dataclass(frozen=True, slots=True)
class Moved:
    """What the next token of each row is drawn from, and what caps it was to obey.

    Attributes:
        log_probs: (rows, vocabulary).
        dead_ends: Rows for which there is no such distribution, (rows,) bool.
        q_values: The critic's, where every row has caps.
        epsilon: The strictness of those caps.
        capped: What the caps are held against, if it is not `log_probs`.
    """

    log_probs: Tensor
    dead_ends: Tensor | None = None
    q_values: Tensor | None = None
    epsilon: float = 0.0
    capped: Tensor | None = None

    def violations(self) -> Tensor | None:
        """How far the worst token of each row is above its cap, (rows,); None without caps."""
        if self.q_values is None:
            return None
        capped = self.log_probs if self.capped is None else self.capped
        over = capped.exp() - caps_of(self.q_values, self.epsilon)
        return over.amax(-1).clamp(min=0)


class Method(Protocol):
    """One way to steer the rows of one batch."""

    def begin(self, prompts: Sequence[Tokens]) -> None:
        """Learn what the rows begin with."""

    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        """Steer each row; between two calls a row has one token more, or any number fewer."""
        ...


def nucleus(logits: Tensor) -> Tensor:
    """The distribution over the likeliest tokens that hold `TOP_P`, in logs."""
    return log_probs_of(cut(logits, [_SAMPLING] * len(logits)))


class Plain:
    """No control."""

    def begin(self, prompts: Sequence[Tokens]) -> None:
        """Nothing to learn."""

    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        """The model's own nucleus."""
        return Moved(nucleus(logits))


class BadWords(Plain):
    """Words that are never finished."""

    def __init__(self, words: Sequence[Tokens]) -> None:
        self._words = words

    @override
    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        return Moved(nucleus(bad_words(logits, self._words, texts)))


class Rectified(Plain):
    """The service's own control: exact cap, tilt, or cap after tilt."""

    def __init__(self, critic: Critic, control: Control) -> None:
        self._rows = CriticRows(critic)
        self._control = control

    @override
    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        values = self._rows.q_values(dict(enumerate(texts)))
        controls = [self._control] * len(texts)
        steered = steer(logits, values, controls, [_SAMPLING] * len(texts))
        # Below a gate nothing is promised, and a tilt alone promises nothing.
        promised = self._control.mode in {"cap", "tilt_cap"} and self._control.gate == 0
        return Moved(
            steered.log_probs,
            steered.dead_ends,
            values if promised else None,
            self._control.epsilon,
        )


class AuthorsLoop(Plain):
    """The published loop: nothing is taken back, and caps that leave nothing are normalised.

    Its caps are held against what the loop gives, before the nucleus raises what is left.
    """

    def __init__(self, critic: Critic, epsilon: float) -> None:
        self._rows = CriticRows(critic)
        self._epsilon = epsilon

    @override
    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        values = self._rows.q_values(dict(enumerate(texts)))
        capped = authors_cap(logits, caps_of(values, self._epsilon))
        return Moved(nucleus(capped), q_values=values, epsilon=self._epsilon, capped=capped)


class _TwoClasses:
    """The language model behind words that ask for polite text, and for toxic text."""

    def __init__(self, polite: Reader, toxic: Reader) -> None:
        self._readers = (polite, toxic)
        self._scores: tuple[Tensor, Tensor] | None = None

    def begin(self, prompts: Sequence[Tokens]) -> None:
        """Both read the prompts."""
        polite, toxic = (reader.begin(prompts) for reader in self._readers)
        self._scores = polite, toxic

    def _read(self, texts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Scores of both; those of the prompts the first time."""
        scores, self._scores = self._scores, None
        if scores is None:
            polite, toxic = (reader.newest(texts) for reader in self._readers)
            scores = polite, toxic
        return scores


class DExperts(_TwoClasses):
    """Logits moved by the difference of the two classes; the nucleus is the model's own."""

    def __init__(self, polite: Reader, toxic: Reader, alpha: float) -> None:
        super().__init__(polite, toxic)
        self._alpha = alpha

    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        """Steer each row."""
        polite, toxic = self._read(texts)
        return Moved(dexperts(logits, polite, toxic, self._alpha, TOP_P))


class GeDi(_TwoClasses):
    """Bayes' rule over the two classes.

    Their likelihoods are those of the continuation: the prompt is the same for both, and how toxic
    it is must not decide.
    """

    def __init__(self, polite: Reader, toxic: Reader, omega: float) -> None:
        super().__init__(polite, toxic)
        self._omega = omega
        self._past: list[Tensor] = []  # of each class, (rows, 1)
        self._before: list[Tensor] = []  # of each class, (rows, vocabulary)
        self._length = 0

    def moved(self, logits: Tensor, texts: Sequence[Tokens]) -> Moved:
        """Steer each row."""
        scores = self._read(texts)
        self._length += 1
        if self._before:
            newest = torch.tensor([[text[-1]] for text in texts])
            gained = [each.gather(1, newest) for each in self._before]
            self._past = [past + more for past, more in zip(self._past, gained, strict=True)]
        else:
            self._past = [each.new_zeros(len(texts), 1) for each in scores]
        self._before = [log_probs_of(each) for each in scores]
        polite, toxic = (
            class_likelihood(each, past, self._length)
            for each, past in zip(scores, self._past, strict=True)
        )
        return Moved(nucleus(gedi(logits, polite, toxic, omega=self._omega)))
