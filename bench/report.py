"""What every benchmark is made of: its options, what it found, its tables and its JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lines import Line, number
from bench.processes import BenchError
from tests.support import netns


@dataclass
class Found:
    """What a benchmark found."""

    unit: str
    rows: list[dict[str, Any]]
    """The absolute figures; all rows have the same keys."""
    lines: list[Line] = field(default_factory=list)
    """What is judged: they go into the summary."""
    more_lines: list[Line] = field(default_factory=list)
    """Comparisons that nothing is expected of."""
    told: dict[str, Any] = field(default_factory=dict)
    """What else is to be known of the figures."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; `measure` takes the number of rounds and the seconds of each figure."""

    name: str
    doc: str | None
    measure: Callable[[int, float], Found]
    rounds: int = 3
    seconds: float = 1.0

    def main(self) -> None:
        """The benchmark as a program by itself."""
        parser = argparse.ArgumentParser(description=first_line(self.doc))
        add_options(parser)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        options = parser.parse_args()
        try:
            self.run(options.rounds, options.seconds, options.json)
        except BenchError as error:
            sys.exit(f"{self.name}: {error}")

    def run(self, rounds: int | None, seconds: float | None, to: Path | None) -> list[Line]:
        """Measure, show, and write JSON if that is wanted. Raises BenchError."""
        if why_not := netns.why_not():
            raise BenchError(why_not)
        rounds, seconds = rounds or self.rounds, seconds or self.seconds
        found = self.measure(rounds, seconds)
        _show(found)
        if to:
            made = {"rounds": rounds, "seconds": seconds}
            write_json(to, {"benchmark": self.name, "machine": machine(), **made, **_json(found)})
        return found.lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has, and all of them together."""
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="about, for each figure of each round")


def first_line(doc: str | None) -> str | None:
    """What a program says of itself."""
    return doc.splitlines()[0] if doc else None


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"kernel": os.uname().release, "cpus": os.cpu_count(), "cpu": model}


def write_json(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _json(found: Found) -> dict[str, Any]:
    lines = {key: [line.to_json() for line in vars(found)[key]] for key in ("lines", "more_lines")}
    return {**found.told, "unit": found.unit, "rows": found.rows, **lines}


def _show(found: Found) -> None:
    print(", ".join([found.unit, *(f"{key} {value}" for key, value in found.told.items())]))
    if found.rows:
        print_table(list(found.rows[0]), [[_cell(it) for it in row.values()] for row in found.rows])
    if lines := found.lines + found.more_lines:
        print()
        print_table(*lines_table(lines))


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def lines_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of lines."""
    head = ["what", "", "against", "expected", "measured", "met", "absolute, medians"]
    rows = [
        [
            line.what,
            line.case,
            line.against,
            str(line.expected or ""),
            line.measured,
            line.verdict,
            line.absolute,
        ]
        for line in lines
    ]
    return head, rows


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need: figures to the right, words to the left."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_figures = [all(re.fullmatch(r"-?[\d,.]*", cell) for cell in it[1:]) for it in columns]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, is_figures, strict=True)
        ]
        print("  ".join(cells).rstrip())
