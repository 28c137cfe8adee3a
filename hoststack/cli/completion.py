"""`hoststack completion SHELL`: completion of the command line, made from its parsers."""

from __future__ import annotations

import argparse
from typing import Final

import shtab

_SHELLS: Final = ("bash", "zsh", "fish")
#: What an argument is, by its metavar.
_FILES: Final = ("FILE", "PATH", "UNIT")
_FOLDERS: Final = ("FOLDER", "DIR")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `completion` to the command line."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes this command's arguments in a shell",
        description='Prints a script for a shell: `eval "$(hoststack completion bash)"`, or into'
        " the folder where the shell looks for such scripts.",
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # It imports this module.
    from hoststack.cli.main import build_parser

    parser = build_parser()
    _mark_files(parser)
    print(shtab.complete(parser, options.shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Have files and folders completed where an argument is one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                _mark_files(each)
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
