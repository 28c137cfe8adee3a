"""The prompt of `hoststack ctl`: history, and completion by the daemon."""

from __future__ import annotations

import os
import readline
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from hoststack.cli.ctl import Shell
from hoststack.control.grammar import CommandError

_PROMPT: Final = "hoststack# "
_HISTORY_LINES: Final = 1000


def prompt(shell: Shell) -> None:
    """Run lines until `quit` or the end of input; raises ConnectionError if the daemon ends."""
    history = _history_path()
    _read_history(history)
    readline.set_completer_delims(" \t")
    readline.set_completer(_Completer(shell))
    readline.parse_and_bind("tab: complete")
    try:
        while _prompt_once(shell):
            pass
    finally:
        _write_history(history)


def _prompt_once(shell: Shell) -> bool:
    """Run one line; return whether to continue."""
    try:
        line = input(_PROMPT).strip()
    except EOFError:
        print()
        return False
    except KeyboardInterrupt:
        print()
        return True
    if line in ("quit", "exit", "q"):
        return False
    if line:
        _forget_secret(line)
        try:
            shell.do(line)
        except KeyboardInterrupt:
            shell.interrupt()
            print("interrupted")
    return True


class _Completer:
    """readline's completer: called repeatedly for the completions of the word at the cursor."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._words: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            try:
                self._words = self._shell.complete(line)
            except (OSError, CommandError):
                self._words = []
        return f"{self._words[state]} " if state < len(self._words) else None


def _history_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "hoststack" / "ctl_history"


def _read_history(path: Path) -> None:
    readline.set_history_length(_HISTORY_LINES)
    with suppress(FileNotFoundError):
        readline.read_history_file(path)


def _write_history(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(path)
    except OSError as error:
        print(f"hoststack: the history was not saved: {error.strerror}", file=sys.stderr)


def _forget_secret(line: str) -> None:
    """Remove a line with a secret from the history, so that no file has it.

    The commands with secrets begin with `app`, and all words may be abbreviated.
    """
    last = readline.get_current_history_length()
    words = line.split()
    if last and ("app".startswith(words[0]) or "secret" in words):
        readline.remove_history_item(last - 1)
