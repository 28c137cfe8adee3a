"""Our HTTP/3 client and server as processes, and what is compared."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.apps.echo_process import PATIENCE_S
from tests.support import forked
from tests.support.netns import Side

ADDRESS: Final = "127.0.0.1"


def pattern(size_bytes: int) -> bytes:
    return (bytes(range(256)) * (size_bytes // 256 + 1))[:size_bytes]


@contextmanager
def serving(
    engine: str, folder: Path, words: Sequence[str] = (), side: Side | None = None
) -> Iterator[int]:
    """The port of our server, which must still be well at the end."""
    address = side.ipv4 if side else ADDRESS
    line = ["--engine", engine, "--root", str(folder), *words, f"quic://{address}:0"]
    with forked.start(
        "apps.http3_server", line, side=side, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.fullmatch(
                rf"http3_server: listening on {address} port (\d+), link \w+, engine {engine}\n",
                said,
            )
            assert found, said or process.communicate()
            yield int(found[1])
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 128 + 15, err
            assert "Traceback" not in err
        finally:
            process.kill()


def client(engine: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `hoststack get` to its end."""
    line = ["get", "--engine", engine, *words]
    return forked.run("hoststack.cli.main", line, timeout=PATIENCE_S)


def assert_same(received: Path, sent: Path) -> None:
    # Not `==` in the assertion: pytest would show the difference of megabytes.
    is_same = received.read_bytes() == sent.read_bytes()
    assert is_same, f"{received.name}: {received.stat().st_size} of {sent.stat().st_size} bytes"


def program(name: str, package: str) -> str:
    """The path of a program of others; skips where it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: scripts/bootstrap.sh brings {package}")
    return found


def free_port() -> int:
    """A UDP and TCP port of ADDRESS that nobody uses."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket() as tcp,
    ):
        udp.bind((ADDRESS, 0))
        port: int = udp.getsockname()[1]
        tcp.bind((ADDRESS, port))
        return port
