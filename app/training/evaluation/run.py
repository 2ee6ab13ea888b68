"""Measures the shipped detector on the test sets beside the TF-IDF floor: `sluiceway eval`.

Knows nothing about training the detector. Long texts are read in the same windows as in service.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError
from app.inference.artefact import Artefact, load_artefact
from app.inference.backend import Backend
from app.inference.onnx_backend import OnnxBackend
from app.training import metrics
from app.training.corpus.datasets import Licences, Sample, labels_of, load_corpus, read_rows
from app.training.corpus.templates import template_samples
from app.training.evaluation.floor import Floor
from app.training.prompt_detector.trainer import NAME, ROLE_OF
from app.training.scoring import score_texts, stage_scores

_SEED: Final = 7
_STAGE_OF: Final = {"prompt": Stage.INPUT, "comment": Stage.INPUT, "response": Stage.OUTPUT}


@dataclass(frozen=True, slots=True)
class TestSet:
    """Rows of one file with one role, and how many there were before the limit."""

    name: str
    role: str
    rows: list[dict[str, Any]]
    of_rows: int


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that scores texts, and its balanced threshold for each stage."""

    score: Callable[[Sequence[str], Stage], metrics.Scores]
    balanced: Mapping[Stage, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One test set: figures of the detector and of the floor at their balanced thresholds."""

    name: str
    role: str
    stage: str
    rows: int
    of_rows: int
    unsafe: int
    detector: dict[str, float | None]
    floor: dict[str, float | None]


def run(
    data: Path,
    *,
    models: Path = Path("models"),
    limit: int | None = None,
    out: Path | None = None,
    roles: Sequence[str] = ("prompt", "comment", "response"),
    threads: int = 1,
) -> list[Result]:
    """Print a table with every test set; write it to `out` as JSON too.

    Args:
        data: The folder with `train`, `dev` and `test`; the floor trains on the first two.
        models: The folder of the models.
        limit: Rows per set at most, drawn with a fixed seed; all of them by default.
        out: Where the JSON goes.
        roles: Which kinds of sets are measured.
        threads: Threads of ONNX Runtime.
    """
    began = time.perf_counter()
    artefact = load_artefact(models / NAME)
    backend = OnnxBackend(
        artefact.path("model.onnx"),
        artefact.path("tokenizer.json"),
        max_tokens=artefact.window,
        intra_op_threads=threads,
    )
    contestants = (_detector(artefact, backend), _floor(data, artefact))
    print(f"floor trained in {time.perf_counter() - began:.0f} s")
    print(HEADER)
    results = []
    for test in _sets(data, limit, roles):
        results.append(_measured(test, *contestants))
        print(line_of(results[-1]), flush=True)
    print(f"{len(results)} sets in {time.perf_counter() - began:.0f} s")
    if out is not None:
        found = {"revision": artefact.revision, "results": [asdict(each) for each in results]}
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return results


HEADER: Final = (
    "| set | rows | unsafe | AUROC | floor | AUPRC | floor | F1 | floor | recall | floor"
    " | FPR | floor |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line_of(result: Result) -> str:
    """One set as a row of the table; a figure that the set cannot give is left empty."""
    rows = str(result.rows)
    if result.rows < result.of_rows:
        rows += f" of {result.of_rows}"
    cells = [f"{result.name} ({result.role})", rows, str(result.unsafe)]
    for figure in ("auroc", "auprc", "f1", "recall", "fpr"):
        for model in (result.detector, result.floor):
            value = model[figure]
            cells.append("" if value is None else f"{value:.3f}")
    return "| " + " | ".join(cells) + " |"


def _detector(artefact: Artefact, backend: Backend) -> Contestant:
    def score(texts: Sequence[str], stage: Stage) -> metrics.Scores:
        rows = score_texts(backend, texts, window=artefact.window, overlap=artefact.overlap)
        return stage_scores(rows, stage)

    balanced = {stage: artefact.thresholds[stage][OperatingPoint.BALANCED] for stage in Stage}
    return Contestant(score, balanced)


def _floor(data: Path, artefact: Artefact) -> Contestant:
    """The floor on the detector's training rows, its thresholds set as the detector's are."""
    open_only = all(source.open_licence for source in artefact.sources)
    licences: Licences = "open" if open_only else "all"
    corpus = load_corpus(data, licences=licences, seed=_SEED, extra=template_samples())
    floor = Floor(corpus.train, seed=_SEED)
    balanced = {}
    for stage in Stage:
        harmless = _harmless([*corpus.dev, *corpus.held_out], stage)
        points = metrics.thresholds(floor.score(harmless, stage))
        balanced[stage] = points[OperatingPoint.BALANCED]
    return Contestant(floor.score, balanced)


def _harmless(samples: Sequence[Sample], stage: Stage) -> list[str]:
    safe = labels_of(samples, stage) == 0
    return [
        sample.text
        for sample, is_safe in zip(samples, safe, strict=True)
        if is_safe and sample.role == ROLE_OF[stage]
    ]


def _sets(data: Path, limit: int | None, roles: Sequence[str]) -> Iterator[TestSet]:
    paths = sorted((data / "test").glob("*.jsonl.gz"))
    if not paths:
        raise ConfigurationError(f"no test sets in {data / 'test'}")
    for role in roles:
        for path in paths:
            rows = [row for row in read_rows(path) if row["role"] == role and row["text"].strip()]
            total = len(rows)
            if limit is not None and total > limit:
                rows = random.Random(_SEED).sample(rows, limit)  # noqa: S311 - a fixed sample
            if rows:
                yield TestSet(path.name.removesuffix(".jsonl.gz"), role, rows, total)


def _measured(test: TestSet, detector: Contestant, floor: Contestant) -> Result:
    stage = _STAGE_OF[test.role]
    texts = [row["text"] for row in test.rows]
    labels = np.asarray([row["unsafe"] for row in test.rows], np.float64)
    figures = []
    for contestant in (detector, floor):
        scores = contestant.score(texts, stage)
        at_balanced = metrics.at_threshold(labels, scores, contestant.balanced[stage])
        figures.append({**metrics.ranking(labels, scores), **at_balanced})
    return Result(
        name=test.name,
        role=test.role,
        stage=stage.value,
        rows=len(labels),
        of_rows=test.of_rows,
        unsafe=int(labels.sum()),
        detector=figures[0],
        floor=figures[1],
    )
