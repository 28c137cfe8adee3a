"""Contenders in turns: on a noisy machine only what ran in the same minute can be compared.

Each round runs every contender once; a ratio is the median over the rounds of the ratios within
them, and the absolute figures stand beside it with their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.processes import BenchError
from tests.support import netns

Figures = dict[str, list[float]]
_T = TypeVar("_T")


def interleave(contenders: Mapping[str, Callable[[], _T]], rounds: int) -> dict[str, list[_T]]:
    """Every contender's result of every round."""
    figures: dict[str, list[_T]] = {name: [] for name in contenders}
    for number in range(rounds):
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


def parser(doc: str | None, *, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--seconds", type=float, default=seconds, help="about, for each figure")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return made


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"kernel": os.uname().release, "cpus": os.cpu_count(), "cpu": model}


def report(
    options: argparse.Namespace, name: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Measure, and write the JSON if that is wanted; a program that fails ends the run, told."""
    why_not: Final = netns.why_not()
    if why_not:
        sys.exit(f"{name}: {why_not}")
    try:
        found = measure()
    except BenchError as error:
        sys.exit(f"{name}: {error}")
    found = {"benchmark": name, "machine": machine(), "rounds": options.rounds, **found}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
