"""Contenders in turns: on a noisy machine only what ran in the same minute can be compared.

Each round runs every contender once; a ratio is the median over the rounds of the ratios within
them, and the absolute figures stand beside it with their spread.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

Figures = dict[str, list[float]]
_T = TypeVar("_T")


def progress(text: str) -> None:
    """Say what is done now, for those who wait; the results are not in it."""
    print(f"  {text}", file=sys.stderr, flush=True)


def interleave(
    contenders: Mapping[str, Callable[[], _T]],
    rounds: int,
    where: str = "",
    *,
    is_silent: bool = False,
) -> dict[str, list[_T]]:
    """Every contender's result of every round; `where` is for who waits, if rounds take long."""
    figures: dict[str, list[_T]] = {name: [] for name in contenders}
    for number in range(rounds):
        if not is_silent:
            progress(f"{where + ': ' if where else ''}round {number + 1} of {rounds}")
        # The other way round every other time: nobody always follows the same neighbour.
        order = list(contenders)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            figures[name].append(contenders[name]())
    return figures


def spread(figures: list[float], digits: int = 3) -> dict[str, float]:
    """Median, lowest and highest."""
    found = {
        "median": statistics.median(figures),
        "lowest": min(figures),
        "highest": max(figures),
    }
    return {name: round(value, digits) for name, value in found.items()}


def ratio(figures: Figures, of: str, to: str) -> float:
    """The median over the rounds of what `of` was to `to`."""
    return round(statistics.median(a / b for a, b in zip(figures[of], figures[to], strict=True)), 3)
