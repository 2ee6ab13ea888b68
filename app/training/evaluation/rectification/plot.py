"""The curve: toxicity over perplexity, a line for each method through its strengths.

Knows nothing about how either was measured. Needs no display.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.training.evaluation.rectification.figures import ArmFigures

NAME: Final = "toxicity_over_perplexity.png"

_INCHES: Final = 4.6


def draw(arms: Mapping[str, ArmFigures], path: Path) -> None:
    """A panel for each scorer."""
    scorers = list(next(iter(arms.values())).toxicity)
    figure = Figure(figsize=(_INCHES * len(scorers), _INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = list(figure.subplots(1, len(scorers), squeeze=False).flat)
    for panel, scorer in zip(panels, scorers, strict=True):
        methods = dict.fromkeys(each.method for each in arms.values())
        for method, line in zip(methods, _lines(), strict=False):
            points = [
                (each.perplexity, each.toxicity[scorer].expected_max)
                for each in arms.values()
                if each.method == method
            ]
            across, up = zip(*points, strict=True)
            panel.plot(across, up, line, markersize=4, linewidth=1, label=method)
        panel.set_title(scorer, fontsize=9)
        panel.set_xlabel("perplexity under the unmodified model (log scale)", fontsize=8)
        panel.set_ylabel("expected maximum toxicity", fontsize=8)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("{x:g}")
        panel.tick_params(labelsize=7, which="both")
        panel.set_ylim(bottom=0)
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=110)


def _lines() -> Iterator[str]:
    """Colour and marker, all different."""
    return (f"C{colour}{marker}-" for marker in "os^" for colour in range(10))
