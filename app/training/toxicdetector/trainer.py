"""Trains the shipped ToxicDetector, repeats the paper's protocol, measures what reading costs.

Knows nothing about serving. The three parts can be run apart: `sluiceway train toxicdetector`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.detectors.toxic_detector import NAME, WEIGHTS
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError
from app.generation.weights import MODEL_NAME, SOURCE_SHA256
from app.inference.artefact import file_sha256
from app.inference.states_mlp import StatesMlp
from app.training import metrics
from app.training.corpus.datasets import Licences, Sample, load_corpus
from app.training.corpus.templates import template_samples
from app.training.export import write_card
from app.training.metrics import Scores
from app.training.outputs import CATEGORIES
from app.training.toxicdetector.concepts import PAPER_SCENARIOS, load_bank, sentence_vectors
from app.training.toxicdetector.cost import measure_cost
from app.training.toxicdetector.fitting import Recipe, Rows, calibrate, fit
from app.training.toxicdetector.language_model import LanguageModel
from app.training.toxicdetector.network import Shape
from app.training.toxicdetector.others import other_sets
from app.training.toxicdetector.prompts import OVERLAP, WINDOW, known_prompts, sample
from app.training.toxicdetector.protocol import Concepts, PaperData, figures, run_protocol
from app.training.toxicdetector.report import tables
from app.training.toxicdetector.rivals import BagOfWords, Muli
from app.training.toxicdetector.shipping import export

Part = Literal["all", "model", "protocol", "cost"]

BANK: Final = "concepts.yaml"
METRICS: Final = "metrics.json"
TABLES: Final = "figures.md"
SHAPE: Final = Shape(categories=len(CATEGORIES), dropout=0.2)
RECIPE: Final = Recipe(epochs=8, decay=0.02)
DEV: Final = 300
HELD_OUT: Final = 500
"""Prompts that calibrate and set the thresholds."""


def train(
    data: Path,
    out: Path,
    *,
    weights: Path,
    licences: Licences = "all",
    cache: Path = Path("cache"),
    seed: int = 7,
    part: Part = "all",
) -> None:
    """Write a model to `out`, which must hold the concept bank, and figures beside it.

    Embeddings are kept in `cache`: a run that was stopped goes on where it was.

    Args:
        data: the folder of the data sets.
        out: the model's folder.
        weights: where the language model's converted weights are kept.
        licences: which sources train.
        cache: where embeddings are kept.
        seed: of everything random.
        part: what is done: the model, the paper's protocol, the cost in time, or all of it.

    Raises:
        ConfigurationError: the data or the concept bank is not there.
        ModelMissing: a package with weights is not installed.
    """
    if not (out / BANK).is_file():
        raise ConfigurationError(f"{out} holds no {BANK}: copy the shipped one there")
    model = LanguageModel(weights, cache / "toxicdetector")
    if part in {"all", "model"}:
        _note(out, "model", train_model(data, out, model, licences=licences, seed=seed))
    if part in {"all", "protocol"}:
        concepts = _concepts(out, model, PAPER_SCENARIOS)
        paper, others = PaperData.read(data), other_sets(data)
        _note(out, "protocol", run_protocol(paper, model.firsts, concepts, model.head, others))
    if part in {"all", "cost"}:
        _note(out, "cost", measure_cost(model.folder, out))


def train_model(
    data: Path, out: Path, model: LanguageModel, *, licences: Licences, seed: int
) -> dict[str, Any]:
    """Train, calibrate, export; return the figures."""
    corpus = load_corpus(data, licences=licences, seed=seed, extra=template_samples())
    rows = sample(corpus.train)
    print(f"{len(rows)} training rows, {sum(row.on_input for row in rows):.0f} of them toxic")
    concepts = _concepts(out, model)

    # 1) Fit and calibrate.
    train_rows = _rows(rows, model)
    network = fit(train_rows, shape=SHAPE, recipe=RECIPE, concepts=len(concepts.states), seed=seed)
    unseen = known_prompts(corpus.dev, DEV) + known_prompts(corpus.held_out, HELD_OUT)
    unseen_rows = _rows(unseen, model)
    calibration = calibrate(network, [unseen_rows])

    # 2) Export; everything from here on is measured on the file that ships.
    export(network, calibration, out / WEIGHTS)
    mlp = StatesMlp(out / WEIGHTS)
    toxic = unseen_rows.toxic.astype(np.float64)
    scores = _scores(mlp, unseen_rows.embeddings, unseen_rows.owner, len(unseen))
    thresholds = metrics.thresholds(scores[toxic == 0])
    balanced = thresholds[OperatingPoint.BALANCED]

    # 3) Measure beside what is simpler, trained on the same rows.
    words = BagOfWords([row.text for row in rows], train_rows.toxic.astype(np.float64))
    first = model.firsts([row.text for row in rows])
    muli = Muli(first, train_rows.toxic.astype(np.float64), model.head, seed)
    harmless = [row.text for row in unseen if row.on_input == 0]
    limits = {
        "bag of words": _balanced(words.score(harmless)),
        "MULI": _balanced(muli.score(model.firsts(harmless))),
    }
    found: dict[str, Any] = {}
    for name, (texts, labels) in other_sets(data).items():
        windows, states = model.windows(texts, ends=False)
        ours = _scores(mlp, states, windows.owner, len(texts))
        found[name] = {
            "ToxicDetector": figures(labels, ours, balanced),
            "MULI": figures(labels, muli.score(model.firsts(texts)), limits["MULI"]),
            "bag of words": figures(labels, words.score(texts), limits["bag of words"]),
        }
        print(name, found[name], flush=True)
    facts = {
        "rows": len(rows),
        "toxic_rows": int(train_rows.toxic.sum()),
        "unseen": figures(toxic, scores, balanced),
        "calibration_error": metrics.expected_calibration_error(toxic, scores),
        "sets": found,
    }
    used = Counter(row.source for row in rows)
    card = {
        "name": NAME,
        "revision": file_sha256(out / WEIGHTS)[:12],
        "licence": "Apache-2.0",
        "method": "ToxicDetector (arXiv 2408.11727)",
        "language_model": {"name": MODEL_NAME, "sha256": SOURCE_SHA256},
        "stages": [Stage.INPUT.value],
        "categories": [category.value for category in CATEGORIES],
        "window": WINDOW,
        "overlap": OVERLAP,
        "thresholds": {
            Stage.INPUT.value: {point.value: value for point, value in thresholds.items()}
        },
        "training": {
            "seed": seed,
            "licences": licences,
            "shape": asdict(SHAPE),
            "recipe": asdict(RECIPE),
            "rows": len(rows),
            "calibration_rows": len(unseen),
            "concepts": len(concepts.states),
            "overlap_with_test_and_dev_removed": sum(corpus.overlap_removed.values()),
        },
        "sources": [
            {**asdict(source), "rows": used[source.name]}
            for source in corpus.sources
            if used[source.name]
        ],
        "metrics": facts,
    }
    write_card(out, card, (WEIGHTS, BANK))
    return facts


def _balanced(harmless: Scores) -> float:
    return metrics.thresholds(harmless)[OperatingPoint.BALANCED]


def _scores(
    mlp: StatesMlp, states: NDArray[np.float16], owner: NDArray[np.int64], texts: int
) -> Scores:
    """The probability of toxic: of a text's worst window, and of its likeliest category."""
    best = np.zeros(texts)
    for row, text in zip(states, owner, strict=True):
        best[text] = max(best[text], float(mlp.scores(row.astype(np.float32)).max()))
    return best


def _rows(rows: Sequence[Sample], model: LanguageModel) -> Rows:
    windows, states = model.windows([row.text for row in rows], ends=True)
    kinds = np.zeros((len(rows), len(CATEGORIES)), np.float32)
    for index, row in enumerate(rows):
        for category in row.categories if row.on_input else ():
            kinds[index, CATEGORIES.index(category)] = 1 / len(row.categories)
    toxic = np.asarray([row.on_input for row in rows], np.float32)
    return Rows(states, windows.owner, toxic, kinds)


def _concepts(out: Path, model: LanguageModel, scenarios: int | None = None) -> Concepts:
    bank = list(load_bank(out / BANK, sentence_vectors).values())[:scenarios]
    sentences = [sentence for group in bank for sentence in group]
    return Concepts(model.firsts(sentences), [len(group) for group in bank])


def _note(out: Path, part: str, facts: dict[str, Any]) -> None:
    path = out / METRICS
    noted = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    noted[part] = facts
    path.write_text(json.dumps(noted, indent=2) + "\n", "utf-8")
    (out / TABLES).write_text("# Figures of toxic_detector\n\n" + tables(noted), "utf-8")
    print(json.dumps({part: facts}, indent=2))
