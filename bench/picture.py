"""The picture of what was measured and expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.lines import Line

_COLUMNS: Final = 3
_PANEL_INCHES: Final = (5.2, 1.9)


def draw(lines: Sequence[Line], path: Path) -> str:
    """Draw the lines into a PNG file; one line that says where it is, or why there is none.

    A panel for each thing that is compared, a bar for each of its cases with the absolute figures
    beside it, and a mark where the figure is expected.
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
        if line.value is None:
            axis.text(0, place, f"  not measured: {line.why_not}", va="center", fontsize=7)
            continue
        axis.barh(place, line.value, height=0.6, color="#4878a8")
        words, end = line.measured, line.value
        if line.expected:
            bound = line.expected.bound
            axis.plot([bound] * 2, [place - 0.4, place + 0.4], color="#c03020", linewidth=2)
            words, end = f"{words}, expected {line.expected}", max(end, bound)
        if line.against:
            words += f" ({line.absolute})"
        axis.text(end, place, f"  {words}", va="center", fontsize=7)
        most = max(most, end)
    # The words behind the longest bar need room, too.
    axis.set_xlim(0, 2.6 * (most or 1))
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_yticks(range(len(lines)), [line.case for line in lines], fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
