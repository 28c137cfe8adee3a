"""docs/cli.md against the command line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from hoststack.cli.main import build_parser

DOCS = Path(__file__).resolve().parents[2] / "docs"


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Of a command's subcommands, by name."""
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    words = {word for action in parser._actions for word in action.option_strings}
    return {word for word in words if word.startswith("--") and word != "--help"}


def test_the_manual_has_every_command() -> None:
    manual = (DOCS / "cli.md").read_text()
    commands = parsers(build_parser())
    assert set(re.findall(r"^## `hoststack ([\w-]+)", manual, re.MULTILINE)) == set(commands)
    for verb in parsers(commands["xdp"]):
        assert re.search(rf"^- `{verb}\b", manual, re.MULTILINE), verb


def test_the_manuals_have_every_option() -> None:
    commands = parsers(build_parser())
    pages = {"run": "daemon", "serve": "serve", "get": "cli", "ctl": "ctl", "trace": "trace"}
    pages |= dict.fromkeys(("xdp", "install-unit", "completion"), "cli")
    for name, page in pages.items():
        text = (DOCS / f"{page}.md").read_text()
        parser = commands[name]
        of_verbs = parsers(parser).values() if name == "xdp" else ()
        for option in set().union(options(parser), *map(options, of_verbs)):
            wanted = option.replace("--no-", "--")
            assert wanted in text, f"hoststack {name} {option} is not in {page}.md"
