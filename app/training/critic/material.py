"""What a critic is trained on and measured with: rollouts and readings, with their risks.

Knows nothing about networks. Test prompts are never used: the corpus has their texts removed, and
prompts that it does not cover are compared with them here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from app.training.corpus.datasets import Corpus, Overlap, Sample, SourceFacts, read_rows
from app.training.corpus.sources import load_sources
from app.training.critic.labels import Judge, Output
from app.training.critic.rollouts import Amount, Author, write_rollouts
from app.training.critic.texts import Kind, Layout, Part, Text, part_of

PROMPTS: Final = "rtp_prompts"
_CONTINUATIONS: Final = "rtp_continuations"
_LONGEST_REQUEST: Final = 240  # characters


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much of everything.

    Args:
        continued: Plain prompts that the language model continues.
        continuations: How many times each, and how long.
        answered: Chats that it answers, half of them to harmful prompts.
        answers: How many times each, and how long.
        readings: Texts of the public sets, half of them unsafe.
        rows: Rollouts that are written at once.
        epochs: Passes over all texts.
        batch_tokens: Tokens of a batch in training.
    """

    continued: int
    continuations: Amount
    answered: int
    answers: Amount
    readings: int
    rows: int
    epochs: float
    batch_tokens: int


RECIPES: Final = {
    "cpu": Recipe(
        continued=4_800,
        continuations=Amount(4, 20, 40),
        answered=2_400,
        answers=Amount(3, 40, 64),
        readings=12_000,
        rows=128,
        epochs=3.0,
        batch_tokens=4_096,
    ),
    "gpu": Recipe(
        continued=5_000,
        continuations=Amount(25, 20, 40),
        answered=10_000,
        answers=Amount(8, 40, 96),
        readings=40_000,
        rows=1_024,
        epochs=3.0,
        batch_tokens=16_384,
    ),
}


@dataclass(slots=True)
class Material:
    """All texts; only rollouts are held out."""

    parts: dict[Part, list[Text]]
    sources: list[SourceFacts] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: tuple[int, ...]
    text: str
    context: str  # of the label: what a user asked, if anybody did
    source: str


def gather(
    data: Path,
    corpus: Corpus,
    recipe: Recipe,
    *,
    layout: Layout,
    judge: Judge,
    author: Callable[[], Author],
    cache: Path,
    seed: int,
) -> Material:
    """Everything of a recipe; what is on disk already is not made again."""
    material = Material({"train": [], "calibration": [], "measure": []})
    plain = _plain(data, corpus, layout)[: recipe.continued]
    chats = _chats(corpus, layout, recipe.answered, seed)
    kinds: tuple[tuple[Kind, list[_Prompt], Amount], ...] = (
        ("continuation", plain, recipe.continuations),
        ("answer", chats, recipe.answers),
    )
    for kind, prompts, amount in kinds:
        written = write_rollouts(
            [prompt.ids for prompt in prompts],
            amount,
            cache=cache / f"rollouts-{kind}.jsonl",
            author=author,
            rows=recipe.rows,
            seed=seed,
        )
        for part, text in _labelled(prompts, written, kind, layout, judge):
            material.parts[part].append(text)
    asked = [*plain, *chats]
    readings = _readings(corpus, asked, recipe.readings, seed)
    material.parts["train"] += _read(readings, asked, layout, judge)
    material.sources = _facts(corpus, [*asked, *readings])
    material.counts = _counts(material)
    return material


def _plain(data: Path, corpus: Corpus, layout: Layout) -> list[_Prompt]:
    """The prompts of the set that shares nothing with a test set, in a fixed order."""
    if all(source.name != PROMPTS for source in corpus.sources):
        return []  # its licence is not among those asked for
    rows = read_rows(data / "train" / f"{PROMPTS}.jsonl.gz")
    texts = {row["text"].strip() for row in rows}
    kept = [text for text in texts if text and not corpus.overlap.has(text)]
    return [_Prompt(layout.tokens(text), text, "", PROMPTS) for text in sorted(kept, key=_order)]


def _chats(corpus: Corpus, layout: Layout, count: int, seed: int) -> list[_Prompt]:
    """As many harmful as harmless requests, in a fixed order."""
    every = [*corpus.train, *corpus.held_out]
    requests = [s for s in every if s.role == "prompt" and len(s.text) <= _LONGEST_REQUEST]
    chosen: dict[str, str] = {}  # texts with their sources
    for label in (0.0, 1.0):
        texts = {sample.text: sample.source for sample in requests if sample.on_input == label}
        some = sorted(texts, key=lambda text: _order(f"{seed} {text}"))[: count // 2]
        chosen |= {text: texts[text] for text in some}
    return [
        _Prompt(layout.chat(text), text, text, chosen[text]) for text in sorted(chosen, key=_order)
    ]


def _labelled(
    prompts: Sequence[_Prompt],
    written: Sequence[Sequence[Sequence[int]]],
    kind: Kind,
    layout: Layout,
    judge: Judge,
) -> Iterator[tuple[Part, Text]]:
    """Rollouts with their risks. A continuation is judged alone, as the protocol does."""
    pairs = [(prompt, new) for prompt, some in zip(prompts, written, strict=True) for new in some]
    risks = judge.risks([Output(layout.text(new), prompt.context) for prompt, new in pairs])
    for (prompt, new), risk in zip(pairs, risks, strict=True):
        text = Text((*prompt.ids, *new), len(prompt.ids), float(risk), kind)
        yield part_of(prompt.text), text


def _readings(corpus: Corpus, asked: Sequence[_Prompt], count: int, seed: int) -> list[Sample]:
    """Outputs and comments with a label, half of them unsafe; nothing of a held-out prompt."""
    held_out = Overlap()
    for prompt in asked:
        if part_of(prompt.text) != "train":
            held_out.add(prompt.text)
    known = [sample for sample in corpus.train if sample.role != "prompt"]
    chosen: list[Sample] = []
    for label in (0.0, 1.0):
        rows = [sample for sample in known if sample.on_output == label]
        rows.sort(key=lambda sample: _order(f"{seed} {sample.text}"))
        fresh = (s for s in rows if not held_out.has(s.text) and not held_out.has(s.context))
        chosen += [sample for sample, _ in zip(fresh, range(count // 2), strict=False)]
    return chosen


def _read(
    samples: Sequence[Sample], asked: Sequence[_Prompt], layout: Layout, judge: Judge
) -> list[Text]:
    """Readings with the mean of what their set and the moderator say."""
    judged = judge.risks([Output(sample.text, _context(sample)) for sample in samples])
    smoothing = {source.name: source.smoothing for source in load_sources()}
    requests = [each.context for each in asked if each.context and part_of(each.text) == "train"]
    texts = []
    for sample, risk in zip(samples, judged, strict=True):
        soft = smoothing.get(sample.source, 0.0)
        label = sample.on_output * (1 - soft) + (1 - sample.on_output) * soft
        before = _before(sample, requests, layout)
        ids = (*before, *layout.finished(_after(sample)))
        # The first token of all has nothing before it to be judged from.
        text = Text(ids, max(len(before), 1), (label + float(risk)) / 2, "reading")
        if text.judged > 0:
            texts.append(text)
    return texts


def _context(sample: Sample) -> str:
    """What the moderator is told: a text that is continued is no request."""
    return "" if sample.source == _CONTINUATIONS else sample.context


def _before(sample: Sample, requests: Sequence[str], layout: Layout) -> tuple[int, ...]:
    """The prompt as tokens. Every other text without one answers some request: abuse is abuse."""
    if sample.source == _CONTINUATIONS:
        return layout.tokens(sample.context)
    if sample.context:
        return layout.chat(sample.context)
    place = int.from_bytes(_order(sample.text)[:4])
    if place % 2 or not requests:
        return ()
    return layout.chat(requests[place // 2 % len(requests)])


def _after(sample: Sample) -> str:
    """The text itself; one that continues another begins with a space."""
    return f" {sample.text}" if sample.source == _CONTINUATIONS and sample.context else sample.text


def _facts(corpus: Corpus, used: Sequence[_Prompt | Sample]) -> list[SourceFacts]:
    """What the card says about the sets: how many rows of each were read, or begun with."""
    rows = Counter(each.source for each in used)
    return [
        SourceFacts(source.name, source.licence, source.open_licence, rows[source.name])
        for source in corpus.sources
        if rows[source.name]
    ]


def _counts(material: Material) -> dict[str, int]:
    """Texts of each kind and part, and tokens in training."""
    found = Counter(
        f"{part}_{text.kind}s" for part, texts in material.parts.items() for text in texts
    )
    found["train_tokens"] = int(np.sum([len(text.ids) for text in material.parts["train"]]))
    return dict(found)


def _order(text: str) -> bytes:
    """Random and always the same: a larger recipe begins with what a smaller one has."""
    return sha256(json.dumps(text).encode()).digest()
