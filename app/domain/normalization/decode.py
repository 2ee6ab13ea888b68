"""Encoded spans: base64, hex, and escapes (percent-encoding, HTML entities, backslash codes).

Knows nothing about compression: each decoding here makes a text shorter, so that nested ones cost
at most their depth times the length.
"""

from __future__ import annotations

import base64
import html
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote_plus

from app.domain.normalization.leet import leet
from app.domain.normalization.plain import plain
from app.domain.normalization.view import Edit, View, ViewName, rewrite

_DEPTH: Final = 3
_PRINTABLE: Final = 0.9
_LETTERS: Final = 0.2  # not more: what was decoded may be hex in its turn
_FEWEST_BYTES: Final = 6  # what is shorter says too little to tell a text from chance

_BASE64: Final = re.compile(
    r"[A-Za-z0-9+/_-]{16,}(?:\r?\n[ \t]*[A-Za-z0-9+/_-]{16,})*"
    r"(?:\r?\n[ \t]*[A-Za-z0-9+/_-]{2,15}(?==|[ \t\r]*(?:\n|\Z)))?"
)
_BASE64_LINE: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_BASE64_DIGITS: Final = f"{string.ascii_letters}{string.digits}+/_-".encode()
_BASE64_SHAPE: Final = bytes(b"x"[0] if code in _BASE64_DIGITS else 0 for code in range(256))
_STANDARD: Final = str.maketrans("-_", "+/", "\r\n \t")
_PADDING: Final = re.compile(r"={1,2}")

_HEX: Final = re.compile(
    r"(?<![^\W_])(?:0x)?(?:[0-9a-fA-F]{2}){8,}"
    r"|(?<![^\W_])(?:0x)?[0-9a-fA-F]{2}([\s:,;-]{1,2})(?:0x)?[0-9a-fA-F]{2}"
    r"(?:\1(?:0x)?[0-9a-fA-F]{2}(?![^\W_])){6,}"
    r"|(?:\\x[0-9a-fA-F]{2}[ ,]?){3,}"
)
_HEX_SHAPE: Final = bytes(
    b"h"[0] if code in string.hexdigits.encode() else b" "[0] for code in range(256)
)
_HEX_RUNS: Final = (b"h" * 16, b"hh hh hh", b"hh  hh  hh")
_NOT_HEX: Final = re.compile(r"0x|\\x|[^0-9a-fA-F]+")

_PERCENT: Final = re.compile(r"%[0-9a-fA-F]{2}")
_ENTITY: Final = re.compile(r"&#(?:[0-9]{1,7}|[xX][0-9a-fA-F]{1,6});?")
_BACKSLASH: Final = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?|\\U([0-9a-fA-F]{8})")
_FEWEST_ESCAPES: Final = 3


def encoded(view: View) -> Iterator[View]:
    """One view for each kind of encoding that occurs: the decoded pieces, and nothing around them.

    The text around a span is in the plain view already; here it would only thin out what was
    hidden. The parts between two pieces become one space. Pieces are normalised themselves.
    """
    for name, find in _KINDS.items():
        pieces = [
            (start, end, _settled(decoded, _DEPTH - 1)) for start, end, decoded in find(view.text)
        ]
        if pieces:
            yield rewrite(view, _only(pieces, len(view.text)), name)


def _only(pieces: list[Edit], length: int) -> Iterator[Edit]:
    """Edits that keep the pieces and drop the rest."""
    done = 0
    for start, end, decoded in pieces:
        if done < start:
            yield done, start, " " if done else ""
        yield start, end, decoded
        done = end
    if done < length:
        yield done, length, ""


def _settled(text: str, depth: int) -> str:
    """Read a decoded text as any other: plain, encoded spans inside it replaced, leetspeak."""
    view = plain(text)
    if depth:
        for find in _KINDS.values():
            inner = [
                (start, end, _settled(decoded, depth - 1))
                for start, end, decoded in find(view.text)
            ]
            if inner:
                view = rewrite(view, inner)
                break
    return rewrite(view, leet(view.text)).text


def _text_of(data: bytes) -> str | None:
    """The text that `data` is in UTF-8, if it looks like one that people write."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    if len(text) < _FEWEST_BYTES or broken > len(text) * (1 - _PRINTABLE):
        return None
    readable = sum(map(str.isprintable, text)) + text.count("\n") + text.count("\t") - broken
    letters = sum(map(str.isalpha, text))
    return text if min(readable / _PRINTABLE, letters / _LETTERS) >= len(text) else None


def _base64(text: str) -> Iterator[Edit]:
    if b"x" * 16 not in text.encode("ascii", "replace").translate(_BASE64_SHAPE):
        return
    for match in _BASE64.finditer(text):
        # Lines are one span if they decode as one; if not, some may be no base64 at all.
        lines = _BASE64_LINE.finditer(text, *match.span())
        for span in [match] if _from_base64(match[0]) else lines:
            padding = _PADDING.match(text, span.end())
            if decoded := _from_base64(span[0]):
                yield span.start(), padding.end() if padding else span.end(), decoded


def _from_base64(run: str) -> str | None:
    """Decode at each of the four alignments: the run may begin with letters glued to it."""
    digits = run.translate(_STANDARD)
    for skip in range(4):
        usable = (len(digits) - skip) // 4 * 4
        rest = digits[skip + usable :]
        padded = digits[skip:] + "=" * (4 - len(rest)) if len(rest) > 1 else digits[skip:][:usable]
        decoded = _text_of(base64.b64decode(padded))
        if decoded is not None:
            return decoded
    return None


def _hex(text: str) -> Iterator[Edit]:
    if "\\x" not in text and "0x" not in text:
        shape = text.encode("ascii", "replace").translate(_HEX_SHAPE)
        if not any(run in shape for run in _HEX_RUNS):
            return
    for match in _HEX.finditer(text):
        digits = _NOT_HEX.sub("", match[0])
        decoded = _text_of(bytes.fromhex(digits))
        if decoded is not None:
            yield match.start(), match.start() + len(match[0].rstrip(" ,")), decoded


def _escaped(text: str) -> Iterator[Edit]:
    percent = text.count("%") >= _FEWEST_ESCAPES
    entities = text.count("&#") >= _FEWEST_ESCAPES and _hides_letters(text)
    backslash = len(_BACKSLASH.findall(text)) >= _FEWEST_ESCAPES
    if not (percent or entities or backslash):
        return
    for chunk in re.finditer(r"\S+", text):
        decoded = chunk[0]
        if percent and len(_PERCENT.findall(decoded)) >= _FEWEST_ESCAPES:
            decoded = unquote_plus(decoded)
        if entities:
            decoded = _ENTITY.sub(lambda match: html.unescape(match[0]), decoded)
        if backslash:
            decoded = _BACKSLASH.sub(_code_point, decoded)
        if decoded != chunk[0] and any(map(str.isalpha, decoded)):
            yield *chunk.span(), decoded


def _hides_letters(text: str) -> bool:
    """Quotes and emoji are written as entities for innocent reasons."""
    letters = [entity for entity in _ENTITY.findall(text) if html.unescape(entity).isalnum()]
    return len(letters) >= _FEWEST_ESCAPES


def _code_point(match: re.Match[str]) -> str:
    code = int(match[1] or match[2], 16)
    return chr(code) if code <= sys.maxunicode else match[0]


_KINDS: Final[Mapping[ViewName, Callable[[str], Iterator[Edit]]]] = MappingProxyType(
    {ViewName.HEX: _hex, ViewName.BASE64: _base64, ViewName.ESCAPED: _escaped}
)
