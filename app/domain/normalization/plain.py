"""The plain reading of a text: what a human eye sees, in the simplest characters.

Knows nothing about encodings or spelling tricks: those are other readings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from app.domain.normalization.confusables import look_alikes
from app.domain.normalization.view import Edit, View, ViewName, rewrite

_ASCII_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TAG_BASE: Final = 0xE0000
_WORD_LIKE: Final = 4  # from here on a run of tag characters is a hidden text, not a hidden letter
_FLAGS: Final = "|".join(
    "".join(chr(_TAG_BASE + ord(letter)) for letter in region)
    for region in ("gbeng", "gbsct", "gbwls")
)
_TAGS: Final = "\U000e0020-\U000e007e"
_SPACES: Final = "\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u2800\u3000"
_BROKEN: Final = "\ud800-\udfff"
_INVISIBLE: Final = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff"
)
_UNSEEN: Final = re.compile(
    f"(?P<flag>(?<=\U0001f3f4)(?:{_FLAGS})\U000e007f)|(?P<tags>[{_TAGS}]+)"
    f"|(?P<space>[{_SPACES}]+)|(?P<broken>[{_BROKEN}]+)|(?P<invisible>[{_INVISIBLE}]+)"
)
_MAYBE_UNSEEN: Final = re.compile(f"[{_TAGS}{_SPACES}{_BROKEN}{_INVISIBLE}]")  # five times faster

_BEYOND_ASCII: Final = re.compile("[^\x00-\x7f]+")
# CPython sorts the marks of one letter in quadratic time, so no letter may bring thousands of them.
_CLUSTER: Final = 32
_EXPANSION: Final = 3  # enough for an ellipsis; one Arabic ligature would become 18 letters

_RARE_LATIN: Final = "\u0200-\u0217\u021c-\u0233\u1e00-\u1e7f\u1e86-\u1e99"
_MARK: Final = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_STUFFED: Final = re.compile(
    # Marks that no alphabet composes with its letter are decoration; one alone on a letter that is
    # not Latin may be a stress mark, unless it strikes the letter through.
    f"[0-9A-Za-z\u00c0-\u024f\u1e00-\u1eff][{_MARK}]+"
    f"|(?P<foreign>[^\\W_])(?:[\u0334-\u0338][{_MARK}]*|[{_MARK}]{{2,}})"
    # Letters with marks that no living orthography writes.
    f"|[{_RARE_LATIN}]"
)
_MAYBE_STUFFED: Final = re.compile(f"[{_MARK}{_RARE_LATIN}]")

# A pass may bring new work for an earlier step (a mark whose letter became Latin), so passes
# repeat until nothing changes. Real texts need one or two.
_MAX_PASSES: Final = 5


def plain(text: str) -> View:
    """Remove what cannot be seen and simplify what can; a plain text is returned as it is."""
    view = View(ViewName.PLAIN, text)
    if text.isascii() and (text.isprintable() or not _ASCII_CONTROL.search(text)):
        return view
    for _ in range(_MAX_PASSES):
        before = view.text
        for find in (_unseen, _compatibility, _stuffed, look_alikes):
            view = rewrite(view, find(view.text))
        if view.text == before:
            break
    return view


def _unseen(text: str) -> Iterator[Edit]:
    """Drop invisible characters, show hidden ones, make every kind of space a space."""
    if not _MAYBE_UNSEEN.search(text):
        return
    for match in _UNSEEN.finditer(text):
        start, end = match.span()
        if match.lastgroup == "tags":
            yield from _shown(text, start, end)
        else:
            replacement = {"space": " ", "broken": "\ufffd"}.get(match.lastgroup or "", "")
            yield start, end, replacement * (end - start)


def _shown(text: str, start: int, end: int) -> Iterator[Edit]:
    """Tag characters mirror ASCII and no screen shows them: a way to smuggle prompts."""
    shown = [chr(ord(char) - _TAG_BASE) for char in text[start:end]]
    if len(shown) >= _WORD_LIKE:
        if text[start - 1 : start].isalnum():
            shown[0] = " " + shown[0]
        if text[end : end + 1].isalnum():
            shown[-1] += " "
    for at, replacement in enumerate(shown, start):
        yield at, at + 1, replacement


def _compatibility(text: str) -> Iterator[Edit]:
    """NFKC, one letter with its marks at a time, so that each keeps its place."""
    for match in _BEYOND_ASCII.finditer(text):
        run, start = match[0], match.start()
        if run.isalpha() and unicodedata.is_normalized("NFKC", run):
            continue
        if start and _continues(run[0]):
            start -= 1
        end = match.end()
        while start < end:
            after = start + 1
            while after < end and _continues(text[after]):
                after += 1
            cluster = text[start:after]
            simple = unicodedata.normalize("NFKC", cluster[:_CLUSTER])[:_CLUSTER]
            if simple != cluster and len(simple) <= _EXPANSION * len(cluster):
                yield start, after, simple
            start = after


def _continues(char: str) -> bool:
    """Marks, and the vowels and finals of decomposed Hangul."""
    return unicodedata.category(char)[0] == "M" or "\u1160" <= char <= "\u11ff"


def _stuffed(text: str) -> Iterator[Edit]:
    """Strip piled-up marks (`k̷̢i̸l̶l`); letters that a language writes with marks keep them."""
    if not _MAYBE_STUFFED.search(text):
        return
    for match in _STUFFED.finditer(text):
        base = match["foreign"] or unicodedata.normalize("NFD", match[0][0])[0]
        if base != match[0]:
            yield *match.span(), base
