"""Connections, listeners and stacks in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hoststack import AttachError, ConnectError, ListenError, QuicConfig, TlsConfig, aio
from tests.aio.conftest import ALPN, TLS, TRUSTING, Open, connected, echo, serving
from tests.daemon.conftest import run_daemon

Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_a_name_with_several_addresses(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with open_stack() as stack, serving(stack, echo) as uri:
            port = uri.rpartition(":")[2]
            async with stack.connect(
                f"quic://localhost:{port}", tls=TRUSTING, alpn=ALPN
            ) as connection:
                assert connection.remote == ("127.0.0.1", int(port))
                assert connection.alpn == "test"
                assert (await connection.statistics())["rtt_s"] > 0

    run(main)


def test_errors_are_lines(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with open_stack() as stack, serving(stack, echo) as uri:
            with pytest.raises(ListenError) as taken:
                await stack.listen(uri, tls=TLS, alpn=ALPN)
            assert taken.value.kind == "in use"
            with pytest.raises(ConnectError) as refused:
                await stack.open_connection(uri, tls=TRUSTING, alpn=["another"])
            assert refused.value.kind == "alpn"
            with pytest.raises(ConnectError) as unknown:
                await stack.open_connection("quic://no.such.host.invalid:1", alpn=ALPN)
            assert "no.such.host" in str(unknown.value)

    run(main)


def test_cancelling_a_connect(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with open_stack() as stack:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    # Nobody answers at that address of the loopback network.
                    await stack.open_connection("quic://127.0.0.99:9", tls=TRUSTING, alpn=ALPN)

    run(main)


def test_datagrams(run: Run) -> None:
    config = QuicConfig(datagram_fifo_bytes=1 << 16)

    async def answer(connection: aio.Connection) -> None:
        async for datagram in connection.datagrams():
            await connection.send_datagram(datagram[::-1])

    async def main() -> None:
        async with (
            aio.open_stack(link="udp", config=config) as stack,
            connected(stack, answer) as connection,
        ):
            await connection.send_datagram(b"abc")
            async with asyncio.timeout(10):
                assert await connection.receive_datagram() == b"cba"

    run(main)


def test_a_handler_that_fails_ends_the_server(run: Run, open_stack: Open) -> None:
    async def fail(connection: aio.Connection) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with open_stack() as stack:
            listening: asyncio.Future[aio.Listener] = asyncio.get_running_loop().create_future()
            server = asyncio.create_task(
                stack.serve("quic://127.0.0.1:0", fail, tls=TLS, alpn=ALPN, listening=listening)
            )
            uri = f"quic://127.0.0.1:{(await listening).local[1]}"
            async with stack.connect(uri, tls=TRUSTING, alpn=ALPN) as connection:
                info = await connection.wait_closed()
            assert info.code != 0
            with pytest.raises(ExceptionGroup) as caught:
                await server
            assert caught.group_contains(ZeroDivisionError)

    run(main)


def test_accepting(run: Run, open_stack: Open) -> None:
    async def main() -> None:
        async with (
            open_stack() as stack,
            await stack.listen("quic://127.0.0.1:0", tls=TLS, alpn=ALPN) as listener,
        ):
            accepting = asyncio.create_task(listener.accept())
            uri = f"quic://127.0.0.1:{listener.local[1]}"
            async with stack.connect(uri, tls=TRUSTING, alpn=ALPN) as connection:
                accepted = await accepting
                assert accepted.remote == connection.local
                waiting = asyncio.create_task(listener.accept())
                await asyncio.sleep(0)
                await listener.aclose()
                with pytest.raises(aio.ClosedError):
                    await waiting
                await accepted.aclose(3)

    run(main)


def test_no_daemon(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(AttachError, match="no such socket"):
            async with aio.attach("/nowhere/api.sock"):
                pass

    run(main)


def test_a_daemon_that_ends(run: Run) -> None:
    with run_daemon("--drain-seconds", "0") as daemon:

        async def main() -> None:
            async with aio.attach(daemon.api) as stack, connected(stack, echo) as connection:
                listener = await stack.listen("quic://127.0.0.1:0", tls=TLS, alpn=ALPN)
                stream = await connection.open_stream()
                reading = asyncio.create_task(stream.read())
                accepting = asyncio.create_task(listener.accept())
                await asyncio.to_thread(daemon.stop)
                with pytest.raises(ConnectionError):
                    await reading
                with pytest.raises(aio.BrokenError, match="the daemon has ended"):
                    await accepting
                with pytest.raises(ConnectError) as ended:
                    await stack.open_connection("quic://127.0.0.1:9", tls=TRUSTING, alpn=ALPN)
                assert ended.value.kind == "ended"

        run(main)


def test_what_a_program_holds_comes_back(run: Run) -> None:
    """A daemon has nothing left of a program that has detached."""
    with run_daemon() as daemon:

        async def main() -> None:
            async with aio.attach(daemon.api) as stack, connected(stack, echo) as connection:
                for _ in range(50):
                    stream = await connection.open_stream()
                    stream.write(b"x")
                    await stream.readexactly(1)

        run(main)
        daemon.wait_for("left: ")
        assert "no sessions" in daemon.ctl("show session")


def test_certificates_are_replaced_while_a_listener_listens(run: Run, open_stack: Open) -> None:
    new = TlsConfig.self_signed(["127.0.0.1"])

    async def main() -> None:
        async with (
            open_stack() as stack,
            await stack.listen("quic://127.0.0.1:0", tls=TLS, alpn=ALPN) as listener,
        ):
            uri = f"quic://127.0.0.1:{listener.local[1]}"
            async with stack.connect(uri, tls=TRUSTING, alpn=ALPN):
                await listener.replace_tls(new)
                trusting = TlsConfig(ca=new.certificate)
                async with stack.connect(uri, tls=trusting, alpn=ALPN) as connection:
                    assert connection.peer_certificate == new.chain[0]
            with pytest.raises(ListenError, match="certificate"):
                await listener.replace_tls(TlsConfig())
            await listener.aclose()
            with pytest.raises(aio.ClosedError):
                await listener.replace_tls(new)

    run(main)
