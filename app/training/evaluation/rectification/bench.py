"""Everything that measures, loaded: the models that write, those that score, and the cache.

Knows nothing about what is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch

from app.config import Settings
from app.detectors.keyword_list import load_keywords
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError
from app.generation.chatml import load_tokenizer
from app.generation.llama import Llama
from app.generation.weights import MODEL_NAME, MODEL_REVISION, prepare_weights
from app.rectification.critic_file import CARD, WEIGHTS
from app.rectification.critic_model import Critic
from app.training.critic.labels import Judge
from app.training.critic.texts import Layout
from app.training.evaluation.rectification.rollouts import Writers
from app.training.evaluation.rectification.scorers import ModeratorScorer, Scorer, independent

_CRITIC: Final = "critic"
_KEYWORDS: Final = Path("keywords", "default.yaml")


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures: the models that write, those that score, and where work is kept."""

    writers: Writers
    scorers: list[Scorer]
    card_threshold: float | None
    cache: Path


def open_bench(settings: Settings, cache: Path) -> Bench:
    """Load everything.

    Raises:
        ModelMissing: The critic or the language model is not there.
        ConfigurationError: They do not fit together, or the moderator is not there.
    """
    folder = settings.models.folder / _CRITIC
    critic = Critic.load(folder)  # first: it is what is most likely to be missing
    threads = settings.generation.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    weights = prepare_weights(settings.generation.cache)
    model = Llama.load(weights)
    if critic.shape.vocabulary != model.shape.vocabulary:
        raise ConfigurationError("the critic and the language model have different vocabularies")
    layout = Layout(load_tokenizer(weights))
    work = cache / "rectification"
    judge = Judge(settings.models.folder / "moderator", cache=work, threads=threads)
    scorers: list[Scorer] = [ModeratorScorer(judge), ModeratorScorer(judge, in_context=True)]
    if (outside := independent(work)) is not None:
        scorers.append(outside)
    words = _bad_words(settings.policies.folder / _KEYWORDS, layout)
    revisions = {
        MODEL_NAME: MODEL_REVISION,
        _CRITIC: sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12],
    }
    return Bench(
        Writers(model, critic, layout, words, revisions),
        scorers,
        _threshold(json.loads((folder / CARD).read_bytes())),
        work,
    )


def _threshold(card: Mapping[str, Any]) -> float | None:
    """Where the critic's card stops a stream; None if it does not say."""
    points = card.get("thresholds", {}).get(Stage.OUTPUT.value, {})
    value: float | None = points.get(OperatingPoint.BALANCED.value)
    return value


def _bad_words(list_of: Path, layout: Layout) -> list[list[int]]:
    """Each phrase at the beginning of a text and inside one, in small letters and as a name."""
    phrases = [keyword.phrase for keyword in load_keywords(list_of)]
    forms = {
        space + form
        for phrase in phrases
        for form in (phrase, phrase.capitalize())
        for space in ("", " ")
    }
    return [list(layout.tokens(form)) for form in sorted(forms)]
