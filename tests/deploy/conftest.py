from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def rules() -> list[dict[str, Any]]:
    """Every recording and alerting rule."""
    document = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text("utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.fixture(scope="session")
def dashboards() -> dict[str, dict[str, Any]]:
    folder = ROOT / "deploy/grafana/dashboards"
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*"))}


@pytest.fixture(scope="session")
def promtool() -> str:
    path = shutil.which("promtool")
    assert path, "promtool is missing: apt-get install prometheus, or deselect -m 'not prometheus'"
    return path
