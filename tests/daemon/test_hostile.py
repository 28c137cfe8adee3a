"""Applications that do what none should: they harm themselves alone."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

import hoststack
from hoststack import AttachError, QuicConfig, StreamResetError, TlsConfig
from hoststack.boundary import attaching
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.codec import FifosReleased, encode
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.boundary.rings import RING_ENTRIES, Rings
from hoststack.link.memory import MemoryNetwork
from hoststack.native.session._session import lib
from hoststack.quic.seam import CloseInfo
from tests.daemon.conftest import PATIENCE_S, Daemon, MakeDaemon
from tests.daemon.echoing import TLS, ask, echo, is_well
from tests.daemon.fuzz_application import fuzz
from tests.support.attached import SEAL, attached, both_ends, inline
from tests.support.event_ring import EventRing

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
SERVER_TLS = TlsConfig.self_signed([SERVER])
CLIENT_TLS = TlsConfig(ca=SERVER_TLS.certificate)


# --- rubbish --------------------------------------------------------------------------------


def test_rubbish_in_shared_memory_harms_nobody_else() -> None:
    """Ten seconds of it; `python -m tests.daemon.fuzz_application` for ten minutes."""
    for line in fuzz(20261124, 10):
        print(line)


# --- limits ---------------------------------------------------------------------------------


def on_two_stacks(
    main: Callable[[hoststack.EmbeddedStack, hoststack.EmbeddedStack], object],
    config: QuicConfig | None = None,
) -> None:
    async def run() -> None:
        network = MemoryNetwork()
        with trio.fail_after(600):
            async with (
                hoststack.open_stack(link=network.link(SERVER), config=config) as server,
                hoststack.open_stack(link=network.link(CLIENT), config=config) as client,
            ):
                await main(server, client)  # type: ignore[misc]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_application_has_so_many_sessions_and_no_more() -> None:
    async def main(server: hoststack.EmbeddedStack, client: hoststack.EmbeddedStack) -> None:
        async with (
            trio.open_nursery() as nursery,
            attached([client], limits=Limits(sessions=4)) as limited,
        ):
            serve = partial_serve(server)
            await nursery.start(serve)
            async with (
                limited.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as one,
                limited.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as other,
            ):
                first = await one.open_stream()
                await other.open_stream()
                with pytest.raises(OSError, match="as many sessions as it may have") as caught:
                    await one.open_stream()
                assert caught.value.errno == errno.EMFILE
                with pytest.raises(hoststack.ConnectError, match="raise max-sessions"):
                    async with limited.connect(URI, tls=CLIENT_TLS, alpn=["test"]):
                        raise AssertionError
                with pytest.raises(hoststack.ListenError, match="raise max-sessions"):
                    await limited.listen("quic://10.0.0.2:0", tls=SERVER_TLS, alpn=["test"])
                assert client._worker.layer.refused["max_sessions"] == 3
                # What ends makes room.
                await first.send_all(b"x")
                await first.send_eof()
                assert await first.receive_some() == b"x"
                assert await first.receive_some() == b""
                await first.aclose()
                await trio.sleep(1)
                assert await ask(one, b"again") == b"again"
            nursery.cancel_scope.cancel()

    on_two_stacks(main)


def partial_serve(
    stack: hoststack.Stack,
) -> Callable[[trio.TaskStatus[hoststack.Listener]], object]:
    async def serve(task_status: trio.TaskStatus[hoststack.Listener]) -> None:
        await stack.serve(URI, _put_up, tls=SERVER_TLS, alpn=["test"], task_status=task_status)

    return serve


async def _put_up(connection: hoststack.Connection) -> None:
    with suppress(trio.BrokenResourceError):
        await echo(connection)


def test_peers_do_not_get_more_either() -> None:
    async def main(server: hoststack.EmbeddedStack, client: hoststack.EmbeddedStack) -> None:
        async with (
            attached([server], limits=Limits(sessions=3)) as limited,
            await limited.listen(URI, tls=SERVER_TLS, alpn=["test"]) as listener,
            client.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as connection,
        ):
            accepted = await listener.accept()
            good, bad = await connection.open_stream(), await connection.open_stream()
            await good.send_all(b"good")
            await trio.sleep(1)
            await bad.send_all(b"bad")
            with pytest.raises(StreamResetError):
                await bad.receive_some()
            async with client.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as another:
                info = await another.wait_closed()
                assert (info.by_peer, info.reason) == (True, "the application accepts no more")
            async for theirs in accepted.streams():
                assert isinstance(theirs, hoststack.Stream)
                assert await theirs.receive_some() == b"good"
                break
            assert server._worker.layer.refused["max_sessions"] == 2

    on_two_stacks(main)


# --- requests that can't be --------------------------------------------------------------------


@contextmanager
def raw_application(
    stack: hoststack.EmbeddedStack,
) -> Iterator[tuple[RemoteApplication, AttachedWorker]]:
    ends, attached_worker = both_ends("raw")
    application = RemoteApplication("raw", ends, Limits(), SEAL, inline)
    stack._worker.attach(application)
    yield application, attached_worker


@pytest.mark.parametrize(
    "requests",
    [
        [encode(m.Connect(1, ("10.0.0.9", 1), "x", CLIENT_TLS, ("x",), None))] * 2,
        [b""],
        [b"\xff"],
        [bytes(70_000)],
        [encode(m.Cancel(1)) + b"x"],
        [encode(m.Closed(1, CloseInfo(0, True, "", True)))],
    ],
    ids=["token twice", "empty", "no kind", "too long", "something behind", "a notice"],
)
def test_who_asks_for_what_can_not_be_is_thrown_out(requests: list[bytes]) -> None:
    async def main(server: hoststack.EmbeddedStack, client: hoststack.EmbeddedStack) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial_serve(server))
            with raw_application(client) as (application, other_end):

                async def run() -> None:
                    await application.run()
                    client._worker.detach(application)

                nursery.start_soon(run)
                for data in requests:
                    with suppress(OSError):
                        other_end._channel._socket.send(data)
                await trio.sleep(1)
            assert application.gone is not None
            assert application not in client._worker.layer.applications
            # Everybody else is served.
            async with client.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as connection:
                assert await ask(connection, b"well") == b"well"
            nursery.cancel_scope.cancel()

    on_two_stacks(main)


@pytest.mark.parametrize(
    "request_",
    [
        m.Unlisten(7),
        m.ReplaceTls(1, 7, SERVER_TLS, ("test",)),
        m.CloseConnection(7, 0, "x" * 4096),
        m.UpdateKey(7),
        m.Migrate(1, 7, None),
        m.GetStatistics(1, 7),
        m.Cancel(99),
        FifosReleased((BlockName(0, 0, 1), BlockName(1 << 31, 0, 1 << 32))),
        m.Connect(1, ("255.255.255.255", 9), "\0", CLIENT_TLS, ("x",), None),
        m.Connect(1, ("10.0.0.1", 4433), "x" * 4096, CLIENT_TLS, ("x" * 300,), None),
        m.Connect(1, ("10.0.0.1", 4433), "x", CLIENT_TLS, (), QuicConfig(congestion_control="x")),
        m.Listen(1, ("10.0.0.77", 1), CLIENT_TLS, ("x",), None),
        m.Listen(1, ("10.0.0.2", 0), CLIENT_TLS, (), None),
    ],
    ids=lambda request: type(request).__name__,
)
def test_what_is_about_nothing_of_its_own_is_refused_or_nothing(
    request_: m.Request | FifosReleased,
) -> None:
    """Handle 7 is the session of another application."""

    def send(other_end: AttachedWorker, handles: list[int]) -> None:
        assert 7 in handles
        other_end._channel._socket.send(encode(request_))

    beside_the_streams_of_another(send)


def rings_of(worker: AttachedWorker) -> Rings:
    assert worker.rings is not None
    return worker.rings


@pytest.mark.parametrize("kind", range(10))
def test_commands_about_nothing_of_its_own_come_to_nothing(kind: int) -> None:
    def write(other_end: AttachedWorker, handles: list[int]) -> None:
        ring = EventRing(RING_ENTRIES, rings_of(other_end).memory)
        for handle in (*handles, *range(100), 1 << 32, (1 << 64) - 1):
            for arg in range(2):
                assert ring.push(handle, kind, arg, (7,))
        other_end._wakes_worker.ring()

    beside_the_streams_of_another(write)


def beside_the_streams_of_another(
    misdeed: Callable[[AttachedWorker, list[int]], None],
) -> None:
    """Those streams go on after it, and it is not thrown out. It gets the handles of that
    application's sessions."""

    async def main(server: hoststack.EmbeddedStack, client: hoststack.EmbeddedStack) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial_serve(server))
            async with client.connect(URI, tls=CLIENT_TLS, alpn=["test"]) as connection:
                streams = [await connection.open_stream() for _ in range(8)]
                with raw_application(client) as (application, other_end):
                    nursery.start_soon(application.run)
                    misdeed(other_end, [connection.handle, *(each.handle for each in streams)])
                    await trio.sleep(15)
                    assert application.gone is None
                    for stream in streams:
                        await stream.send_all(b"x")
                        await stream.send_eof()
                        assert await stream.receive_some() == b"x"
                        await stream.aclose()
            nursery.cancel_scope.cancel()

    on_two_stacks(main)


def test_a_code_that_can_not_be_ends_its_application_alone() -> None:
    async def main(server: hoststack.EmbeddedStack, client: hoststack.EmbeddedStack) -> None:
        with raw_application(client) as (application, other_end):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(application.run)
                ring = EventRing(RING_ENTRIES, rings_of(other_end).memory)
                assert ring.push(7, lib.HS_COMMAND_RESET, 0, (1 << 62,))
                other_end._wakes_worker.ring()
        assert application.gone == "it sent invalid data: a command with a code of 2**62 or more"

    on_two_stacks(main)


# --- the attach socket ----------------------------------------------------------------------


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def connect(daemon: Daemon) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect(daemon.api)
    end.settimeout(PATIENCE_S)
    return end


HELLO = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="raw"))


def test_attaching_a_thousand_times(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    before = descriptors(daemon)
    for _ in range(1000):
        with connect(daemon) as end:
            end.send(HELLO)
            assert isinstance(attaching.decode_answer(end.recv(4096)), attaching.Attached)
    daemon.wait_for(r"raw \(process \d+\) is gone", 1000)
    daemon.wait_for(r"raw-\d+ left", 1000)
    assert descriptors(daemon) <= before + 2
    assert len(os.listdir(f"/proc/{daemon.worker_pid(0)}/fd")) < 64
    is_well(daemon)


def test_more_applications_than_there_may_be(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--max-applications", "3")
    held = [connect(daemon) for _ in range(3)]
    for end in held:
        end.send(HELLO)
        assert isinstance(attaching.decode_answer(end.recv(4096)), attaching.Attached)
    with pytest.raises(AttachError, match="raise max-applications"):
        trio.run(_attach, daemon.api)
    held.pop().close()
    # Not the worker's word, which has no say in who is admitted.
    daemon.wait_for(r"\(process \d+\) is gone")
    trio.run(_attach, daemon.api)
    for end in held:
        end.close()


async def _attach(path: str) -> None:
    async with hoststack.attach(path):
        pass


@pytest.mark.parametrize("data", [b"", b"x", HELLO[:-1], bytes(60_000), HELLO + b"x"])
def test_who_says_nothing_that_makes_sense_is_left(daemon: Daemon, data: bytes) -> None:
    with connect(daemon) as end:
        end.send(data)
        assert end.recv(4096) == b""
    is_well(daemon)


def test_who_attaches_twice_is_thrown_out(daemon: Daemon) -> None:
    with connect(daemon) as end:
        end.send(HELLO)
        end.send(HELLO)
        began = time.monotonic()
        while end.recv(4096):
            assert time.monotonic() - began < PATIENCE_S
    is_well(daemon)


def test_descriptors_are_not_taken(daemon: Daemon) -> None:
    is_well(daemon)
    before = descriptors(daemon)
    with connect(daemon) as end, Path("/dev/null").open() as file:
        socket.send_fds(end, [HELLO], [file.fileno()] * 50)
        assert isinstance(attaching.decode_answer(end.recv(4096)), attaching.Attached)
        # Its own socket, and the ends of what it shares with the workers that are under way.
        assert descriptors(daemon) < before + 40
    is_well(daemon)


def test_those_who_are_silent_do_not_keep_others_out(daemon: Daemon) -> None:
    silent = [connect(daemon) for _ in range(200)]
    is_well(daemon)
    for end in silent:
        end.close()


def test_a_wrong_secret_says_nothing_about_namespaces(daemon: Daemon) -> None:
    daemon.ctl("app ns add id hidden secret right")

    async def refusal(namespace: str) -> str:
        with pytest.raises(AttachError) as caught:
            async with hoststack.attach(daemon.api, namespace=namespace, secret="wrong"):
                raise AssertionError
        return str(caught.value).replace(namespace, "X")

    assert trio.run(refusal, "hidden") == trio.run(refusal, "nosuch")


def test_tls_is_only_what_it_seems(daemon: Daemon) -> None:
    """A certificate without its key, and the like, are said where they are given."""
    with pytest.raises(hoststack.TlsConfigError):
        TlsConfig(certificate=TLS.certificate)
