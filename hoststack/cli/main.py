"""The `hoststack` command: dispatches to its subcommands."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from hoststack.cli import ctl, doctor, run, trace, xdp

#: As shells report a program that SIGINT ended.
_EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The command line, with a subparser for each command; `run` of its result does the work."""
    parser = argparse.ArgumentParser(
        prog="hoststack", description="A QUIC host stack for Linux over XDP and AF_XDP."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run.add_command(commands)
    xdp.add_command(commands)
    doctor.add_command(commands)
    ctl.add_command(commands)
    trace.add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 it did not work, 2 usage."""
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names from outside may have characters that the terminal's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"hoststack: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
