"""The debug CLI of two processes in two namespaces, over AF_XDP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.netns import Side, VethPair

pytestmark = pytest.mark.needs_root

#: For commands that move some megabytes.
PATIENCE_S = 240


@contextmanager
def host(side: Side, path: Path) -> Iterator[None]:
    """A worker on the side's interface, with its control socket at `path`."""
    process = subprocess.Popen(
        side.command(sys.executable, "-m", "tests.control.host_process", side.ifname, str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.communicate(timeout=PATIENCE_S)


def ctl(path: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hoststack.cli.main", "ctl", "--socket", str(path), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show_xdp(veth_pair: VethPair, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with host(veth_pair.a, a), host(veth_pair.b, b):
        uri = f"quic://{veth_pair.a.ipv4}:1234"
        ctl(a, f"test echo server uri {uri}")
        ctl(b, f"test echo client uri {uri} mbytes 4 test-bytes")
        data = json.loads(ctl(a, "--json", "show xdp"))
        assert data["interface"] == veth_pair.a.ifname
        assert data["mode"] in ("native", "generic")
        assert data["ports"] == [[veth_pair.a.ipv4, 1234]]
        assert data["verdicts"]["redirected_by_cid"] > 2000
        assert data["verdicts"]["redirected_as_new"] >= 1
        [worker] = data["workers"]
        assert worker["link"] == "af_xdp"
        assert set(worker["sockets"]) >= {"rx_dropped", "rx_ring_full"}
        shown = ctl(a, "show xdp")
        assert f"  ports {veth_pair.a.ipv4}:1234\n" in shown
        assert "redirected_by_cid" in shown
        assert "af_xdp" in ctl(a, "show workers")
        # What the program let through is no error, what it could not redirect would be.
        assert "redirected" not in ctl(a, "show errors")
        assert "passed" not in ctl(a, "show errors")
        assert "xsk_kicks" not in ctl(a, "show errors")
