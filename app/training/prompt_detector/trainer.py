"""Trains and exports the toxic prompt detector: the work behind `sluiceway train prompt-detector`.

Knows nothing about serving. The method is ToxicDetector's (arXiv 2408.11727) on a sentence encoder.
The seed is fixed, yet two full runs were seen to agree only roughly; the cause is not known.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError
from app.inference.artefact import file_sha256
from app.inference.backend import Backend
from app.inference.onnx_backend import OnnxBackend
from app.inference.tokenizer import TextTokenizer
from app.training import metrics
from app.training.corpus.composites import composite_samples
from app.training.corpus.datasets import Corpus, Licences, Sample, labels_of, load_corpus
from app.training.corpus.templates import SOURCE, template_samples
from app.training.export import quantise, write_card
from app.training.outputs import CATEGORIES, STAGES
from app.training.prompt_detector.embeddings import (
    PACKAGE,
    EmbeddingCache,
    encoder_files,
    load_encoder,
)
from app.training.prompt_detector.fitting import (
    OVERLAP,
    WINDOW,
    calibrate,
    concept_embeddings,
    features_of,
    fit,
)
from app.training.prompt_detector.graph import export_graph
from app.training.prompt_detector.network import Calibrated, Shape
from app.training.prompt_detector.tokenizer_build import build_tokenizer
from app.training.scoring import score_texts, stage_scores

NAME: Final = "prompt-detector"
DETECTOR: Final = "prompt_detector"
"""What policies and metrics call it."""

BANK: Final = "concepts.yaml"
SHAPE: Final = Shape()
COMPOSITES: Final = 5000
TEMPLATE_REPEATS: Final = 4
"""The project's own samples are few beside the data sets, and each stands for many."""
EPOCHS: Final = 8

ROLE_OF: Final = {Stage.INPUT: "prompt", Stage.OUTPUT: "response"}
"""Whose harmless rows set the thresholds of a stage. Comments are left out: the harmless half of
those sets was collected for being nearly hateful."""

_INT8_COST: Final = 0.005
"""Int8 ships when it costs less AUPRC than this on the dev sets, at either stage."""


def train(
    data: Path,
    out: Path,
    *,
    licences: Licences = "all",
    cache: Path = Path("cache"),
    seed: int = 7,
) -> None:
    """Train on `data/train`, calibrate on `data/dev` and held-out rows, write a model to `out`.

    `out` must hold the concept bank. Embeddings are kept in `cache`: a run that was stopped goes on
    where it was.

    Raises:
        ConfigurationError: The data or the concept bank is not there.
        ModelMissing: The package of the encoder is not installed.
    """
    if not (out / BANK).is_file():
        raise ConfigurationError(f"{out} holds no {BANK}: copy the one of models/{NAME} there")
    encoder = encoder_files()
    work = cache / NAME
    build_tokenizer(encoder.tokenizer, work / "tokenizer.json")
    tokenizer = TextTokenizer(work / "tokenizer.json")

    # 1) Data.
    corpus = load_corpus(data, licences=licences, seed=seed, extra=template_samples())
    print(corpus.summary)
    kept = EmbeddingCache(cache / "embeddings")
    composites = composite_samples(corpus.train, count=COMPOSITES, seed=seed)
    own = [sample for sample in corpus.train if sample.source == SOURCE]
    rows = [*corpus.train, *composites, *own * (TEMPLATE_REPEATS - 1)]
    dev, held_out, train_rows = (
        features_of(part, tokenizer, kept) for part in (corpus.dev, corpus.held_out, rows)
    )
    concepts = concept_embeddings(out / BANK, tokenizer, kept)

    # 2) Fit and calibrate.
    network = fit(train_rows, concepts, shape=SHAPE, seed=seed, epochs=EPOCHS)
    calibrated = calibrate(network, (dev, held_out))

    # 3) Export, and take int8 when it is nearly as good.
    model, precision = _export(calibrated, work, corpus.dev)
    backend = OnnxBackend(model, work / "tokenizer.json", max_tokens=WINDOW, device="cpu")
    facts = _measure(backend, corpus)
    facts["precision"] = precision

    # 4) Install.
    shutil.copyfile(model, out / "model.onnx")
    shutil.copyfile(work / "tokenizer.json", out / "tokenizer.json")
    card = {
        "name": DETECTOR,
        "revision": file_sha256(out / "model.onnx")[:12],
        "licence": "Apache-2.0",
        "method": "ToxicDetector (arXiv 2408.11727) on a frozen sentence encoder",
        "encoder": {"package": f"{PACKAGE} 0.1.0", "model": "all-MiniLM-L6-v2, Apache-2.0"},
        "stages": [stage.value for stage in STAGES],
        "categories": [category.value for category in CATEGORIES],
        "window": WINDOW,
        "overlap": OVERLAP,
        "thresholds": facts.pop("thresholds"),
        "training": {
            "seed": seed,
            "licences": licences,
            "epochs": EPOCHS,
            "shape": asdict(SHAPE),
            "rows": len(corpus.train),
            "composites": len(composites),
            "template_repeats": TEMPLATE_REPEATS,
            "held_out_rows": len(corpus.held_out),
            "dev_rows": len(corpus.dev),
            "concepts": len(concepts),
            "overlap_with_test_and_dev_removed": sum(corpus.overlap_removed.values()),
        },
        "sources": [asdict(source) for source in corpus.sources],
        "metrics": facts,
    }
    write_card(out, card, ("model.onnx", "tokenizer.json", BANK))
    (out / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"thresholds": card["thresholds"], "metrics": facts}, indent=2))


def _export(
    calibrated: Calibrated, work: Path, dev: Sequence[Sample]
) -> tuple[Path, dict[str, Any]]:
    full, small = work / "model.fp32.onnx", work / "model.int8.onnx"
    export_graph(load_encoder(encoder_files()), calibrated, full)
    quantise(full, small)
    found = {}
    for path in (full, small):
        backend = OnnxBackend(path, work / "tokenizer.json", max_tokens=WINDOW, device="cpu")
        found[path] = _dev_auprc(backend, dev)
    cost = {stage: round(found[full][stage] - found[small][stage], 4) for stage in found[full]}
    chosen = small if max(cost.values()) < _INT8_COST else full
    print(f"AUPRC on dev: fp32 {found[full]}, int8 {found[small]}; ships {chosen.name}")
    return chosen, {
        "shipped": "int8" if chosen == small else "fp32",
        "dev_auprc_fp32": found[full],
        "dev_auprc_int8": found[small],
        "int8_cost": cost,
    }


def _dev_auprc(backend: Backend, dev: Sequence[Sample]) -> dict[str, float]:
    scores = score_texts(backend, [row.text for row in dev], window=WINDOW, overlap=OVERLAP)
    found = {}
    for stage in STAGES:
        labels = labels_of(dev, stage)
        known = ~np.isnan(labels)
        ranked = metrics.ranking(labels[known], stage_scores(scores, stage)[known])
        found[stage.value] = ranked["auprc"] or 0.0
    return found


def _measure(backend: Backend, corpus: Corpus) -> dict[str, Any]:
    """Thresholds and figures of the graph that ships, on dev and held-out rows."""
    samples = [*corpus.dev, *corpus.held_out]
    scores = score_texts(backend, [row.text for row in samples], window=WINDOW, overlap=OVERLAP)
    from_dev = np.arange(len(samples)) < len(corpus.dev)
    roles = np.asarray([row.role for row in samples])
    found: dict[str, Any] = {"thresholds": {}, "dev": {}, "held_out": {}, "calibration_error": {}}
    for stage in STAGES:
        labels, probability = labels_of(samples, stage), stage_scores(scores, stage)
        known = ~np.isnan(labels) & (roles == ROLE_OF[stage])
        points = metrics.thresholds(probability[known & (labels == 0)])
        found["thresholds"][stage.value] = {point.value: points[point] for point in OperatingPoint}
        for name, rows in (("dev", known & from_dev), ("held_out", known & ~from_dev)):
            found[name][stage.value] = {
                "rows": int(rows.sum()),
                **metrics.ranking(labels[rows], probability[rows]),
                **metrics.at_threshold(
                    labels[rows], probability[rows], points[OperatingPoint.BALANCED]
                ),
            }
        found["calibration_error"][stage.value] = metrics.expected_calibration_error(
            labels[known], probability[known]
        )
    return found
