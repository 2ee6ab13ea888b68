"""A model on disk: reads `models/<name>/card.json` and checks every file that it names.

Knows nothing about runtimes: it answers where the files are and what their scores mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError, ModelCorrupt, ModelMissing

CARD: Final = "card.json"

_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceLicence:
    """One data set that a model was trained on."""

    name: str
    licence: str
    open_licence: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Artefact:
    """A checked model folder.

    A row of scores holds `categories` for the first of `stages`, then for the next one. `window`
    and `overlap` are counted in tokens, special tokens left out.
    """

    name: str
    revision: str
    licence: str
    folder: Path
    digest: str
    stages: tuple[Stage, ...]
    categories: tuple[Category, ...]
    window: int
    overlap: int
    thresholds: Mapping[Stage, Mapping[OperatingPoint, float]]
    files: Mapping[str, str]
    sources: tuple[SourceLicence, ...]
    metrics: Mapping[str, Any]

    @property
    def outputs(self) -> int:
        """How many scores a row has."""
        return len(self.stages) * len(self.categories)

    def path(self, name: str) -> Path:
        """Where a file of the card is.

        Raises:
            ConfigurationError: The card does not name it.
        """
        if name not in self.files:
            raise ConfigurationError(f"{self.folder / CARD} names no file {name}")
        return self.folder / name

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        """The score from which `category` counts as found; above 1 for what it cannot find."""
        if stage not in self.stages or category not in self.categories:
            return 2.0
        return self.thresholds[stage][point]


def load_artefact(folder: Path) -> Artefact:
    """Read the card in `folder` and check the sha256 of every file.

    Raises:
        ModelMissing: The card or a file is not there.
        ModelCorrupt: A file differs from what the card says.
        ConfigurationError: The card cannot be read.
    """
    remedy = f"run `sluiceway train {folder.name} --data DIR`, or restore it from the repository"
    try:
        content = (folder / CARD).read_bytes()
    except FileNotFoundError as exc:
        raise ModelMissing(f"no model in {folder}: {remedy}") from exc
    try:
        # The card holds the hash of every file: its own hash stands for all of them.
        artefact = _read_card(json.loads(content), folder, hashlib.sha256(content).hexdigest())
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{folder / CARD} is not a model card: {exc!r}") from exc
    for name, expected in artefact.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelMissing(f"{path} is missing: {remedy}")
        if file_sha256(path) != expected:
            raise ModelCorrupt(f"{path} is not the file that its card describes: {remedy}")
    return artefact


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_card(card: dict[str, Any], folder: Path, digest: str) -> Artefact:
    files: dict[str, str] = dict(card["files"])
    for name in files:
        if Path(name).name != name:
            raise ValueError(f"a file outside of the folder: {name}")
    stages = tuple(Stage(stage) for stage in card["stages"])
    return Artefact(
        name=card["name"],
        revision=card["revision"],
        licence=card["licence"],
        folder=folder,
        digest=digest,
        stages=stages,
        categories=tuple(Category(category) for category in card["categories"]),
        window=int(card["window"]),
        overlap=int(card["overlap"]),
        thresholds={
            stage: {point: float(card["thresholds"][stage][point]) for point in OperatingPoint}
            for stage in stages
        },
        files=files,
        sources=tuple(SourceLicence(**source) for source in card["sources"]),
        metrics=card["metrics"],
    )
