"""The readings of a text that detectors judge: as it looks, and as it may have been disguised.

Knows nothing about detectors. Spans found in any reading lead back to the original text.
"""

from __future__ import annotations

from app.domain.normalization.decode import encoded
from app.domain.normalization.leet import leet
from app.domain.normalization.plain import plain
from app.domain.normalization.rot13 import rot13
from app.domain.normalization.spaced import spaced
from app.domain.normalization.view import View, ViewName, rewrite

__all__ = ["View", "ViewName", "normalize"]


def normalize(text: str) -> tuple[View, ...]:
    """The plain view, then each other view in which the text says something else.

    Names are unique within the result. The work grows linearly with the length of `text`, whatever
    stands in it.
    """
    first = plain(text)
    views = [first]
    for name, find in ((ViewName.LEET, leet), (ViewName.SPACED, spaced)):
        view = rewrite(views[-1], find(views[-1].text), name)
        if view is not views[-1]:
            views.append(view)
    views += encoded(first)
    turned = rewrite(first, rot13(first.text), ViewName.ROT13)
    return (*views, turned) if turned is not first else tuple(views)
