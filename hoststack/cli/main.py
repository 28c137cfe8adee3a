"""The `hoststack` command, which runs its subcommands."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Final

#: Each is a module here; one is imported when it is asked for.
COMMANDS: Final = (
    *("serve", "get", "run", "xdp", "doctor", "ctl", "trace"),
    *("install-unit", "completion"),
)

#: As shells report a program that SIGINT ended.
_EXIT_INTERRUPTED = 130


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser, with a subparser for each command; its result's `run` does the work."""
    parser = argparse.ArgumentParser(
        prog="hoststack", description="A QUIC host stack for Linux over XDP and AF_XDP."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in names:
        import_module(f"hoststack.cli.{name.replace('-', '_')}").add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0 success, 1 failure, 2 usage."""
    words = sys.argv[1:] if arguments is None else arguments
    named = [name for name in COMMANDS if [name] == words[:1]]
    options = build_parser(named or COMMANDS).parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names from outside may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; flushing the rest of the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"hoststack: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
