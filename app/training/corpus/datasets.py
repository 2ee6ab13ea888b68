"""Reads the labelled data into training samples: mapped, capped, de-duplicated, decontaminated.

Knows nothing about models. Nothing under `test/` is ever returned for training: it is read only to
remove its texts from the training rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.errors import ConfigurationError
from app.training.corpus.sources import Source, load_sources

Licences = Literal["open", "all"]

RUN: Final = 8
"""Two texts overlap when they share a run of this many words."""

HELD_OUT: Final = 0.08
"""Part of the training rows kept for calibration and thresholds."""

_UNKNOWN: Final = math.nan


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled text. A label is 1.0, 0.0 or NaN where the source does not say.

    `context` is the prompt that a response answers.
    """

    text: str
    source: str
    on_input: float
    on_output: float
    categories: tuple[Category, ...] = ()
    role: str = "prompt"
    context: str = ""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the card says about one source."""

    name: str
    licence: str
    open_licence: bool
    rows: int


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; how texts are compared."""
    return re.findall(r"\w+", text.lower())


def runs_of(words: Sequence[str], length: int = RUN) -> Iterator[int]:
    """A hash of every run of `length` words."""
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))


class Overlap:
    """Remembers texts, and says whether another one is the same or shares an 8-word run."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._runs: set[int] = set()

    def add(self, text: str) -> None:
        """Remember `text`; one without words is no text."""
        words = words_of(text)
        if not words:
            return
        self._texts.add("".join(words))
        self._runs.update(runs_of(words))

    def has(self, text: str) -> bool:
        """Whether `text` equals a remembered one after normalising, or shares a run with it."""
        words = words_of(text)
        return "".join(words) in self._texts or any(run in self._runs for run in runs_of(words))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything that training sees, and how it came about."""

    train: list[Sample]
    held_out: list[Sample]
    dev: list[Sample]
    sources: tuple[SourceFacts, ...]
    overlap_removed: dict[str, int]
    duplicates_removed: int
    overlap: Overlap

    def extended(self, samples: Sequence[Sample], *, held_out: float, licence: str) -> Corpus:
        """With `samples` of one open source that were made after reading, less those that overlap.

        A part of `held_out` of them, chosen by their texts, is kept from training.
        """
        fresh = [sample for sample in samples if not self.overlap.has(sample.text)]
        kept = [sample for sample in fresh if _share(sample.text) < held_out]
        facts = SourceFacts(fresh[0].source, licence, True, len(fresh)) if fresh else None
        return replace(
            self,
            sources=(*self.sources, *([facts] if facts else [])),
            train=self.train + [each for each in fresh if _share(each.text) >= held_out],
            held_out=self.held_out + kept,
        )

    @property
    def summary(self) -> str:
        """One paragraph for people: sizes, and what was removed."""
        return (
            f"{len(self.train)} training rows, {len(self.held_out)} held out, {len(self.dev)} dev;"
            f" {self.duplicates_removed} duplicates removed; {sum(self.overlap_removed.values())}"
            " rows removed because they equal a text of test or dev or share a run of"
            f" {RUN} words with one: {self.overlap_removed}"
        )


def load_corpus(
    data: Path, *, licences: Licences, seed: int, extra: Iterable[Sample] = ()
) -> Corpus:
    """Read `data/train` and `data/dev`; `extra` are samples written for the project.

    Raises:
        ConfigurationError: The folder does not hold the data.
    """
    manifest = _manifest(data)
    overlap = Overlap()
    for path in sorted((data / "test").glob("*.jsonl.gz")):
        for row in read_rows(path):
            overlap.add(row["text"])
            overlap.add(row.get("context") or "")
    dev = [sample for path in sorted((data / "dev").glob("*.jsonl.gz")) for sample in _dev(path)]
    for sample in dev:
        overlap.add(sample.text)
        overlap.add(sample.context)

    samples: list[Sample] = []
    facts: list[SourceFacts] = []
    removed: Counter[str] = Counter()
    seen: set[str] = set()
    duplicates = 0
    for source in load_sources():
        entry = manifest.get(source.name)
        if entry is None or (licences == "open" and not entry["open_licence"]):
            continue
        rows = _source_samples(data / "train" / f"{source.name}.jsonl.gz", source, seed)
        before = sum(removed.values())
        kept = _unseen(rows, overlap, seen, removed)
        duplicates += len(rows) - len(kept) - (sum(removed.values()) - before)
        samples += kept
        facts.append(
            SourceFacts(source.name, entry["licence"], bool(entry["open_licence"]), len(kept))
        )
    own = _unseen(extra, overlap, seen, removed)
    facts.append(SourceFacts("templates", "Apache-2.0 (written for this project)", True, len(own)))

    # What was written for the project always trains: its products are near-duplicates.
    train, held_out = split(samples)
    train += own
    random.Random(seed).shuffle(train)  # noqa: S311 - reproducible order, not a secret
    return Corpus(train, held_out, dev, tuple(facts), dict(removed), duplicates, overlap)


def labels_of(samples: Sequence[Sample], stage: Stage) -> NDArray[np.float64]:
    """The labels of one stage; NaN where unknown."""
    values = [each.on_input if stage is Stage.INPUT else each.on_output for each in samples]
    return np.asarray(values, np.float64)


def split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out rows that share no 8-word run.

    Generated families repeat their templates: a row that overlaps with a training row is one too,
    so that the held-out rows do not flatter the model.
    """
    train = [sample for sample in samples if not _is_held_out(sample.text)]
    known = Overlap()
    for sample in train:
        known.add(sample.text)
    held_out: list[Sample] = []
    for sample in samples:
        if _is_held_out(sample.text):
            (train if known.has(sample.text) else held_out).append(sample)
    return train, held_out


def _manifest(data: Path) -> dict[str, dict[str, Any]]:
    path = data / "MANIFEST.json"
    if not path.is_file():
        raise ConfigurationError(f"no MANIFEST.json in {data}: name the folder of the data sets")
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}


def _unseen(
    samples: Iterable[Sample], overlap: Overlap, seen: set[str], removed: Counter[str]
) -> list[Sample]:
    kept = []
    for sample in samples:
        key = "".join(words_of(sample.text))
        if not key or key in seen:
            continue
        seen.add(key)
        if overlap.has(sample.text):
            removed[sample.source] += 1
        elif sample.context and overlap.has(sample.context):
            kept.append(replace(sample, context=""))
        else:
            kept.append(sample)
    return kept


def _is_held_out(text: str) -> bool:
    """By the text alone, so that it does not move when a source is added."""
    return _share(text) < HELD_OUT


def _share(text: str) -> float:
    """Where a text falls between 0 and 1."""
    return hashlib.sha256("".join(words_of(text)).encode()).digest()[0] / 256


def _source_samples(path: Path, source: Source, seed: int) -> list[Sample]:
    rows = read_rows(path)
    random.Random(f"{seed} {source.name}").shuffle(rows)  # noqa: S311 - a reproducible sample
    per_class: Counter[int] = Counter()
    per_label: Counter[str] = Counter()
    samples = []
    for row in rows:
        labels = frozenset(row.get("categories") or ())
        unsafe = int(row["unsafe"])
        if row.get("lang") not in {"en", "und", None}:
            continue
        if not source.admits(labels, unsafe=bool(unsafe)) or per_class[unsafe] >= source.limit:
            continue
        capped = [label for label in labels if label in source.per_label]
        if any(per_label[label] >= source.per_label[label] for label in capped):
            continue
        combination = "|".join(sorted(labels))
        if source.cap is not None and per_label[combination] >= source.cap:
            continue
        per_label.update(capped)
        per_label[combination] += 1
        per_class[unsafe] += 1
        samples.append(_sample(row, source, labels))
    return samples


def _sample(row: dict[str, Any], source: Source, labels: frozenset[str]) -> Sample:
    unsafe = bool(row["unsafe"])
    side = source.unsafe if unsafe else source.safe
    if source.safe == "output" and row["role"] == "prompt":
        side = "input" if unsafe else "both"
    label = float(unsafe)
    return Sample(
        text=row["text"],
        source=source.name,
        on_input=label if side in {"input", "both"} else _UNKNOWN,
        on_output=label if side in {"output", "both"} else _UNKNOWN,
        categories=source.our_categories(labels) if unsafe else (),
        role=row["role"],
        context=(row.get("context") or "") if row["role"] == "response" else "",
    )


def _dev(path: Path) -> Iterator[Sample]:
    name = path.name.removesuffix(".jsonl.gz")
    for row in read_rows(path):
        label = float(row["unsafe"])
        prompt = row["role"] == "prompt"
        yield Sample(
            text=row["text"],
            source=name,
            on_input=label if prompt else _UNKNOWN,
            on_output=_UNKNOWN if prompt else label,
            role=row["role"],
            context="" if prompt else row.get("context") or "",
        )
