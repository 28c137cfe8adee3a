"""SIGTERM under load: what has time to end does, and all other peers are told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio

import hoststack
from hoststack import Connection, QuicConfig, Stack
from hoststack.quic.seam import CloseInfo
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.daemon.echoing import TLS, TRUSTING
from tests.daemon.test_af_xdp import client_on, daemon_on
from tests.support.netns import veth_pair

#: Each from a port of its own, so that all workers have some.
ENDLESS = 6
CHUNK = bytes(50_000)
#: Between chunks of an endless one: its load is none of the processor.
PAUSE_S = 0.02
#: Of a whole download, by engine; longer than what is under way at once, and no longer than there
#: is time for beside the endless ones.
WHOLE_CHUNKS = {"native": 60, "aioquic": 20}
DRAIN = ("--drain-seconds", "4")
#: A peer that is not told would find out by this, later than any test waits.
CONFIG = QuicConfig(idle_timeout_s=10 * PATIENCE_S)

OpenClient = Callable[[], AbstractAsyncContextManager[Stack]]


async def serve(connection: Connection) -> None:
    """As many chunks as the peer asks for on a stream; 0 is without end."""
    async for stream in connection.streams():
        assert isinstance(stream, hoststack.Stream)
        async with stream:
            chunks = int(b"".join([data async for data in stream]))
            for _ in range(chunks):
                await stream.send_all(CHUNK)
            while not chunks:
                await stream.send_all(CHUNK)
                await trio.sleep(PAUSE_S)


class Client:
    def __init__(self, uri: str, chunks: int) -> None:
        self._uri = uri
        self._chunks = chunks
        self.received = 0
        self.has_begun = trio.Event()
        self.close_info: CloseInfo | None = None

    async def run(self, open_client: OpenClient) -> None:
        async with (
            open_client() as stack,
            stack.connect(self._uri, tls=TRUSTING, alpn=["test"], config=CONFIG) as connection,
        ):
            stream = await connection.open_stream()
            await stream.send_all(str(self._chunks).encode())
            await stream.send_eof()
            try:
                async for data in stream:
                    self.received += len(data)
                    if self.received >= len(CHUNK):
                        self.has_begun.set()
            except trio.BrokenResourceError:
                self.close_info = connection.close_info


def drain(daemon: Daemon, host: str, open_client: OpenClient, chunks: int) -> None:
    async def serve_to_the_end(
        server: Stack, *, task_status: trio.TaskStatus[hoststack.Listener]
    ) -> None:
        with pytest.raises(trio.BrokenResourceError, match="gone: the daemon has ended"):
            await server.serve(
                f"quic://{host}:0",
                serve,
                tls=TLS,
                alpn=["test"],
                config=CONFIG,
                task_status=task_status,
            )

    async def main() -> None:
        async with hoststack.attach(daemon.api) as server, trio.open_nursery() as serving:
            listener = await serving.start(serve_to_the_end, server)
            uri = f"quic://{host}:{listener.local[1]}"
            whole = Client(uri, chunks)
            endless = [Client(uri, 0) for _ in range(ENDLESS)]
            async with trio.open_nursery() as nursery:
                for client in (*endless, whole):
                    nursery.start_soon(client.run, open_client)
                    await client.has_begun.wait()
                daemon.process.send_signal(signal.SIGTERM)
                before = [client.received for client in endless]
            assert whole.close_info is None
            assert whole.received == chunks * len(CHUNK)
            for client, received in zip(endless, before, strict=True):
                assert client.received > received + len(CHUNK)  # while it drained
                info = client.close_info
                assert info is not None
                assert (info.code, info.by_peer, info.reason) == (0, True, "the server ends")

    async def in_time() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    trio.run(in_time)
    assert daemon.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("engine", ["native", "aioquic"])
def test_over_sockets(engine: str) -> None:
    with run_daemon("--workers", "2", "--engine", engine, *DRAIN) as daemon:
        open_client = partial(hoststack.open_stack, link="udp", engine="native")
        drain(daemon, "127.0.0.1", open_client, WHOLE_CHUNKS[engine])


@pytest.mark.needs_root
def test_over_af_xdp() -> None:
    with veth_pair(queues=2) as pair, daemon_on(pair.a, *DRAIN) as daemon:
        drain(daemon, pair.a.ipv4, partial(client_on, pair.b), WHOLE_CHUNKS["native"])


@pytest.mark.parametrize(
    "words",
    [
        ("apps.quic_echo", "socket-name", "API", "server", "uri", "quic://127.0.0.1:0"),
        ("apps.http3_server", "--socket", "API", "--root", "docs", "quic://127.0.0.1:0"),
    ],
    ids=["quic_echo", "http3_server"],
)
def test_a_program_whose_daemon_ends_says_so_in_a_line(words: tuple[str, ...]) -> None:
    with run_daemon() as daemon:
        line = [sys.executable, "-m", *(daemon.api if word == "API" else word for word in words)]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as program:
            try:
                assert program.stdout is not None
                while "listening on" not in program.stdout.readline():
                    assert program.poll() is None
                daemon.process.send_signal(signal.SIGTERM)
                said, _ = program.communicate(timeout=PATIENCE_S)
            finally:
                program.kill()
    assert program.returncode == 1
    name = words[0].rpartition(".")[2]
    assert said == f"{name}: this listener is gone: the daemon has ended\n"
