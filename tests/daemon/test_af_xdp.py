"""A daemon over AF_XDP on an interface with two queues: two workers, each with a socket on both."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path

import pytest
import trio

import hoststack
import pyxdp
from hoststack import Connection, ConnectionClosedError, QuicConfig, Stack
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.echoing import TRUSTING, ask, echo, serve_while_it_lives
from tests.quic.test_moves_on_links import opened
from tests.support.netns import Side, VethPair, run, veth_pair

pytestmark = pytest.mark.needs_root

#: Of a client that waits for bytes, and has a reason to send all the same: who sends nothing is
#: told nothing.
TALKING = QuicConfig(keep_alive_s=0.2)


@contextmanager
def daemon_on(side: Side, *words: str) -> Iterator[Daemon]:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    line = ["-i", side.ifname, "--link", "af_xdp", "--workers", "2", *words]
    with run_daemon(*line, prefix=side.command()) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def pair() -> Iterator[VethPair]:
    with veth_pair(queues=2) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(pair: VethPair) -> Iterator[Daemon]:
    """On side a; for tests that do it no harm."""
    with daemon_on(pair.a) as running:
        yield running


class Served:
    """An application of the daemon that echoes."""

    def __init__(self, host: str, port: int) -> None:
        self.uri = f"quic://[{host}]:{port}" if ":" in host else f"quic://{host}:{port}"
        self.workers: list[int] = []
        """Of the connections, in the order of their coming."""


@asynccontextmanager
async def served(daemon: Daemon, host: str, port: int = 4433) -> AsyncIterator[Served]:
    about = Served(host, port)

    async def handle(connection: Connection) -> None:
        about.workers.append(connection.handle >> 32)
        await echo(connection)

    with trio.fail_after(PATIENCE_S):
        async with hoststack.attach(daemon.api) as stack, trio.open_nursery() as nursery:
            await nursery.start(serve_while_it_lives, stack, about.uri, handle)
            yield about
            nursery.cancel_scope.cancel()


def client_on(side: Side, kind: str = "udp") -> AbstractAsyncContextManager[Stack]:
    """A stack with a port of its own, so that its packets have a queue of their own."""
    return hoststack.open_stack(link=opened(kind, side), engine="native")


def verdicts(daemon: Daemon) -> dict[str, int]:
    """The steering program's counters."""
    return {name: int(n) for name, n in re.findall(r"(\w+) +(\d+)", daemon.ctl("show xdp"))}


def by_queue(side: Side) -> list[int]:
    """Packets that XDP has seen on each receive queue."""
    found = run("ip", "netns", "exec", side.namespace, "ethtool", "-S", side.ifname)
    return [int(n) for n in re.findall(r"rx_queue_\d+_xdp_packets: (\d+)", found)]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_connections_spread_over_workers(daemon: Daemon, pair: VethPair, family: str) -> None:
    async def main() -> None:
        async with served(daemon, getattr(pair.a, family)) as server:
            for _ in range(12):
                async with (
                    client_on(pair.b) as client,
                    client.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection,
                ):
                    data = os.urandom(300_000)
                    assert await ask(connection, data) == data
            assert set(server.workers) == {0, 1}

    before = by_queue(pair.a)
    trio.run(main)
    assert all(now > then for now, then in zip(by_queue(pair.a), before, strict=True))


def test_a_connection_that_moves_stays_with_its_worker(daemon: Daemon, pair: VethPair) -> None:
    """Its packets come on the other queue, and the program sends them to the worker in their
    connection ID: no worker sees a packet of a connection that is not its own."""

    async def main() -> None:
        async with (
            served(daemon, pair.a.ipv4) as server,
            client_on(pair.b) as client,
            client.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection,
        ):
            before = by_queue(pair.a)
            moves = 0
            # Each port has one of the two queues, by its hash.
            while not all(
                now > then + 100 for now, then in zip(by_queue(pair.a), before, strict=True)
            ):
                await connection.migrate()
                moves += 1
                data = os.urandom(300_000)
                assert await ask(connection, data) == data
            assert (await connection.statistics())["path_changes"] == moves
            assert len(server.workers) == 1

    before = verdicts(daemon)
    trio.run(main)
    after = verdicts(daemon)
    assert after["redirected_by_cid"] > before["redirected_by_cid"] + 300
    # The Initial of the connection, and one that was sent again at most.
    assert after["redirected_as_new"] <= before["redirected_as_new"] + 2
    assert after["redirect_failed"] == before["redirect_failed"]
    assert "unknown_cid" not in daemon.ctl("show errors")


def test_a_worker_that_is_killed_under_load() -> None:
    """The other worker's transfers go on, and the one in its place has its queue and frames."""

    is_over = False

    async def main(daemon: Daemon, pair: VethPair) -> None:
        nonlocal is_over
        async with (
            served(daemon, pair.a.ipv4) as server,
            trio.open_nursery() as nursery,
            AsyncExitStack() as stacks,
        ):

            async def load(connection: Connection, is_doomed: bool) -> None:
                """For as long as it is: the other worker's to the end."""
                data = os.urandom(500_000)
                while True:
                    try:
                        assert await ask(connection, data) == data
                    except* ConnectionClosedError:
                        # At the end of the test the client closes it, before this is cancelled.
                        assert is_doomed or is_over
                    if connection.close_info is not None:
                        break
                    done[connection].set()

            done: dict[Connection, trio.Event] = {}
            by_worker: dict[int, Connection] = {}
            while by_worker.keys() != {0, 1}:
                client = await stacks.enter_async_context(client_on(pair.b))
                connection = await stacks.enter_async_context(
                    client.connect(server.uri, tls=TRUSTING, alpn=["test"], config=TALKING)
                )
                assert await ask(connection, b"which?") == b"which?"
                by_worker[server.workers[-1]] = connection
            for worker, connection in by_worker.items():
                done[connection] = trio.Event()
                nursery.start_soon(load, connection, worker == 0)
            for event in done.values():
                await event.wait()
            began = trio.current_time()
            os.kill(daemon.worker_pid(0), signal.SIGKILL)
            # Its peers hear of it by a stateless reset, for whoever comes in its place has the key.
            info = await by_worker[0].wait_closed()
            assert info.by_peer
            assert trio.current_time() - began < 10  # not when the idle timeout finds it out
            done[by_worker[1]] = trio.Event()
            await done[by_worker[1]].wait()
            count = len(server.workers)
            while 0 not in server.workers[count:]:
                async with (
                    client_on(pair.b) as client,
                    client.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection,
                ):
                    assert await ask(connection, b"hello" * 10_000) == b"hello" * 10_000
            is_over = True
            nursery.cancel_scope.cancel()

    with veth_pair(queues=2) as own, daemon_on(own.a) as daemon:
        trio.run(main, daemon, own)


def test_a_supervisor_that_is_killed_under_load() -> None:
    """The program is gone, and so are the workers; the kernel has its traffic again."""

    async def main(daemon: Daemon, pair: VethPair) -> None:
        async with (
            trio.open_nursery() as nursery,
            served(daemon, pair.a.ipv4) as server,
            client_on(pair.b) as client,
            client.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection,
        ):
            is_moving = trio.Event()

            async def load() -> None:
                data = os.urandom(500_000)
                try:
                    while True:
                        assert await ask(connection, data) == data
                        is_moving.set()
                except* ConnectionClosedError:
                    pass  # a worker may get as far as saying so

            nursery.start_soon(load)
            await is_moving.wait()
            workers = [os.pidfd_open(daemon.worker_pid(index)) for index in range(2)]
            daemon.stop(signal.SIGKILL)
            for worker in workers:
                await trio.lowlevel.wait_readable(worker)
                os.close(worker)
            with pair.a.inside():
                assert not pyxdp.attached_programs(pair.a.ifname)
                plain = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with pair.b.inside():
                peer = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with plain, peer:
                await plain.bind((pair.a.ipv4, 4433))
                await peer.sendto(b"to the kernel", (pair.a.ipv4, 4433))
                while await plain.recv(65536) != b"to the kernel":
                    pass  # the client may not know yet
            nursery.cancel_scope.cancel()  # nobody waits for the daemon

    with veth_pair(queues=2) as own, daemon_on(own.a) as daemon:
        with own.a.inside():
            assert pyxdp.attached_programs(own.a.ifname)
        trio.run(main, daemon, own)


def test_the_units_capabilities_are_enough() -> None:
    """And workers have none of them, nor can they get one."""
    unit = Path("hoststack/cli/run.service").read_text()
    (names,) = re.findall(r"^CapabilityBoundingSet=(.*)", unit, re.MULTILINE)
    # For LimitMEMLOCK=infinity, which takes CAP_SYS_RESOURCE.
    kept = [*names.lower().replace("cap_", "").split(), "ipc_lock"]
    limited = ["setpriv", f"--bounding-set=-all,+{',+'.join(kept)}"]
    with veth_pair(queues=2) as own:
        line = ["-i", own.a.ifname, "--link", "af_xdp", "--workers", "2", "--group", "daemon"]
        with run_daemon(*line, prefix=own.a.command(*limited)) as daemon:
            daemon.ctl("test echo server uri quic://10.77.0.1:4433")
            os.kill(daemon.worker_pid(0), signal.SIGKILL)
            daemon.wait_for("worker 0 is process", 2)
            for index in range(2):
                status = Path(f"/proc/{daemon.worker_pid(index)}/status").read_text()
                assert re.findall(r"^Cap\w+:\t(\w+)", status, re.MULTILINE) == ["0" * 16] * 5
            assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-i", "right", "--workers", "3"], "3 workers need as many receive and transmit queues"),
        (["-i", "nowhere"], "nowhere"),
    ],
)
def test_what_can_not_be(pair: VethPair, words: list[str], complaint: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "hoststack.cli.main", "run", "--link", "af_xdp", *words]
    line += ["--socket", str(tmp_path / "api.sock"), "--cli-socket", str(tmp_path / "cli.sock")]
    done = subprocess.run(
        pair.b.command(*line), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_takes_sockets_where_xdp_can_not_be(tmp_path: Path) -> None:
    with (
        veth_pair() as small,
        run_daemon("-i", small.a.ifname, "--workers", "2", prefix=small.a.command()) as daemon,
    ):
        assert "link udp instead of af_xdp: 2 workers need" in daemon.log
