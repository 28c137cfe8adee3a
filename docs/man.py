"""Write the man pages: `python -m docs.man FOLDER`, which `make man` runs.

Each command has a page, made from its parser as `--help` is: hoststack(1), hoststack-serve(1), ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from argparse_manpage.manpage import Manpage

from hoststack.cli.main import build_parser as hoststack_parser
from pyxdp.tools.main import build_parser as pyxdp_parser


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each command, and of each command's subcommands."""
    for parser in (hoststack_parser(), pyxdp_parser()):
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def write_pages(folder: Path) -> list[Path]:
    """Write them; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for parser in parsers():
        parser.prog = parser.prog.replace(" ", "-")  # man looks for it so
        page = Manpage(parser)
        page.source, page.manual = "Hoststack", "Hoststack"
        page.description = (parser.description or "").partition(". ")[0].rstrip(".")
        path = folder / f"{parser.prog}.1"
        path.write_text(str(page), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
