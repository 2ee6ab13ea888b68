"""What an epoch of the moderator consists of: which samples, how often, how disguised or buried.

Knows nothing about networks. Everything follows from the seed and the number of the epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from app.domain.categories import Category
from app.domain.chunker import both_ends
from app.domain.normalization.normalize import normalize
from app.inference.artefact import SpecialTokens
from app.training.corpus.composites import bury
from app.training.corpus.datasets import Sample
from app.training.corpus.obfuscation import disguise, frame
from app.training.corpus.sources import Source
from app.training.corpus.tasks import tasked
from app.training.corpus.templates import SOURCE as OWN
from app.training.outputs import CATEGORIES

WINDOW: Final = 190
"""Tokens of a text that the model sees at once, special tokens not counted."""
OVERLAP: Final = 48
CONTEXT: Final = 64
"""Tokens of the prompt that go before a response."""

DISGUISED: Final = 0.18
FRAMED: Final = 0.06
BURIED: Final = 0.12
TASKED: Final = 0.12
WITHOUT_CONTEXT: Final = 0.3
AS_ANSWER: Final = 0.25
UNRELATED: Final = 2000
"""Pairs in an epoch of a prompt and a harmless answer that has nothing to do with it."""

_SHORT: Final = 300  # characters

RELATED: Final = (
    {Category.HATE, Category.HARASSMENT, Category.THREAT, Category.VIOLENCE},
    {Category.VIOLENT_CRIMES, Category.VIOLENCE, Category.THREAT, Category.INDISCRIMINATE_WEAPONS},
    {Category.SEX_CRIMES, Category.SEXUAL_CONTENT, Category.CHILD_EXPLOITATION},
    {Category.NON_VIOLENT_CRIMES, Category.CODE_ABUSE, Category.PRIVACY, Category.VIOLENT_CRIMES},
    {Category.SELF_HARM, Category.SPECIALIZED_ADVICE, Category.VIOLENCE},
    {Category.DEFAMATION, Category.HARASSMENT, Category.ELECTIONS},
)
"""Kinds that often come together: a source that names one says nothing about the others."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids as the model gets them, and targets: (stages + categories,), NaN where unknown."""

    ids: list[int]
    targets: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """Puts the special tokens of a trunk around a text and its context."""

    tokenizer: Tokenizer
    special: SpecialTokens
    start: int = field(init=False)
    separator: int = field(init=False)
    end: int = field(init=False)
    padding: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("start", "separator", "end", "padding"):
            token = self.tokenizer.token_to_id(getattr(self.special, name))
            object.__setattr__(self, name, token)

    def tokens(self, text: str) -> list[int]:
        """All of `text`, nothing around it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def frame(self, window: list[int], context: list[int] | None = None) -> list[int]:
        """What goes into the model."""
        before = [*both_ends(context, CONTEXT), self.separator] if context else []
        return [self.start, *before, *window, self.end]


def targets_of(sample: Sample, source: Source | None) -> NDArray[np.float32]:
    """Stages, then categories, labels moved towards one half by the source's smoothing."""
    soft = source.smoothing if source else 0.0
    stages = [
        label if math.isnan(label) else label * (1 - soft) + (1 - label) * soft
        for label in (sample.on_input, sample.on_output)
    ]
    unsafe = 1.0 in {sample.on_input, sample.on_output}
    kinds = _kinds(sample, source.axes if source else (), unsafe=unsafe)
    return np.asarray([*stages, *kinds], np.float32)


def _kinds(sample: Sample, axes: Sequence[Category], *, unsafe: bool) -> list[float]:
    if not unsafe:
        return [0.0] * len(CATEGORIES)
    if not sample.categories:
        return [math.nan] * len(CATEGORIES)
    named = set(sample.categories)
    open_ = set().union(*(group for group in RELATED if group & named)) - set(axes)
    if Category.JAILBREAK in named:
        open_ |= set(CATEGORIES) - set(axes)  # an attack may be after anything
    return [1.0 if c in named else math.nan if c in open_ else 0.0 for c in CATEGORIES]


class Mixture:
    """Draws epochs from the training rows.

    Args:
        samples: The training rows.
        sources: Weights and smoothing, by name of the source.
        layout: How a text becomes token ids.
        seed: Everything drawn follows from it and the epoch's number.
        own_weight: How often a sample written for the project is drawn.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sources: Mapping[str, Source],
        layout: Layout,
        *,
        seed: int,
        own_weight: float = 1.0,
    ) -> None:
        self._samples = samples
        self._sources = sources
        self._layout = layout
        self._seed = seed
        self._own_weight = own_weight
        short = [each for each in samples if len(each.text) <= _SHORT]
        self._fillers = [e.text for e in short if e.on_input == 0.0 and e.role == "prompt"]
        answers = [e for e in samples if e.role == "response" and e.on_output == 0.0]
        self._answers = [each.text for each in answers]
        prompts = [each for each in samples if each.role == "prompt"]
        self._requests = {
            label: [each.text for each in prompts if each.on_input == label] for label in (0.0, 1.0)
        }

    def epoch(self, number: int) -> list[Example]:
        """All examples of one epoch, in random order."""
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - reproducible, no secret
        drawn = [e for sample in self._samples for e in [sample] * self._times(sample, chance)]
        examples = [self._example(sample, chance) for sample in drawn]
        examples += self._unrelated(chance)
        chance.shuffle(examples)
        return examples

    def _times(self, sample: Sample, chance: random.Random) -> int:
        source = self._sources.get(sample.source)
        weight = self._own_weight if sample.source == OWN else source.weight if source else 1.0
        whole = int(weight)
        return whole + (chance.random() < weight - whole)

    def _example(self, sample: Sample, chance: random.Random) -> Example:
        text, context = sample.text, sample.context
        if len(text) <= _SHORT and sample.role != "response" and chance.random() < BURIED:
            fillers = chance.choices(self._fillers, k=chance.randint(1, 7))
            text = bury(text, fillers, chance, max_words=130)
        elif sample.role == "comment" and chance.random() < TASKED:
            text = tasked(text, chance)
        elif sample.role == "prompt" and sample.on_input == 0.0 and chance.random() < FRAMED:
            # Attacks come in frames like these: without this, the frame alone would look harmful.
            text = frame(text, chance)
        elif chance.random() < DISGUISED:
            # As in service: the model reads what normalising makes of it, in all its views.
            text = chance.choice(normalize(disguise(text, chance))).text
        if context and chance.random() < WITHOUT_CONTEXT:
            context = ""
        elif sample.role == "comment" and self._fillers and chance.random() < AS_ANSWER:
            # Abuse is abuse whatever it answers.
            context = chance.choice(self._fillers)
        ids = self._window(self._layout.tokens(text) or [self._layout.separator], chance)
        before = self._layout.tokens(context) if context else None
        targets = targets_of(sample, self._sources.get(sample.source))
        return Example(self._layout.frame(ids, before), targets)

    def _window(self, ids: list[int], chance: random.Random) -> list[int]:
        """One window of a long text: the first or the last as a rule, where the point is made."""
        if len(ids) <= WINDOW:
            return ids
        last = len(ids) - WINDOW
        start = chance.choice((0, 0, last, chance.randrange(last + 1)))
        return ids[start : start + WINDOW]

    def _unrelated(self, chance: random.Random) -> Iterator[Example]:
        """A harmless answer is harmless whatever was asked."""
        if not self._answers or not all(self._requests.values()):
            return
        safe = np.asarray([math.nan, 0.02, *[0.0] * len(CATEGORIES)], np.float32)
        for _ in range(UNRELATED):
            answer = self._layout.tokens(chance.choice(self._answers))
            requests = self._requests[chance.choice((0.0, 1.0))]
            request = self._layout.tokens(chance.choice(requests))
            yield Example(self._layout.frame(self._window(answer, chance), request), safe)


def batches(
    examples: Sequence[Example], *, tokens: int, chance: random.Random
) -> list[list[Example]]:
    """Batches of similar length, at most `tokens` with their padding, in random order."""
    chunk = 2048
    made: list[list[Example]] = []
    for start in range(0, len(examples), chunk):
        batch: list[Example] = []
        for example in sorted(examples[start : start + chunk], key=lambda each: len(each.ids)):
            if batch and len(example.ids) * (len(batch) + 1) > tokens:
                made.append(batch)
                batch = []
            batch.append(example)
        if batch:
            made.append(batch)
    chance.shuffle(made)
    return made
