"""The debug CLI of a daemon: `hoststack run` with two workers, and `hoststack ctl`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import hoststack
from tests.support import forked

#: Longer than anything here takes.
PATIENCE_S = 240


class Daemon:
    """A daemon over link udp, and its control socket."""

    def __init__(self, folder: Path) -> None:
        self.cli = folder / "cli.sock"
        self.socket = folder / "api.sock"
        command = ["run", "--link", "udp", "--workers", "2", "--drain-seconds", "0.2"]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hoststack.cli.main", *command),
                *("--socket", str(self.socket), "--cli-socket", str(self.cli)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.wait_for("serving at")

    def wait_for(self, words: str) -> None:
        """Read the log as far as these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return
        raise AssertionError(f"the daemon ended without {words!r}")

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = ["ctl", "--socket", str(self.cli), *words]
        return forked.run("hoststack.cli.main", line, timeout=PATIENCE_S)

    def json(self, *words: str) -> Any:
        done = self.ctl("--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for _ in log:
                pass
        assert self.process.wait(PATIENCE_S) == 0
        assert not self.cli.exists()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    started = Daemon(tmp_path)
    try:
        yield started
        started.close()
    finally:
        started.process.kill()
        started.process.wait()


@pytest.fixture
def uri() -> str:
    """With a port that was free a moment ago."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"quic://127.0.0.1:{probe.getsockname()[1]}"


def eventually(look: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < end


def is_replaced(daemon: Daemon, index: int, before: int) -> bool:
    """Whether another process is that worker by now; while there is none it is not shown."""
    workers = daemon.json("show workers")["workers"]
    return any(each["worker"] == index and each["pid"] != before for each in workers)


def test_an_echo_test_in_two_workers(daemon: Daemon, uri: str) -> None:
    started = daemon.ctl("test", "echo", "server", "uri", uri)
    assert started.stdout.endswith(", on 2 workers\n"), started.stderr
    data = daemon.json(f"test echo client uri {uri} nclients 6 streams 2 bytes 100k test-bytes")
    assert data["bytes"] == 12 * 102400
    assert [worker["handshakes"] for worker in data["workers"]] == [3, 3]
    workers = daemon.json("show workers")["workers"]
    assert [worker["worker"] for worker in workers] == [0, 1]
    assert len({worker["pid"] for worker in workers} | {daemon.process.pid}) == 3
    assert daemon.json("show quic")["total"]["connected"] == 6
    [server] = [
        app for app in daemon.json("show app")["applications"] if app["name"] == "echo_server"
    ]
    assert (server["workers"], server["listeners"]) == ([0, 1], 2)
    assert "echo_server" in daemon.json("tls reload")["asked"]


def test_an_echo_test_over_tcp(daemon: Daemon, uri: str) -> None:
    uri = uri.replace("quic", "tcp")
    started = daemon.ctl(f"test echo server uri {uri}")
    assert started.stdout == f"echo server listens on {uri.removeprefix('tcp://')}\n"
    data = daemon.json(f"test echo client uri {uri} nclients 6 mbytes 1 test-bytes")
    assert data["bytes"] == data["tx_bytes"] == 6 << 20
    assert [worker["handshakes"] for worker in data["workers"]] == [3, 3]
    # Worker 0 has the port, and so has the one that comes in its place.
    before = daemon.json("show workers")["workers"][0]["pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: is_replaced(daemon, 0, before))
    assert daemon.json(f"test echo client uri {uri}")["bytes"] == 8192
    refused = daemon.ctl(f"test echo client uri {uri} streams 2")
    assert refused.returncode == 1
    assert "one stream: use nclients 2, and leave out streams" in refused.stderr
    assert daemon.ctl("test echo server stop").stdout == f"echo server on {uri} stopped\n"
    assert daemon.ctl(f"test echo server uri {uri} no-echo").returncode == 0
    data = daemon.json(f"test echo client uri {uri} nclients 2 mbytes 2 no-return")
    assert (data["tx_bytes"], data["rx_bytes"], data["duplex"]) == (4 << 20, 0, "half")
    refused = daemon.ctl(f"test echo client uri {uri}")
    assert "0 of 8192 bytes came back: a server with no-echo" in refused.stderr


def test_a_new_worker_is_as_the_old_one(daemon: Daemon, uri: str) -> None:
    for line in (f"test echo server uri {uri}", "quic set cc reno"):
        assert daemon.ctl(line).returncode == 0
    before = daemon.json("show workers")["workers"]
    os.kill(before[1]["pid"], signal.SIGKILL)

    eventually(lambda: is_replaced(daemon, 1, before[1]["pid"]))
    assert daemon.json("show workers")["workers"][0]["pid"] == before[0]["pid"]
    shown = daemon.json("show quic")["workers"]
    assert [worker["default"]["congestion_control"] for worker in shown] == ["reno", "reno"]
    assert daemon.ctl(f"test echo client uri {uri} nclients 8").returncode == 0


def test_a_worker_that_dies_in_a_command(daemon: Daemon, uri: str) -> None:
    """Its client is told, and the other worker's share is given up."""
    assert daemon.ctl(f"test echo server uri {uri}").returncode == 0
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hoststack.cli.main", "ctl"),
            *("--socket", str(daemon.cli)),
            f"test echo client uri {uri} nclients 2 gbytes 1000 test-timeout 1000",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    workers = daemon.json("show workers")["workers"]
    eventually(lambda: daemon.json("show quic")["total"]["connected"] == 2)
    os.kill(workers[1]["pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert said.startswith("hoststack: worker ")
    assert len(said.splitlines()) == 1


def test_a_long_answer(daemon: Daemon, uri: str) -> None:
    """One that no message of the channel holds."""
    assert daemon.ctl(f"test echo server uri {uri}").returncode == 0
    line = f"test echo client uri {uri} nclients 100 gbytes 1000 test-timeout 1000"
    process = subprocess.Popen(
        [sys.executable, "-m", "hoststack.cli.main", "ctl", "--socket", str(daemon.cli), line],
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: daemon.json("show quic")["total"]["connected"] == 100)
        shown = daemon.ctl("--json", "show session verbose 2 limit 1000")
        assert len(shown.stdout) > 100_000
        assert len(json.loads(shown.stdout)["workers"]) == 2
    finally:
        process.kill()
        process.wait()
    # The daemon gives up what nobody waits for.
    eventually(lambda: daemon.json("show quic")["total"]["connections"] == 0)


def test_namespaces_are_asked_for_when_applications_attach(daemon: Daemon) -> None:
    async def attach(secret: str) -> None:
        async with hoststack.attach(str(daemon.socket), namespace="blue", secret=secret):
            pass

    assert daemon.ctl("app ns add id blue secret s3cret").returncode == 0
    trio.run(attach, "s3cret")
    with pytest.raises(hoststack.AttachError):
        trio.run(attach, "wrong")
