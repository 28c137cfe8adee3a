"""Applications that attach to one daemon, and connect to each other without packets."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

import hoststack
from hoststack import AttachError, Connection, QuicConfig, Stack, TlsConfig
from hoststack.control.control_client import ControlClient

TLS = TlsConfig.self_signed(["localhost"])
URI = "quic://127.0.0.1:4433"
ROOT = Path(__file__).resolve().parents[2]
#: Longer than any test takes.
PATIENCE_S = 240

Scopes = list[Literal["local", "global"]]


class Daemon:
    """`hoststack run`, and its applications in this process."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    def attach(
        self, name: str, secret: str = "s", scopes: Scopes | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Stack]:
        return hoststack.attach(
            self.path,
            name=name,
            namespace="blue",
            secret=secret,
            scopes=["local"] if scopes is None else scopes,
            **options,
        )


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon over UDP sockets with a namespace "blue", whose secret is "s"."""
    here = tmp_path_factory.mktemp("daemon")
    (here / "run.toml").write_text('[namespaces]\nblue = "s"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(here / "notify"))
        ready.settimeout(PATIENCE_S)
        command = [sys.executable, "-m", "hoststack.cli.main", "run", "--link", "udp"]
        command += ["--workers", str(request.param), "--config", str(here / "run.toml")]
        command += ["--socket", str(here / "api.sock"), "--cli-socket", str(here / "cli.sock")]
        environment = os.environ | {"NOTIFY_SOCKET": str(here / "notify")}
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            assert b"READY=1" in ready.recv(1000)
            yield Daemon(here / "api.sock", process)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def run(script: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            await script()

    trio.run(main)


async def echo(connection: Connection) -> None:
    """Send back what comes on each stream."""

    async def one(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(one, stream)


async def first_stream(connection: Connection) -> Any:
    async for stream in connection.streams():
        return stream
    raise AssertionError("the connection ended instead")


async def round_trip(connection: Connection, data: bytes) -> None:
    stream = await connection.open_stream()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert b"".join([chunk async for chunk in stream]) == data


def test_streams_between_two_applications(daemon: Daemon) -> None:
    async def script() -> None:
        config = QuicConfig(rx_fifo_bytes=16384, max_streams_bidi=8)
        async with (
            daemon.attach("server", config=config) as server,
            daemon.attach("client", config=config) as client,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(
                lambda task_status: server.serve(
                    URI, echo, tls=TLS, alpn=["test"], task_status=task_status
                )
            )
            # With two workers, one after the other.
            for _ in range(2):
                async with client.connect(URI, alpn=["test"]) as connection:
                    assert connection.remote == ("127.0.0.1", 4433)
                    async with trio.open_nursery() as streams:
                        for size in (0, 1, 16384, 16385, 1_000_000, 300_000) * 4:
                            streams.start_soon(
                                round_trip, connection, random.Random(size).randbytes(size)
                            )
                    statistics = await connection.statistics()
                    assert statistics["cut_through"] == 1
                    assert statistics["tx_bytes"] == statistics["rx_bytes"] == 4 * 1_332_770
            nursery.cancel_scope.cancel()

    run(script)


def worker_files(daemon: Daemon) -> list[int]:
    """Open files of each worker."""
    shown = ControlClient(str(daemon.path.parent / "cli.sock")).run("show workers")
    pids = re.findall(r"^ *\d+ +(\d+)", shown, re.MULTILINE)
    assert pids, shown
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def test_many_streams_take_no_descriptor_each_and_all_come_back(daemon: Daemon) -> None:
    many = 300

    async def script() -> None:
        before = worker_files(daemon)
        config = QuicConfig(rx_fifo_bytes=1024, tx_fifo_bytes=1024, max_streams_bidi=many)
        async with daemon.attach("server", config=config) as server:
            async with (
                daemon.attach("client", config=config) as client,
                await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
                client.connect(URI, alpn=["test"]) as connection,
                await listener.accept() as accepted,
            ):
                attached = worker_files(daemon)
                opened = [await connection.open_stream() for _ in range(many)]
                for stream in opened:
                    await stream.send_all(b"x")
                incoming = accepted.streams()
                taken = [await incoming.receive() for _ in range(many)]
                assert all([await stream.receive_some() == b"x" for stream in taken])
                with_streams = worker_files(daemon)
                for one, other in zip(with_streams, attached, strict=True):
                    assert one <= other + 2
            # The server stays attached.
            for stream in taken:
                await stream.aclose()
            del taken, stream
        while worker_files(daemon) != before:
            await trio.lowlevel.checkpoint()  # `run` has a limit

    run(script)


def test_resets_and_the_end_of_a_connection_with_their_codes(daemon: Daemon) -> None:
    async def script() -> None:
        async with (
            daemon.attach("server") as server,
            daemon.attach("client") as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            ours = await connected.open_stream()
            await ours.send_all(b"x")
            theirs = await first_stream(accepted)
            assert await theirs.receive_some() == b"x"
            ours.reset(7)
            with pytest.raises(hoststack.StreamResetError) as reset:
                await theirs.receive_some()
            assert reset.value.code == 7
            ours.stop_sending(8)
            with pytest.raises(hoststack.StreamStoppedError) as stopped:
                await theirs.send_all(bytes(10_000_000))
            assert stopped.value.code == 8
            await accepted.aclose(9, "enough")
            info = await connected.wait_closed()
            assert (info.code, info.reason, info.by_peer) == (9, "enough", True)

    run(script)


def test_datagrams_between_two_applications(daemon: Daemon) -> None:
    async def script() -> None:
        config = QuicConfig(datagram_fifo_bytes=8192)
        async with (
            daemon.attach("server", config=config) as server,
            daemon.attach("client", config=config) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, alpn=["test"]) as connected,
            await listener.accept() as accepted,
            trio.open_nursery() as nursery,
        ):
            messages = [bytes([i % 256]) * (i * 7 % 1400) for i in range(500)]

            async def send() -> None:
                for message in messages:
                    await connected.send_datagram(message)

            nursery.start_soon(send)
            assert [await accepted.receive_datagram() for _ in messages] == messages

    run(script)


def test_who_has_no_secret_is_refused(daemon: Daemon) -> None:
    async def script() -> None:
        for secret, scopes in (("t", ["local"]), ("", ["global"])):
            with pytest.raises(AttachError, match="no namespace") as caught:
                async with daemon.attach("intruder", secret=secret, scopes=scopes):  # type: ignore[arg-type]
                    pytest.fail("it was refused")
            assert caught.value.errno == errno.EACCES
        with pytest.raises(ValueError, match="scopes are"):
            async with daemon.attach("odd", scopes=[]):
                pytest.fail("there is no such scope")
        async with (
            daemon.attach("server") as server,
            hoststack.attach(daemon.path, name="stranger", scopes=["local"]) as stranger,
            await server.listen(URI, tls=TLS, alpn=["test"]),
        ):
            with pytest.raises(hoststack.ConnectError, match="no application listens") as refused:
                async with stranger.connect(URI, alpn=["test"]):
                    pytest.fail("it is in another namespace")
            assert refused.value.errno == errno.ECONNREFUSED

    run(script)


def test_members_of_a_group_get_connections_in_turns(daemon: Daemon) -> None:
    async def script() -> None:
        async with (
            daemon.attach("web", shares_listeners=True) as one,
            daemon.attach("web", shares_listeners=True) as other,
            daemon.attach("client") as client,
            daemon.attach("rival") as rival,
            trio.open_nursery() as nursery,
        ):
            got = [0, 0]

            async def count(index: int, listener: hoststack.Listener) -> None:
                while True:
                    await listener.accept()
                    got[index] += 1

            for index, stack in enumerate((one, other)):
                nursery.start_soon(count, index, await stack.listen(URI, tls=TLS, alpn=["test"]))
            with pytest.raises(hoststack.ListenError):
                await rival.listen(URI, tls=TLS, alpn=["test"])
            for _ in range(8):
                async with client.connect(URI, alpn=["test"]) as connection:
                    stream = await connection.open_stream()
                    await stream.send_all(b"x")
            assert got == [4, 4]
            nursery.cancel_scope.cancel()

    run(script)


#: An application in a process of its own: python -c PEER PATH URI, and what it is to do.
_PEER = """
import sys, trio, hoststack

async def main(path, uri, task):
    async with hoststack.attach(
        path, name="peer", namespace="blue", secret="s", scopes=["local"]
    ) as stack, stack.connect(uri, alpn=["test"]) as connection:
        if task == "sleep":
            stream = await connection.open_stream()
            await stream.send_all(b"here I am")
            await trio.sleep_forever()
        for i in range(int(task)):
            stream = await connection.open_stream()
            await stream.send_all(b"x" * (1 + i % 7))
            await stream.send_eof()
            assert b"".join([chunk async for chunk in stream]) == b"x" * (1 + i % 7)
            await stream.aclose()

trio.run(main, *sys.argv[1:])
"""


def test_many_short_streams_between_processes(daemon: Daemon) -> None:
    """Ends, bytes and wake-ups of two processes and the worker, in all orders."""

    async def script() -> None:
        async with (
            daemon.attach("server") as server,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            command = [sys.executable, "-c", _PEER, str(daemon.path), URI, "1000"]
            peer = await trio.lowlevel.open_process(command, cwd=ROOT)
            try:
                await echo(await listener.accept())
                assert await peer.wait() == 0
            finally:
                peer.kill()

    run(script)


def test_an_application_that_is_killed_closes_its_connections(daemon: Daemon) -> None:
    async def script() -> None:
        async with (
            daemon.attach("server") as server,
            daemon.attach("client") as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            peer = await trio.lowlevel.open_process(
                [sys.executable, "-c", _PEER, str(daemon.path), URI, "sleep"], cwd=ROOT
            )
            try:
                killed = await listener.accept()
                stream = await first_stream(killed)
                assert await stream.receive_some() == b"here I am"
            finally:
                peer.kill()
                await peer.wait()
            with pytest.raises(hoststack.ConnectionClosedError):
                await stream.receive_some()
            assert (await killed.wait_closed()).by_peer
            async with (
                client.connect(URI, alpn=["test"]) as connection,
                await listener.accept() as accepted,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(echo, accepted)
                await round_trip(connection, b"others notice nothing" * 1000)
                nursery.cancel_scope.cancel()

    run(script)
