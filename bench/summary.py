"""All that is expected, in one table and one picture: what a run of the benchmarks ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.lines import Line
from bench.picture import draw
from bench.report import lines_table, machine, print_table, write_json


def summarize(lines: Sequence[Line], stem: Path, made: dict[str, Any]) -> None:
    """Show the table; write it to `stem`.json and .md, and the picture to .png.

    `made` tells how the figures were made.
    """
    head, rows = lines_table(lines)
    print_table(head, rows)
    how = {**machine(), **made}
    write_json(stem.with_suffix(".json"), {**how, "lines": [line.to_json() for line in lines]})
    told = ", ".join(f"{key}: {value}" for key, value in how.items())
    table = "".join(_markdown(row) for row in [head, ["---"] * len(head), *rows])
    stem.with_suffix(".md").write_text(f"{told}\n\n{table}", encoding="utf-8")
    print(f"table: {stem}.md, {stem}.json")
    print(draw(lines, stem.with_suffix(".png")))


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
