"""The picture of the bulk ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_ratios(found: dict[str, Any], path: Path) -> str:
    """Draw what `bulk` found into a PNG file; one line that says where it is, or why none.

    A bar for each thing that the native engine is compared with, on a logarithmic scale, and a
    mark where a ratio is expected.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = sorted({(row["mtu_bytes"], row["direction"]) for row in found["ratios"]})
    if not settings:
        return "no picture: the native engine was not measured"
    figure, axes = pyplot.subplots(
        len(settings), 1, sharex=True, figsize=(8, 2.6 * len(settings)), layout="constrained"
    )
    for (mtu_bytes, direction), axis in zip(settings, axes, strict=True):
        rows = [
            row
            for row in found["ratios"]
            if (row["mtu_bytes"], row["direction"]) == (mtu_bytes, direction)
        ]
        rows.reverse()  # barh begins at the bottom
        names = [f"{row['what']} / {row['against']}" for row in rows]
        bars = axis.barh(names, [row["ratio"] for row in rows], color="#4878a8")
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        for place, row in enumerate(rows):
            if row["expected"]:
                axis.plot([row["expected"]] * 2, [place - 0.4, place + 0.4], color="#c03020")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(f"{direction}, MTU {mtu_bytes}", fontsize=10, loc="left")
    axes[-1].set_xlabel("times as fast (median of the rounds); red: expected", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"picture: {path}"
