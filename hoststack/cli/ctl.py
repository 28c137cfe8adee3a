"""`hoststack ctl ["COMMAND"]`: the debug CLI, one command or a prompt."""

from __future__ import annotations

import argparse
import sys

from hoststack.control.control_client import ControlClient
from hoststack.control.control_socket import DEFAULT_PATH
from hoststack.control.grammar import CommandError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `ctl` to the command line."""
    parser = commands.add_parser(
        "ctl",
        help="the debug CLI of a daemon: one command, or a prompt",
        description="Runs a command in a daemon: `hoststack ctl show session verbose`. Without one"
        " it reads commands from a prompt with history and completion, or from a file on stdin;"
        " `help` lists them. Exit status 1 if a command failed.",
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="the command (default: prompt)")
    parser.add_argument(
        "--socket", default=DEFAULT_PATH, metavar="PATH", help="its socket (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="answers as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    shell = Shell(options.socket, as_json=options.json)
    if options.words:
        return 0 if shell.do(" ".join(options.words)) else 1
    if sys.stdin.isatty():
        # Imported here: readline queries the terminal when it is imported.
        from hoststack.cli.prompt import prompt

        prompt(shell)
        return 0
    # Run all of them, as at the prompt, even if one fails.
    done = [shell.do(line.strip()) for line in sys.stdin if line.strip()]
    return 0 if all(done) else 1


class Shell:
    """Runs lines, and prints their answers."""

    def __init__(self, path: str, *, as_json: bool) -> None:
        """Connect; raises OSError if no daemon listens."""
        self._path = path
        self._as_json = as_json
        self._client = ControlClient(path)

    def do(self, line: str) -> bool:
        """Run a line; return whether it succeeded. Raises ConnectionError."""
        try:
            text = self._client.run(line, as_json=self._as_json)
        except CommandError as error:
            print(f"hoststack: {error}", file=sys.stderr)
            return False
        if text:
            print(text, flush=True)
        return True

    def complete(self, line: str) -> list[str]:
        """See ControlClient."""
        return self._client.complete(line)

    def interrupt(self) -> None:
        """Cancel the running command, by disconnecting from the daemon and connecting again."""
        self._client.close()
        self._client = ControlClient(self._path)
