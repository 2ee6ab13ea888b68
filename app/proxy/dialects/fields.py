"""The text fields of a JSON document: found by a walk, named by path, rewritten in place.

Knows no wire format: a dialect says what its keys mean. A string under a key that nobody knows is
scanned like any other text, so that no field slips past.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from app.domain.conversation import Part, PartKind
from app.domain.detection import Detection
from app.domain.redaction import redact

_MAX_DEPTH: Final = 64
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][\w$-]{0,63}", re.ASCII)
_PLAIN_VALUE: Final = re.compile(r"[\w.:/+-]{0,64}", re.ASCII)
_ENCODED_KEYS: Final = frozenset({"data", "file_data", "b64_json"})


class TooDeep(ValueError):
    """The document is nested deeper than any chat is."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the keys of a dialect mean.

    `kinds` holds for everything under its key, unless a key further down says otherwise. `media`
    are keys of what has no text. The value of a `metadata` key is left out if it is one short word.
    """

    kinds: Mapping[str, PartKind] = field(default_factory=dict)
    media: frozenset[str] = frozenset()
    metadata: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where one string stands: `container[key]`."""

    container: Any
    key: str | int

    @property
    def text(self) -> str:
        """What stands there now."""
        text: str = self.container[self.key]
        return text


class Fields:
    """Text fields by path, in order of appearance.

    Args:
        rules: What the keys mean.
        streamed: The documents are deltas. Items of lists are known by the `index` they carry, and
            strings at the same path are pieces of one text.
    """

    def __init__(self, rules: Rules, *, streamed: bool = False) -> None:
        self._rules = rules
        self._streamed = streamed
        self._slots: dict[str, list[_Slot]] = {}
        self._kinds: dict[str, PartKind] = {}
        self._media: dict[str, None] = {}

    @property
    def chars(self) -> int:
        """Length of all texts."""
        return sum(len(slot.text) for slots in self._slots.values() for slot in slots)

    def add(self, container: Any, key: str | int, path: str, kind: PartKind) -> None:
        """Take in `container[key]`, which stands at `path`, and everything below it.

        Raises:
            TooDeep: It is nested too deeply.
        """
        self._add(container, key, path, kind, _MAX_DEPTH)

    def parts(self) -> tuple[Part, ...]:
        """What is to be judged."""
        texts = (
            Part(path, "".join(slot.text for slot in slots), self._kinds[path])
            for path, slots in self._slots.items()
        )
        return (*texts, *(Part(path, "", PartKind.MEDIA) for path in self._media))

    def rewrite(self, detections: Iterable[Detection]) -> None:
        """Redact in place what was found here; detections with other paths are left alone."""
        by_path: dict[str, list[Detection]] = {}
        for detection in detections:
            by_path.setdefault(detection.path, []).append(detection)
        for path, found in by_path.items():
            if path not in self._slots:
                continue
            first, *rest = self._slots[path]
            text = redact("".join(slot.text for slot in (first, *rest)), found)
            first.container[first.key] = text
            for slot in rest:
                slot.container[slot.key] = ""

    def _add(self, container: Any, key: str | int, path: str, kind: PartKind, depth: int) -> None:
        if not depth:
            raise TooDeep("nested too deeply")
        value = container[key]
        if kind is not PartKind.TOOL_DEFINITION and isinstance(key, str) and value:
            if key in self._rules.media:
                self._media[path] = None
                kind = PartKind.MEDIA
            kind = self._rules.kinds.get(key, kind)
        if not isinstance(value, str):
            for name, step in children(value, streamed=self._streamed):
                self._add(value, name, path + step, kind, depth - 1)
        elif value and not self._skipped(key, value, kind):
            # Of media, the encoded bytes are skipped; what is left, such as a file's name, is text.
            self._kinds.setdefault(path, PartKind.OTHER if kind is PartKind.MEDIA else kind)
            self._slots.setdefault(path, []).append(_Slot(container, key))

    def _skipped(self, key: str | int, value: str, kind: PartKind) -> bool:
        if kind is PartKind.MEDIA and (key in _ENCODED_KEYS or value.startswith("data:")):
            return True
        return key in self._rules.metadata and _PLAIN_VALUE.fullmatch(value) is not None


def is_plain(key: str) -> bool:
    """Whether a key is a name. Others may be somebody's text."""
    return _PLAIN_KEY.fullmatch(key) is not None


def children(value: Any, *, streamed: bool = False) -> Iterator[tuple[str | int, str]]:
    """Keys of a JSON value with their step in a path."""
    if isinstance(value, dict):
        for position, key in enumerate(value):
            # A path travels into error messages, where a key that is text must not go.
            yield key, f".{key}" if is_plain(key) else f".{{{position}}}"
    elif isinstance(value, list):
        for position, item in enumerate(value):
            index = item.get("index") if streamed and isinstance(item, dict) else None
            yield position, f"[{index if type(index) is int else position}]"
