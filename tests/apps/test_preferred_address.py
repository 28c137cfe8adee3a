"""Preferred addresses (RFC 9000 section 9.6): our HTTP/3 server and client with ngtcp2's."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hoststack import TlsConfig
from hoststack.worker import engines
from tests.apps.echo_process import PATIENCE_S
from tests.apps.http3.processes import assert_same, free_port, program

LARGE_BYTES = 5_000_000
#: Where a server listens, and where it wants its clients: another address, or another port of it.
HOSTS = {"ipv4": ("127.0.0.1", "127.0.0.2"), "ipv6": ("::1", "::1")}

pytestmark = [
    pytest.mark.skipif(
        "native" not in engines.available_engines(), reason="the native engine was not built"
    ),
    pytest.mark.parametrize("family", HOSTS),
]


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "large").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    return root


@contextmanager
def running(line: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone at the end; its standard error goes into the log."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("follows", [True, False])
def test_gtlsclient_goes_where_our_server_wants_it(
    folder: Path, tmp_path: Path, family: str, follows: bool
) -> None:
    gtlsclient = program("gtlsclient", "ngtcp2-client 1.11")
    first, second = HOSTS[family]
    preferred = free_port()
    line = [sys.executable, "-m", "apps.http3_server", "--engine", "native", "--root", str(folder)]
    line += ["--link", "udp", "--preferred", f"{bracketed(second)}:{preferred}"]
    line += [f"quic://{bracketed(first)}:0"]
    with running(line, tmp_path / "log") as server:
        assert server.stdout is not None
        found = re.search(rb"port (\d+)", server.stdout.readline())
        assert found, (tmp_path / "log").read_text()
        port = int(found[1])
        fetch = [gtlsclient, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close"]
        fetch += [f"--download={tmp_path}", *([] if follows else ["--no-preferred-addr"])]
        fetch += [first, str(port), f"https://{bracketed(first)}:{port}/large"]
        done = subprocess.run(
            fetch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False
        )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert_same(tmp_path / "large", folder / "large")
    assert (f"remote=[{second}]:{preferred}" in log) == follows


def test_our_client_goes_where_gtlsserver_wants_it(
    folder: Path, tmp_path: Path, family: str
) -> None:
    gtlsserver = program("gtlsserver", "ngtcp2-server 1.11")
    first, second = HOSTS[family]
    port, preferred = free_port(), free_port()
    tls = TlsConfig.self_signed(["localhost"])
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for path, source in zip(paths, (tls.certificate, tls.key), strict=True):
        assert isinstance(source, bytes)
        path.write_bytes(source)
    line = [gtlsserver, "--no-quic-dump", "--no-http-dump", "-d", str(folder)]
    line += [f"--preferred-{family}-addr={bracketed(second)}:{preferred}"]
    line += [first, str(port), str(paths[1]), str(paths[0])]
    get = [sys.executable, "-m", "hoststack.cli.main", "get", "--engine", "native", "-k"]
    get += ["-o", str(tmp_path), f"https://{bracketed(first)}:{port}/large"]
    with running(line, tmp_path / "log"):
        # Its first packet is sent again until the server is there.
        done = subprocess.run(get, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "large", folder / "large")
    log = (tmp_path / "log").read_text(errors="replace")
    assert f"Received packet: local=[{second}]:{preferred}" in log
