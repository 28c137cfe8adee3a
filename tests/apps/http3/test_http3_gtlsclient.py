"""HTTP/3: ngtcp2's client at our server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

import pyxdp
from tests.apps.echo_process import PATIENCE_S
from tests.apps.http3.processes import (
    ADDRESS,
    assert_same,
    pattern,
    program,
    serving,
)
from tests.support.netns import Side, VethPair

pytestmark = pytest.mark.usefixtures("engine")


#: Windows so small that a download is still under way when the client does what it does EARLY.
NARROW: Final = ("--max-stream-data-bidi-local=32K",)
#: Soon after the handshake.
EARLY: Final = "20ms"
#: Well after EARLY. A client behind a new address that only waits for the server would wait
#: for ever, as the server can't know that address: this one asks after it was given it.
LATER: Final = ("--delay-stream=300ms",)


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., str]:
    """Runs gtlsclient, which puts files into tmp_path; what it logged."""
    path = program("gtlsclient", "ngtcp2-client 1.11")

    def run(
        port: int,
        *words: str,
        names: Sequence[str] = ("large",),
        address: str = ADDRESS,
        side: Side | None = None,
    ) -> str:
        line = [path, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close"]
        line += [f"--download={tmp_path}", *words, address, str(port)]
        line += [f"https://{address}:{port}/{name}" for name in names]
        done = subprocess.run(
            side.command(*line) if side else line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
        log = done.stdout.decode(errors="replace")
        assert done.returncode == 0, log[-2000:]
        return log

    return run


def test_gtlsclient_downloads(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    fetch(port, "-q", names=["large", "page.html", "inner", "1000000", "with%20space"])
    for name in ("large", "page.html", "inner"):
        assert_same(tmp_path / name, folder / name)
    assert (tmp_path / "1000000").read_bytes() == pattern(1_000_000)


@pytest.mark.parametrize(
    ("method", "size", "status"), [("HEAD", 0, 200), ("POST", 4, 405), ("GET", 7, 200)]
)
def test_gtlsclients_methods(
    port: int, tmp_path: Path, fetch: Callable[..., str], method: str, size: int, status: int
) -> None:
    log = fetch(port, f"--http-method={method}", names=["page.html"])
    assert f"[:status: {status}]" in log
    assert (tmp_path / "page.html").stat().st_size == size


def test_gtlsclient_updates_keys(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    log = fetch(port, f"--key-update={EARLY}", *NARROW)
    assert "key update confirmed" in log
    assert_same(tmp_path / "large", folder / "large")


@pytest.mark.parametrize(
    "words", [NARROW, ("--nat-rebinding", *LATER)], ids=["migrates", "is rebound"]
)
def test_gtlsclient_changes_its_address(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str], words: tuple[str, ...]
) -> None:
    log = fetch(port, f"--change-local-addr={EARLY}", *words)
    found = re.search(r"Local address is now \[127\.0\.0\.1\]:(\d+)", log)
    assert found
    assert f"Received packet: local=[127.0.0.1]:{found[1]} " in log, "the server did not follow"
    assert_same(tmp_path / "large", folder / "large")


def _handshake_bytes(log: str) -> int:
    """What the server said in its second flight: less than 300 bytes without a certificate."""
    sizes = re.findall(r"frm rx \d+ Handshake CRYPTO\(0x06\) offset=\d+ len=(\d+)", log)
    assert sizes
    return sum(map(int, sizes))


def test_gtlsclient_resumes(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    session = f"--session-file={tmp_path / 'session'}"
    first = fetch(port, session, "--wait-for-ticket", names=["page.html"])
    again = fetch(port, session, names=["inner"])
    assert _handshake_bytes(again) < 300 < _handshake_bytes(first)
    assert_same(tmp_path / "inner", folder / "inner")


def test_gtlsclient_asks_in_its_first_flight(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    words = [f"--session-file={tmp_path / 'session'}", f"--tp-file={tmp_path / 'parameters'}"]
    fetch(port, *words, "--wait-for-ticket", names=["page.html"])
    log = fetch(port, *words, names=["inner"])
    assert re.search(r"frm tx \d+ 0RTT STREAM", log)
    assert "Early data was rejected" not in log
    assert_same(tmp_path / "inner", folder / "inner")


def test_gtlsclient_loses_packets(
    port: int, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    fetch(port, "-q", "--rx-loss=0.02", "--tx-loss=0.02")
    assert_same(tmp_path / "large", folder / "large")


@pytest.mark.needs_root
def test_gtlsclient_at_a_server_over_af_xdp(
    engine: str, veth_pair: VethPair, folder: Path, tmp_path: Path, fetch: Callable[..., str]
) -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    a, b = veth_pair.a, veth_pair.b
    with serving(engine, folder, ["--link", "af_xdp", "--interface", a.ifname], side=a) as port:
        fetch(port, "-q", address=a.ipv4, side=b)
        assert_same(tmp_path / "large", folder / "large")
        log = fetch(port, f"--change-local-addr={EARLY}", *NARROW, address=a.ipv4, side=b)
        assert "Local address is now" in log
        assert_same(tmp_path / "large", folder / "large")
