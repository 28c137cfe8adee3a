"""quic_echo as processes of their own, on loopback or in namespaces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.support import forked
from tests.support.netns import Side

_MODULE: Final = "apps.quic_echo.main"

#: Whose stack processes have that are told nothing about it.
stack_words = ["engine", "auto"]

#: How long anything here may take, in seconds, on a slow machine.
PATIENCE_S: Final = 240

#: The user nobody, and how a command becomes it.
NOBODY: Final = 65534
AS_NOBODY: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def skip_if_nobody_cannot_run() -> None:
    """Skip where another user can't run Python from here: below /root, say."""
    done = subprocess.run([*AS_NOBODY, sys.executable, "-c", "import apps"], capture_output=True)
    if done.returncode:
        pytest.skip("the user nobody can't read this folder, so nothing can be run as nobody")


def arguments(*words: str) -> list[str]:
    """Words of quic_echo, and those of the stack that this test is for."""
    return [*words, *([] if "engine" in words else stack_words)]


def command(*words: str) -> list[str]:
    """The command line of quic_echo."""
    return [sys.executable, "-m", "apps.quic_echo", *arguments(*words)]


class Server:
    """A server that listens."""

    def __init__(self, process: subprocess.Popen[str], listening: str) -> None:
        self.process = process
        self.listening = listening
        found = re.search(r"listening on (\S+) port (\d+)", listening)
        assert found, listening
        host = f"[{found[1]}]" if ":" in found[1] else found[1]
        self.uri = f"quic://{host}:{found[2]}"

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, output, errors."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@contextmanager
def server(
    words: str, *, uri: str = "quic://127.0.0.1:0", side: Side | None = None
) -> Iterator[Server]:
    """A server with these words; killed at the end if it still runs."""
    given = arguments("server", "uri", uri, *words.split())
    with forked.start(
        _MODULE, given, side=side, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            while " instead of " in line:  # what it says of a link or engine that is second best
                line = process.stderr.readline()
            yield Server(process, line)
        finally:
            process.kill()


def client(words: str, uri: str, *, side: Side | None = None) -> subprocess.CompletedProcess[str]:
    """Run a client with these words to its end."""
    given = arguments("client", "uri", uri, *words.split())
    return forked.run(_MODULE, given, side=side, timeout=PATIENCE_S)


def transfer(
    server_words: str, client_words: str, sides: Sequence[Side] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run both to a good end; the JSON reports of server and client."""
    uri = f"quic://{sides[0].ipv4}:4433" if sides else "quic://127.0.0.1:0"
    with server(f"json {server_words}", uri=uri, side=sides[0] if sides else None) as running:
        done = client(f"json {client_words}", running.uri, side=sides[1] if sides else None)
        assert done.returncode == 0, done.stderr
        status, out, err = running.finish()
        assert status == 0, err
    return json.loads(out), json.loads(done.stdout)
