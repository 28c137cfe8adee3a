"""ngtcp2's own client at a daemon of two workers: it migrates in the middle of downloads, or is
given another address before one, as by a NAT, and each connection stays with the worker that
accepted it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.test_af_xdp import by_queue, daemon_on, verdicts
from tests.support.netns import Side, veth_pair

SIZE_BYTES: Final = 2_000_000
CONTENT: Final = (bytes(range(256)) * (SIZE_BYTES // 256 + 1))[:SIZE_BYTES]
MOVING: Final = "--change-local-addr=10ms"
#: Windows so small that the download is under way when the address changes.
MIGRATES: Final = ("--max-stream-data-bidi-local=32K",)
#: The client asks from its new address. One that only receives would wait for a server that can't
#: know that address.
IS_REBOUND: Final = ("--nat-rebinding", "--delay-stream=100ms")


@pytest.fixture(scope="module")
def gtlsclient() -> str:
    found = shutil.which("gtlsclient")
    if found is None:
        pytest.skip("gtlsclient is not installed: scripts/bootstrap.sh brings ngtcp2-client 1.11")
    return found


@contextmanager
def web_server(daemon: Daemon, address: str) -> Iterator[int]:
    """An application of the daemon's; its port."""
    line = [sys.executable, "-m", "apps.http3_server", "--socket", daemon.api, "--root", "docs"]
    with subprocess.Popen(
        [*line, f"quic://{address}:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r" port (\d+), link \w+, engine \w+$", said)
            assert found, said or process.communicate()
            yield int(found[1])
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 128 + 15, err
            assert "Traceback" not in err
        finally:
            process.kill()


def accepted(daemon: Daemon) -> list[int]:
    """Connections, by worker."""
    return [each["counters"]["accepted"] for each in quic(daemon)["workers"]]


def quic(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ctl("--json", "show quic"))
    return found


def download(
    gtlsclient: str,
    address: str,
    port: int,
    folder: Path,
    words: tuple[str, ...],
    side: Side | None,
) -> None:
    """One, by a client that moves."""
    line = [gtlsclient, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close"]
    line += [f"--download={folder}", MOVING, *words, address, str(port)]
    line += [f"https://{address}:{port}/{SIZE_BYTES}"]
    done = subprocess.run(
        side.command(*line) if side else line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        check=False,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    moved = re.search(r"Local address is now \[[\d.]+\]:(\d+)", log)
    assert moved, log[-2000:]
    assert re.search(rf"Received packet: local=\[[\d.]+\]:{moved[1]} ", log), "nobody followed"
    assert (folder / str(SIZE_BYTES)).read_bytes() == CONTENT


def downloads(
    daemon: Daemon, gtlsclient: str, address: str, folder: Path, side: Side | None = None
) -> int:
    """Until both workers have had some; how many there were."""
    with web_server(daemon, address) as port:
        for count in range(1, 25):
            words = IS_REBOUND if count % 2 else MIGRATES
            download(gtlsclient, address, port, folder, words, side)
            if count >= 8 and min(accepted(daemon)) >= 2:
                break
        assert min(accepted(daemon)) >= 2
    # A datagram that came to the wrong worker would be of no connection there.
    total = quic(daemon)["total"]
    assert total["accepted"] == count
    assert total["stateless_resets"] == 0
    assert "unknown_cid" not in total["dropped"]
    return count


def test_over_sockets(gtlsclient: str, tmp_path: Path) -> None:
    with run_daemon("--workers", "2") as daemon:
        downloads(daemon, gtlsclient, "127.0.0.1", tmp_path)


@pytest.mark.needs_root
def test_over_af_xdp(gtlsclient: str, tmp_path: Path) -> None:
    with veth_pair(queues=2) as pair, daemon_on(pair.a) as daemon:
        count = downloads(daemon, gtlsclient, pair.a.ipv4, tmp_path, pair.b)
        found = verdicts(daemon)
        assert found["redirect_failed"] == 0
        # An Initial, and what was sent again of it, is new; all else is known by its CID.
        assert count <= found["redirected_as_new"] <= 4 * count
        assert found["redirected_by_cid"] > 20 * count
        assert all(by_queue(pair.a))
