"""The picture of what was measured and expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.lines import Line

_COLUMNS: Final = 3
_PANEL_INCHES: Final = (5.2, 1.7)


def draw(lines: Sequence[Line], path: Path) -> str:
    """Draw the lines into a PNG file; one line that says where it is, or why there is none.

    A panel for each thing that is compared, a bar for each of its cases with the absolute figures,
    and a mark where the figure is expected.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not lines:
        return "no picture: nothing was compared with what is expected of it"
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        panels.setdefault((line.what, line.against), []).append(line)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + 0.4)
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    places = list(axes.flat)
    for ((what, against), of_panel), axis in zip(panels.items(), places, strict=False):
        axis.set_title(f"{what} / {against}" if against else what, fontsize=9, loc="left")
        _draw_panel(axis, of_panel)
    for axis in places[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle("ratios are medians of the rounds; red: expected", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"picture: {path}"


def _draw_panel(axis: Any, lines: Sequence[Line]) -> None:
    most = 0.0
    for place, line in enumerate(lines):
        # Above the bar, not beside it: there it would have no room.
        axis.text(0, place - 0.32, f" {_words(line)}", va="center", fontsize=7.5)
        axis.barh(place + 0.1, line.value or 0, height=0.5, color="#4878a8")
        most = max(most, line.value or 0)
        if line.expected:
            bound = line.expected.bound
            axis.plot([bound] * 2, [place - 0.17, place + 0.37], color="#c03020", linewidth=2)
            most = max(most, bound)
    axis.set_xlim(0, 1.05 * (most or 1))
    axis.set_ylim(len(lines) - 0.5, -0.6)
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=7)


def _words(line: Line) -> str:
    expected = f", expected {line.expected}" if line.expected else ""
    absolute = f" ({line.absolute})" if line.against or line.why_not else ""
    return f"{line.case}: {line.measured}{expected}{absolute}"
