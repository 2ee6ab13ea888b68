"""Reads a keyword list from YAML.

Knows nothing about matching. Its errors name the file and the entry, never what stands there:
an operator's blocklist may itself be confidential.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from app.detectors.keywords import Keyword, canonical
from app.domain.categories import Category
from app.domain.errors import ConfigurationError


def load_keywords(path: Path) -> tuple[Keyword, ...]:
    """The entries of one file, in order.

    Raises:
        ConfigurationError: The file cannot be read, or an entry is not what it must be.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path}: cannot be read as UTF-8 text") from exc
    except yaml.YAMLError:
        # Not chained: the parser's message quotes the lines around the error.
        raise ConfigurationError(f"{path}: is not YAML") from None
    if not isinstance(document, dict) or set(document) != {"entries"}:
        raise ConfigurationError(f"{path}: must have the one key `entries`")
    entries = document["entries"]
    if not isinstance(entries, list):
        raise ConfigurationError(f"{path}: `entries` must be a list")
    return tuple(_keyword(entry, f"{path}: entry {n}") for n, entry in enumerate(entries, start=1))


def _keyword(entry: object, place: str) -> Keyword:
    if not isinstance(entry, dict) or set(entry) != {"phrase", "category"}:
        raise ConfigurationError(f"{place}: must have the keys `phrase` and `category`")
    phrase = entry["phrase"]
    if not isinstance(phrase, str) or not canonical(phrase):
        raise ConfigurationError(f"{place}: the phrase must be a text with letters or digits")
    if entry["category"] not in tuple(Category):
        known = ", ".join(category.value for category in Category)
        raise ConfigurationError(f"{place}: the category must be one of {known}")
    return Keyword(phrase, Category(entry["category"]))
