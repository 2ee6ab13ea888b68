from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.domain.errors import SluicewayError
from app.labels import LABEL_VALUES
from app.metrics import catalogue
from docs import generate

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", list(generate.pages()), ids=lambda path: path.name)
def test_the_pages_are_current(path: Path) -> None:
    assert path.read_text("utf-8") == generate.pages()[path], "run `make docs`"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generator works on a folder of its own."""
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    return generate.main()


def test_checking_tells_of_stale_pages_and_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--check") == 1
    assert list(copy.iterdir()) == []
    assert run(monkeypatch) == 0
    assert run(monkeypatch, "--check") == 0
    page = copy / "errors.md"
    page.write_text(page.read_text("utf-8") + "by hand\n", "utf-8")
    capsys.readouterr()
    assert run(monkeypatch, "--check") == 1
    assert capsys.readouterr().out == "stale: errors.md\n"
    assert page.read_text("utf-8").endswith("by hand\n")
    assert run(monkeypatch) == 0
    assert run(monkeypatch, "--check") == 0


def test_every_setting_is_listed_and_no_machine_is_named() -> None:
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    for group, info in Settings.model_fields.items():
        for name in info.annotation.model_fields:
            assert f"`SLUICEWAY_{group}__{name}`".upper() in page.upper()
    assert str(ROOT) not in page
    assert str(Path.home()) + "/" not in page


def test_settings_of_the_environment_do_not_change_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = generate.pages()
    monkeypatch.setenv("SLUICEWAY_SERVER__PORT", "1")
    monkeypatch.setenv("SLUICEWAY_MODELS__FOLDER", "elsewhere")
    assert generate.pages() == before


def test_every_metric_and_every_label_value_is_listed() -> None:
    page = (ROOT / "docs/metrics.md").read_text("utf-8")
    for entry in catalogue():
        assert f"| `{entry.name}` | {entry.type} |" in page
        for label in entry.labels:
            assert all(f"`{value}`" in page for value in LABEL_VALUES.get(label, ()))


def test_every_class_of_error_is_listed_wherever_it_is_declared() -> None:
    """Read from the sources, so that an error of a module nobody imports here is seen as well."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in (ROOT / "app").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    ours = {SluicewayError.__name__}
    while more := {name for name, parents in bases.items() if parents & ours} - ours:
        ours |= more
    assert {kind.__name__ for kind in generate.error_classes()} == ours


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in generate.error_classes()]
    assert len(set(codes)) == len(codes)


def test_decisions_are_short_numbered_and_complete() -> None:
    pages = sorted((ROOT / "docs/adr").glob("*.md"))
    assert len(pages) >= 6
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text("utf-8")
        assert len(text.splitlines()) <= 40
        headings = [line for line in text.splitlines() if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequences"]
