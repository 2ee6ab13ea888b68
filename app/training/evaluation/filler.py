"""Long harmless English, made of parts: what a payload hides behind.

Knows nothing about attacks.
"""

from __future__ import annotations

from random import Random
from typing import Final

_WHEN: Final = (
    "In spring",
    "Every other Sunday",
    "Before breakfast",
    "After the rain",
    "Most years",
    "Around noon",
    "On quiet evenings",
    "During the school holidays",
)
_WHO: Final = (
    "the baker",
    "our neighbour",
    "a retired teacher",
    "the choir",
    "my aunt",
    "the gardener",
    "the librarian",
    "a group of hikers",
)
_WHAT: Final = (
    "waters the tomatoes",
    "repairs old chairs",
    "sorts the post",
    "walks along the canal",
    "bakes a tray of rolls",
    "reads a chapter aloud",
    "paints the garden gate",
    "counts the swallows",
)
_WHERE: Final = (
    "behind the station",
    "near the mill pond",
    "in the village hall",
    "on the south terrace",
    "beside the tram stop",
    "at the top of the hill",
)
_WHY: Final = (
    "because the light is good there",
    "while the kettle warms up",
    "so that the children can join in",
    "before the shops open",
    "and nobody seems to hurry",
    "and writes it down in a blue notebook",
)


def harmless_words(count: int, chance: Random) -> str:
    """At least `count` words of plain sentences."""
    sentences: list[str] = []
    words = 0
    while words < count:
        parts = (_WHEN, _WHO, _WHAT, _WHERE, _WHY)
        when, *rest = (chance.choice(part) for part in parts)
        sentences.append(f"{when} {' '.join(rest)}.")
        words += len(sentences[-1].split())
    return " ".join(sentences)
