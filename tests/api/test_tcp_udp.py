"""tcp:// and udp:// on the trio API: the kernel's sockets behind the same streams and datagrams, in
the stack's own loop and attached to it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import (
    ConnectError,
    Connection,
    ConnectionClosedError,
    MigrationError,
    QuicConfig,
    Stack,
    Stream,
    TcpConfig,
    TlsConfig,
    UdpConfig,
)
from hoststack.api import racing
from hoststack.api.router import Router
from tests.api.conftest import first_stream
from tests.support.attached import attached

PATIENCE_S = 120
HOSTS = ["127.0.0.1", "[::1]"]
_MORE_THAN_BUFFERS_HOLD = 64 << 20


@pytest.fixture(autouse=True)
def _on_each_engine() -> None:
    """No engine has a part in this: once is enough."""


@pytest.fixture(params=["embedded", "attached"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on_stack(kind: str) -> Callable[[Callable[[Stack], Awaitable[None]]], None]:
    """Runs a test with a stack; real sockets want real time."""

    async def bounded(test: Callable[[Stack], Awaitable[None]]) -> None:
        with trio.fail_after(PATIENCE_S):
            async with AsyncExitStack() as undo:
                stack = await undo.enter_async_context(hoststack.open_stack(link="udp"))
                if kind == "attached":
                    await test(await undo.enter_async_context(attached([stack])))
                else:
                    await test(stack)

    return lambda test: trio.run(bounded, test)


OnStack = Callable[[Callable[[Stack], Awaitable[None]]], None]


@asynccontextmanager
async def pair(
    stack: Stack, config: TcpConfig | None = None, host: str = HOSTS[0]
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Both ends of a TCP connection: who listens, who connects."""
    async with (
        await stack.listen(f"tcp://{host}:0", config=config) as listener,
        stack.connect(f"tcp://{host}:{listener.local[1]}", config=config) as connected,
        await listener.accept() as accepted,
    ):
        assert accepted.remote == connected.local
        assert connected.remote == accepted.local
        yield accepted, connected


async def streams(accepted: Connection, connected: Connection) -> tuple[Stream, Stream]:
    ours = await connected.open_stream()
    theirs = await first_stream(accepted)
    return ours, theirs


@pytest.mark.parametrize("host", HOSTS)
def test_a_transfer_both_ways(on_stack: OnStack, host: str) -> None:
    data = os.urandom(5_000_000)

    async def main(stack: Stack) -> None:
        async with pair(stack, host=host) as ends:
            ours, theirs = await streams(*ends)

            async def send(stream: Stream) -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async def check(stream: Stream) -> None:
                assert b"".join([chunk async for chunk in stream]) == data

            async with trio.open_nursery() as nursery:
                for stream in (ours, theirs):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(check, stream)
            # Both ways are over, and so is the connection.
            for end in ends:
                assert (await end.wait_closed()).code == 0

    on_stack(main)


def test_half_closeable_stream(on_stack: OnStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "calls_in_a_row", 1)
    config = TcpConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

    async def main(stack: Stack) -> None:
        async with AsyncExitStack() as undo:

            async def fresh() -> tuple[Stream, Stream]:
                return await streams(*await undo.enter_async_context(pair(stack, config)))

            await trio.testing.check_half_closeable_stream(fresh, None)

    on_stack(main)


def test_backpressure(on_stack: OnStack) -> None:
    """Who does not read holds the other one up, when FIFOs and the kernel's buffers are full."""
    config = TcpConfig(rx_fifo_bytes=4096, tx_fifo_bytes=4096)

    async def main(stack: Stack) -> None:
        async with pair(stack, config) as ends:
            ours, theirs = await streams(*ends)
            assert (await ends[0].statistics())["rx_bytes"] == 0
            sent, is_enough = 0, False

            async def send() -> None:
                nonlocal sent
                async with ours:
                    while not is_enough:
                        await ours.send_all(bytes(65536))
                        sent += 65536

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(0.5)
                assert 0 < sent < _MORE_THAN_BUFFERS_HOLD
                is_enough = True
                got = 0
                async for chunk in theirs:
                    got += len(chunk)
            assert got == sent

    on_stack(main)


def test_with_somebody_elses_sockets(on_stack: OnStack) -> None:
    async def main(stack: Stack) -> None:
        listener = await stack.listen("tcp://127.0.0.1:0")
        theirs = await trio.open_tcp_stream(*listener.local)
        async with theirs, await listener.accept() as connection:
            # There need be no byte before it is there.
            ours = await first_stream(connection)
            await ours.send_all(b"first")
            assert await theirs.receive_some() == b"first"
            await theirs.send_eof()
            assert await ours.receive_some() == b""
            await ours.send_all(b"still open this way")
            assert await theirs.receive_some() == b"still open this way"
            await ours.send_eof()
            info = await connection.wait_closed()
            assert (info.code, info.reason) == (0, "")
        await listener.aclose()
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream(*listener.local)

    on_stack(main)


def test_a_reset_is_told_as_one(on_stack: OnStack) -> None:
    async def main(stack: Stack) -> None:
        async with await stack.listen("tcp://127.0.0.1:0") as listener:
            peer = await trio.open_tcp_stream(*listener.local)
            async with await listener.accept() as connection:
                ours = await first_stream(connection)
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await peer.aclose()
                with pytest.raises(ConnectionClosedError) as caught:
                    await ours.receive_some()
                assert caught.value.code == errno.ECONNRESET
                assert caught.value.by_peer
            # And the other way: a code, which TCP can't carry, makes a reset of a close.
            peer = await trio.open_tcp_stream(*listener.local)
            connection = await listener.accept()
            await connection.aclose(7, "enough")
            with pytest.raises(trio.BrokenResourceError):
                await peer.receive_some()
            await peer.aclose()

    on_stack(main)


def test_what_was_sent_before_a_close_arrives(on_stack: OnStack) -> None:
    data = os.urandom(2_000_000)

    async def main(stack: Stack) -> None:
        async with await stack.listen("tcp://127.0.0.1:0") as listener:
            peer = await trio.open_tcp_stream(*listener.local)
            async with await listener.accept() as connection:
                ours = await first_stream(connection)
                await ours.send_all(data)
            got = bytearray()
            async with peer:
                async for chunk in peer:
                    got += chunk
            assert got == data

    on_stack(main)


class _Two(trio.abc.HostnameResolver):
    """Two addresses of this machine."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, kind, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, kind, 6, "", ("127.0.0.1", port)),
        ]

    async def getnameinfo(self, *_: Any) -> tuple[str, str]:
        raise NotImplementedError


def test_where_one_address_refuses_the_next_is_tried_at_once(
    on_stack: OnStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(racing, "ATTEMPT_DELAY_S", 2 * PATIENCE_S)

    async def main(stack: Stack) -> None:
        trio.socket.set_custom_hostname_resolver(_Two())
        async with await stack.listen("tcp://127.0.0.1:0") as listener:
            uri = f"tcp://two.example:{listener.local[1]}"
            async with stack.connect(uri) as connection:
                assert connection.remote == listener.local
        with pytest.raises(ConnectError) as caught:
            async with stack.connect(uri):
                pytest.fail("nobody listens there any more")
        assert caught.value.errno == errno.ECONNREFUSED
        assert "::1 port" in str(caught.value)
        assert "127.0.0.1 port" in str(caught.value)

    on_stack(main)


async def time_out_in_a_block(connection: Connection) -> None:
    with trio.move_on_after(0.05):
        async with await first_stream(connection) as stream:
            await stream.send_all(bytes(_MORE_THAN_BUFFERS_HOLD))


async def end_after_an_interrupted_send(connection: Connection) -> None:
    stream = await first_stream(connection)
    with trio.move_on_after(0.05):
        await stream.send_all(bytes(_MORE_THAN_BUFFERS_HOLD))
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_eof()


async def close_the_connection_after_an_interrupted_send(connection: Connection) -> None:
    stream = await first_stream(connection)
    with trio.move_on_after(0.05):
        await stream.send_all(bytes(_MORE_THAN_BUFFERS_HOLD))
    await connection.aclose()


async def raise_in_the_connections_block(connection: Connection) -> None:
    with suppress(ZeroDivisionError):
        async with connection:
            await (await first_stream(connection)).send_all(b"half of it")
            raise ZeroDivisionError


@pytest.mark.parametrize(
    "interrupt",
    [
        time_out_in_a_block,
        end_after_an_interrupted_send,
        close_the_connection_after_an_interrupted_send,
        raise_in_the_connections_block,
    ],
)
def test_what_is_cut_off_is_reset(
    on_stack: OnStack, interrupt: Callable[[Connection], Awaitable[None]]
) -> None:
    async def main(stack: Stack) -> None:
        async with (
            await stack.listen("tcp://127.0.0.1:0") as listener,
            await trio.open_tcp_stream(*listener.local) as peer,
        ):
            await interrupt(await listener.accept())
            with pytest.raises(trio.BrokenResourceError):
                async for _ in peer:
                    pass

    on_stack(main)


def test_a_process_that_dies_resets_its_connections() -> None:
    """The kernel closes its sockets, and must not say that this was all."""
    program = """
import os, trio, hoststack
async def main():
    async with hoststack.open_stack(link="udp") as stack:
        async with await stack.listen("tcp://127.0.0.1:0") as listener:
            print(listener.local[1], flush=True)
            async for stream in (await listener.accept()).streams():
                await stream.send_all(b"half of it")
                assert await stream.receive_some() == b"got it"
                os._exit(1)
trio.run(main)
"""

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", program], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            port = int(await process.stdout.receive_some())
            async with await trio.open_tcp_stream("127.0.0.1", port) as peer:
                assert await peer.receive_some() == b"half of it"
                await peer.send_all(b"got it")
                with pytest.raises(trio.BrokenResourceError):
                    await peer.receive_some()
            await process.wait()

    trio.run(main)


def test_what_tcp_has_not(on_stack: OnStack) -> None:
    async def main(stack: Stack) -> None:
        async with pair(stack) as (_, connected):
            with pytest.raises(OSError, match="tcp has no unidirectional streams"):
                await connected.open_stream(unidirectional=True)
            await connected.open_stream()
            with pytest.raises(OSError, match="one stream"):
                await connected.open_stream()
            with pytest.raises(ValueError, match="datagram"):
                await connected.receive_datagram()
            with pytest.raises(MigrationError, match="only QUIC connections can migrate"):
                await connected.migrate()

    on_stack(main)


def test_connects_that_fail(on_stack: OnStack) -> None:
    async def main(stack: Stack) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(ConnectError, match="Connection refused") as caught:
                async with stack.connect(f"tcp://127.0.0.1:{port}"):
                    pass
            assert caught.value.errno == errno.ECONNREFUSED
            with pytest.raises(OSError, match="in use"):
                await stack.listen(f"tcp://127.0.0.1:{port}")
        with pytest.raises(OSError, match=r"192\.0\.2\.1"):
            await stack.listen("tcp://192.0.2.1:0")
        tls = TlsConfig(verify=False)
        with pytest.raises(OSError, match="tcp has no TLS here"):
            async with stack.connect("tcp://127.0.0.1:1", tls=tls, alpn=["test"]):
                pass

    on_stack(main)


@pytest.mark.parametrize("host", HOSTS)
def test_datagrams(on_stack: OnStack, host: str) -> None:
    async def main(stack: Stack) -> None:
        async with await stack.listen(f"udp://{host}:0") as listener:
            where = f"udp://{host}:{listener.local[1]}"
            async with stack.connect(where) as one, stack.connect(where) as other:
                await one.send_datagram(b"one")
                to_one = await listener.accept()
                await other.send_datagram(b"")
                to_other = await listener.accept()
                assert to_one.remote == one.local
                assert await to_one.receive_datagram() == b"one"
                assert await to_other.receive_datagram() == b""
                for size in (0, 1, 1000, 65507):
                    await to_other.send_datagram(bytes(size))
                    assert await other.receive_datagram() == bytes(size)
                with pytest.raises(ValueError, match="65507"):
                    await one.send_datagram(bytes(65508))
                with pytest.raises(OSError, match="udp has no streams"):
                    await one.open_stream()
            # Connections of a listener that is gone live on.
            await listener.aclose()
            async with stack.connect(where) as again:
                await again.send_datagram(b"nobody takes this")
                with trio.move_on_after(0.05):
                    await again.receive_datagram()

    on_stack(main)


def test_nobody_is_there(on_stack: OnStack) -> None:
    """An ICMP message ends a connection of ours, which is as near as UDP comes to a refusal."""

    async def main(stack: Stack) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            port = gone.getsockname()[1]
        async with stack.connect(f"udp://127.0.0.1:{port}") as connection:
            await connection.send_datagram(b"hello?")
            with pytest.raises(ConnectionClosedError) as caught:
                await connection.receive_datagram()
            assert caught.value.code == errno.ECONNREFUSED

    on_stack(main)


def test_rules_and_scopes() -> None:
    async def main() -> None:
        async with hoststack.open_stack(link="udp") as stack:
            stack.rules.add("proto tcp 0.0.0.0/0 0 127.0.0.2/32 0 action deny")
            stack.rules.add("proto udp 0.0.0.0/0 0 127.0.0.2/32 0 action deny")
            for scheme in ("tcp", "udp"):
                async with await stack.listen(f"{scheme}://0.0.0.0:0") as listener:
                    with pytest.raises(ConnectError, match="a session rule forbids it"):
                        async with stack.connect(f"{scheme}://127.0.0.2:{listener.local[1]}"):
                            pass
            async with await stack.listen("udp://127.0.0.1:0") as listener:
                kind = socket.AF_INET, socket.SOCK_DGRAM
                with socket.socket(*kind) as denied, socket.socket(*kind) as allowed:
                    denied.bind(("127.0.0.2", 0))
                    denied.sendto(b"x", listener.local)
                    allowed.sendto(b"y", listener.local)
                    accepted = await listener.accept()
                    assert accepted.remote == ("127.0.0.1", allowed.getsockname()[1])
            async with stack.application("inside", scopes=["local"]) as inside:
                for scheme in ("tcp", "udp"):
                    with pytest.raises(OSError, match=f"{scheme} has no local scope"):
                        await inside.listen(f"{scheme}://127.0.0.1:0")

    trio.run(main)


@pytest.mark.parametrize(
    ("scheme", "wrong"), [("tcp", UdpConfig()), ("udp", TcpConfig()), ("udp", QuicConfig())]
)
def test_each_protocol_has_settings_of_its_own(
    on_stack: OnStack, scheme: str, wrong: TcpConfig | UdpConfig | QuicConfig
) -> None:
    async def main(stack: Stack) -> None:
        for using in (stack.listen, stack.open_connection):
            with pytest.raises(TypeError, match=f"{scheme}:// needs a {scheme.capitalize()}Config"):
                await using(f"{scheme}://127.0.0.1:1", config=wrong)

    on_stack(main)
