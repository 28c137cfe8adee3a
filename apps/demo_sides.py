"""The two sides of `make demo`, and their programs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

_PATIENCE_S: Final = 120


class DemoError(Exception):
    """The demo failed; the message is for the user."""


@dataclass(frozen=True)
class Side:
    """Where one of the two programs runs. Over UDP both have no namespace and no interface."""

    role: str
    address: str
    namespace: str = ""
    interface: str = ""

    def inside(self, words: Sequence[str]) -> list[str]:
        """Return a command line for the namespace; unlike `ip netns exec`, it keeps /sys."""
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}"] if self.namespace else []
        return [*enter, *words]

    def quic_echo(self, words: Sequence[str]) -> list[str]:
        """Return quic_echo's command line for this side."""
        link = ["interface", self.interface] if self.interface else ["link", "udp"]
        return [*link, self.role, *words]


@dataclass(frozen=True)
class Result:
    """The JSON reports of both sides, and the kernel's UDP counters in each namespace."""

    reports: dict[str, dict[str, Any]]
    kernel: dict[str, dict[str, int]]


@contextlib.contextmanager
def start(side: Side, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run quic_echo in its place for the length of the block."""
    line = side.inside([sys.executable, "-m", "apps.quic_echo", "json", *words])
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until_it_listens(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read a server's stderr; return its port, empty if it ended, and all lines before.

    Prints why the server has no better link or engine.
    """
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        if "listening on" in line:
            return line.partition(" port ")[2].partition(",")[0].strip(), "".join(said)
        said.append(line)
        show_fallback(line)
    return "", "".join(said).strip()


def show_fallback(line: str) -> None:
    """Print a program's line that says why it uses a fallback."""
    if " instead of " in line:
        print(f"    {line.strip()}", flush=True)


def finish(side: Side, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the report of a program that succeeded; raises DemoError."""
    try:
        out, err = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the {side.role} is not done after {_PATIENCE_S} seconds") from None
    if process.returncode:
        raise DemoError(f"the {side.role} failed (status {process.returncode}): {err.strip()}")
    report: dict[str, Any] = json.loads(out)
    return report


def show_command(side: Side, words: Sequence[str]) -> None:
    """Print a command line as a user would write it."""
    place = f"[{side.namespace}] " if side.namespace else ""
    print(f"  {place}$ quic_echo {' '.join(words)}", flush=True)


def run(*words: str) -> str:
    """Run a command; return its output. Raises DemoError with its messages."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DemoError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise DemoError(f"{' '.join(words[:3])} ...: {done.stderr.strip()}")
    return done.stdout
