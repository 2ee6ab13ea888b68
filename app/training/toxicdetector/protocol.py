"""The paper's protocol on its own data, and what a detector trained so does on other data.

Knows nothing about the shipped detector. The toxic half of the data is a test set: what is trained
here is measured and thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from app.training import metrics
from app.training.corpus.datasets import read_rows
from app.training.metrics import Scores
from app.training.toxicdetector.fitting import Recipe, Rows, fit, logits_of
from app.training.toxicdetector.network import Shape
from app.training.toxicdetector.rivals import BagOfWords, Head, InnerProducts, Muli, States
from app.training.toxicdetector.splits import Mask, at_random, by_group, relatives

Figures = dict[str, float | None]
Embedded = Callable[[Sequence[str]], States]

LONGEST: Final = 300
"""Characters of a benign prompt, as in the paper's code."""
SEEDS: Final = 3
RANDOM: Final = "random"
RECIPE: Final = Recipe(epochs=5)


@dataclass(frozen=True, slots=True)
class PaperData:
    """Toxic prompts of eight scenarios, and as many benign ones."""

    texts: list[str]
    toxic: Scores
    scenarios: list[str]  # "" for benign ones

    @classmethod
    def read(cls, data: Path) -> PaperData:
        """Read both halves."""
        toxic = read_rows(data / "test" / "toxicdetector_scenarios.jsonl.gz")
        rows = read_rows(data / "train" / "toxicdetector_sharegpt.jsonl.gz")
        benign = [row["text"] for row in rows if len(row["text"]) <= LONGEST]
        benign = random.Random(7).sample(benign, min(len(benign), len(toxic)))  # noqa: S311 - fixed
        return cls(
            texts=[row["text"] for row in toxic] + benign,
            toxic=np.asarray([1.0] * len(toxic) + [0.0] * len(benign)),
            scenarios=[row["categories"][0] for row in toxic] + [""] * len(benign),
        )


@dataclass(frozen=True, slots=True)
class Concepts:
    """The embedded bank: (concepts, layers, hidden), and how many each scenario has."""

    states: States
    scenarios: list[int]


def splits_of(paper: PaperData, seed: int) -> Iterator[tuple[str, Mask]]:
    """Which texts train, three ways; the benign ones by the same rule where it has a meaning."""
    unsafe = paper.toxic == 1
    yield RANDOM, _both(unsafe, at_random(int(unsafe.sum()), seed), seed)
    groups = relatives(paper.texts)
    yield "relatives apart", by_group(groups, seed)
    scenarios = [each for each in paper.scenarios if each]
    yield "scenarios apart", _both(unsafe, by_group(scenarios, seed), seed)


def _both(unsafe: Mask, chosen: Mask, seed: int) -> Mask:
    mask = np.zeros(len(unsafe), np.bool_)
    mask[unsafe] = chosen
    mask[~unsafe] = at_random(int((~unsafe).sum()), seed + 100)
    return mask


def train_all(
    texts: Sequence[str],
    states: States,
    toxic: Scores,
    *,
    concepts: Concepts,
    head: Head,
    seed: int,
) -> dict[str, Callable[[Sequence[str], States], Scores]]:
    """The network and its rivals on the same rows; each answers the probability of toxic."""
    rows = Rows(
        states, np.arange(len(toxic)), toxic.astype(np.float32), np.zeros((len(toxic), 0), "f4")
    )
    network = fit(rows, shape=Shape(), recipe=RECIPE, concepts=len(concepts.states), seed=seed)
    inner = InnerProducts(states, toxic, concepts.states, concepts.scenarios)
    words = BagOfWords(texts, toxic)
    muli = Muli(states, toxic, head, seed)

    def by_network(_: Sequence[str], states: States) -> Scores:
        empty = np.zeros(len(states), np.float32)
        asked = Rows(states, np.arange(len(states)), empty, np.zeros((len(states), 0), "f4"))
        return 1 / (1 + np.exp(-logits_of(network, asked)[0]))

    return {
        "ToxicDetector": by_network,
        "ToxicDetector, inner products": lambda _, states: inner.score(states),
        "MULI": lambda _, states: muli.score(states),
        "bag of words": lambda texts, _: words.score(texts),
    }


def figures(toxic: Scores, scores: Scores, threshold: float = 0.5) -> Figures:
    """F1, FPR, accuracy at the threshold; AUROC."""
    at = metrics.at_threshold(toxic, scores, threshold)
    right = (scores >= threshold) == (toxic == 1)
    return {**metrics.ranking(toxic, scores), **at, "accuracy": round(float(right.mean()), 4)}


def mean_figures(runs: Sequence[Figures]) -> Figures:
    """Mean of each figure over runs that have it."""
    means: Figures = {}
    for name in runs[0]:
        values = [value for run in runs if (value := run[name]) is not None]
        means[name] = round(float(np.mean(values)), 4) if values else None
    return means


def run_protocol(
    paper: PaperData,
    embedded: Embedded,
    concepts: Concepts,
    head: Head,
    others: Mapping[str, tuple[list[str], Scores]],
) -> dict[str, dict[str, dict[str, Figures]]]:
    """Figures by test and method, means over the seeds.

    The tests are the three splits; then the `others`, by what the random split has trained.
    """
    states = embedded(paper.texts)
    other_states = {name: embedded(texts) for name, (texts, _) in others.items()}
    runs: dict[str, dict[str, dict[str, list[Figures]]]] = {"own": {}, "others": {}}
    for seed in range(SEEDS):
        for split, mask in splits_of(paper, seed):
            trained, rest = _chosen(paper.texts, mask), _chosen(paper.texts, ~mask)
            scorers = train_all(
                trained, states[mask], paper.toxic[mask], concepts=concepts, head=head, seed=seed
            )
            for method, scorer in scorers.items():
                found = figures(paper.toxic[~mask], scorer(rest, states[~mask]))
                runs["own"].setdefault(split, {}).setdefault(method, []).append(found)
                print(f"seed {seed}, {split}, {method}: {found}", flush=True)
                if split != RANDOM:
                    continue
                for name, (texts, labels) in others.items():
                    found = figures(labels, scorer(texts, other_states[name]))
                    runs["others"].setdefault(name, {}).setdefault(method, []).append(found)
    return {
        kind: {
            test: {method: mean_figures(each) for method, each in methods.items()}
            for test, methods in tests.items()
        }
        for kind, tests in runs.items()
    }


def _chosen(texts: Sequence[str], mask: Mask) -> list[str]:
    return [text for text, wanted in zip(texts, mask, strict=True) if wanted]
