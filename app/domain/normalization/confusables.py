"""Letters of other alphabets that look like Latin ones, and when to read them as Latin.

Knows nothing about invisible characters or compatibility forms; `plain.py` removes those first.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import confusable_homoglyphs

from app.domain.normalization.view import Edit

_LATIN: Final = (
    "A-Za-zªº\u00c0-\u02af\u1d00-\u1dbf\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f"
)
# Scripts without upper and lower case look like no Latin word, whatever one stroke looks like.
_IDEOGRAPHIC: Final = re.compile("[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff]")
_LATIN_LETTER: Final = re.compile(f"[{_LATIN}]")
_LATIN_WORD: Final = re.compile(f"[{_LATIN}\u0300-\u036f]+")
_CYRILLIC_WORD: Final = re.compile("[\u0400-\u052f\u0300-\u036f]+")
# Letters of other scripts and styled ones: without any, a line is left alone.
_DOUBTFUL: Final = re.compile(
    "[\u0131\u0138\u0250-\u1dff\u1f00-\u1fff\u2c00-\uffef\U00010000-\U0001f1ff]"
)
_WORD: Final = re.compile("(?:[^\\W\\d_]|[\u0300-\u036f])+")
_GREEK: Final = re.compile("[\u0370-\u03ff\u1f00-\u1fff]")
_STYLED_NAME: Final = re.compile(
    r"LATIN LETTER SMALL CAPITAL ([A-Z])"
    r"|NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER ([A-Z])"
    r"|REGIONAL INDICATOR SYMBOL LETTER ([A-Z])"
)
_STYLED_BLOCKS: Final = ((0x0250, 0x02B0), (0x1D00, 0x1D80), (0xA730, 0xA800), (0x1F150, 0x1F200))
# What the table of look-alikes leaves out or sees otherwise, though people use it so.
_DOTLESS_I: Final = "\u0131"
_TURKISH: Final = re.compile("[\u00e7\u00c7\u00f6\u00d6\u00fc\u00dc\u011f\u011e\u015f\u015e\u0130]")
_COUSINS_TOO: Final = {
    "\u043c": "m",
    "\u0442": "t",
    "\u043a": "k",
    "\u04bd": "e",
    "\u04cf": "l",  # palochka: the table has it as i
    "\u03c2": "c",  # lunate sigma, after its compatibility form
}
_MOSTLY: Final = 4  # a line is Latin when it has this many Latin words to one of another script


@dataclass(frozen=True, slots=True)
class Tables:
    """Look-alike to ASCII letter.

    `styled` are Latin letters in disguise, mapped wherever they stand. `twins` are foreign letters
    that no eye tells from a Latin one. `cousins` adds those like small capitals (`н` for h): too
    many to judge a whole word by, but right inside a word that mixes scripts.
    """

    styled: Mapping[str, str]
    twins: Mapping[str, str]
    cousins: Mapping[str, str]


@cache
def tables() -> Tables:
    """Built once, when the first text that is not ASCII arrives (about 40 ms)."""
    source = resources.files(confusable_homoglyphs).joinpath("confusables.json")
    entries: dict[str, list[dict[str, str]]] = json.loads(source.read_bytes())
    looks = {
        char: [twin["c"] for twin in twins] for char, twins in entries.items() if len(char) == 1
    }
    styled = _styled(looks)
    twins: dict[str, str] = {}
    cousins: dict[str, str] = {}
    for char, alike in looks.items():
        if _LATIN_LETTER.match(char) or _IDEOGRAPHIC.match(char) or not char.isalpha():
            continue
        if exact := _ascii_letters(alike):
            twins[char] = cousins[char] = exact[0]
        elif near := [styled[other] for other in alike if other in styled]:
            cousins[char] = near[0]
    return Tables(styled, twins, cousins | _COUSINS_TOO)


def _styled(looks: Mapping[str, list[str]]) -> dict[str, str]:
    """Small capitals, white-on-black and flag letters by their names; phonetic letters by looks."""
    found: dict[str, str] = {"\u0138": "k"}  # kra: the small capital K of old Greenlandic
    for char in (chr(code) for block in _STYLED_BLOCKS for code in range(*block)):
        if named := _STYLED_NAME.fullmatch(unicodedata.name(char, "")):
            letter = named[named.lastindex or 0]
            found[char] = letter.lower() if named[1] else letter
            continue
        if char.isalpha() and (exact := _ascii_letters(looks.get(char, ()))):
            found[char] = exact[0]
    return found


def _ascii_letters(alike: Iterable[str]) -> list[str]:
    return [other for other in alike if len(other) == 1 and other.isascii() and other.isalpha()]


def look_alikes(text: str) -> Iterator[Edit]:
    """Read look-alikes as Latin in words that mix scripts, and in whole words on Latin lines.

    A line in another language keeps its letters: a word made only of look-alikes (`рот`) is mapped
    only where nearly all words around it are Latin.
    """
    if text.isascii():
        return
    done = 0
    for line in text.splitlines(keepends=True):
        if not line.isascii() and _DOUBTFUL.search(line):
            for start, end, letters in _line_edits(line):
                yield done + start, done + end, letters
        done += len(line)


def _line_edits(line: str) -> Iterator[Edit]:
    table = tables()
    read = _letter_by_letter(line, table.styled)
    latin = foreign = 0
    undecided: list[tuple[int, int, str]] = []
    for match in _WORD.finditer("".join(read)):
        word = match[0]
        if _LATIN_WORD.fullmatch(word):
            latin += 1
        elif _mixes_scripts(word):
            mapped = "".join([table.cousins.get(char, char) for char in word])
            read[match.start() : match.end()] = mapped
            latin += mapped.isascii()
            foreign += not mapped.isascii()
        elif table.twins.keys() >= set(word) and not _is_symbol(word):
            undecided.append((*match.span(), "".join([table.twins[char] for char in word])))
        else:
            foreign += 1
    if latin and latin >= _MOSTLY * foreign:
        for start, end, mapped in undecided:
            read[start:end] = mapped
    for at, (old, new) in enumerate(zip(line, read, strict=True)):
        if old != new:
            yield at, at + 1, new


def _letter_by_letter(line: str, styled: Mapping[str, str]) -> list[str]:
    """Latin letters in disguise, wherever they stand; a dotless i where nothing else is Turkish."""
    if _DOTLESS_I in line and not _TURKISH.search(line):
        styled = {**styled, _DOTLESS_I: "i"}
    return [styled.get(char, char) for char in line]


def _mixes_scripts(word: str) -> bool:
    if _CYRILLIC_WORD.fullmatch(word):
        return False
    return len({_script(char) for char in word if char.isalpha()}) > 1


def _script(char: str) -> str:
    if _LATIN_LETTER.match(char):
        return "LATIN"
    return unicodedata.name(char, "").split(" ", 1)[0]


def _is_symbol(word: str) -> bool:
    """A lone Greek letter is a quantity (nu for frequency), not a Latin word."""
    return len(word) == 1 and _GREEK.match(word) is not None
