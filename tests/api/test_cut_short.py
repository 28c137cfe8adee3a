"""What was sent in part never looks complete: an interrupted sender's stream is reset, and a
connection or a stack that an exception ends closes with a code that is not 0."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

import hoststack
from hoststack import (
    ABORTED_CODE,
    Connection,
    SendStream,
    Stream,
    StreamResetError,
    StreamStoppedError,
    TlsConfig,
)
from hoststack.link.memory import MemoryNetwork
from tests.api.conftest import (
    CLIENT,
    SERVER,
    SMALL,
    URI,
    MakePair,
    Pair,
    Transport,
    first_stream,
    run,
)

#: More than the FIFOs hold: its send_all waits for the reader.
LARGE = bytes(100_000)


class _BugError(Exception):
    """A mistake in an application."""


async def how_it_ends(stream: Any) -> int | None:
    """The code of the reset that ends a stream; None for an orderly end."""
    try:
        async for _ in stream:
            pass
    except StreamResetError as error:
        return error.code
    return None


async def time_out_in_a_block(stream: Stream) -> None:
    with trio.move_on_after(1) as scope:
        async with stream:
            await stream.send_all(LARGE)
    assert scope.cancelled_caught


async def raise_in_a_block(stream: Stream) -> None:
    with suppress(_BugError):
        async with stream:
            await stream.send_all(b"the first half")
            raise _BugError


async def cancelled_between_two_parts(stream: Stream) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            await stream.send_all(b"the first half")
            scope.cancel()
            await stream.send_all(b"the second half")


async def close_after_an_interrupted_send(stream: Stream) -> None:
    with trio.move_on_after(1):
        await stream.send_all(LARGE)
    await stream.aclose()


async def close_after_a_part_that_was_not_sent(stream: Stream) -> None:
    await stream.send_all(b"the first half")
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_all(b"the second half")
    await stream.aclose()


async def end_after_an_interrupted_send(stream: Stream) -> None:
    with trio.move_on_after(1):
        await stream.send_all(LARGE)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match=r"was interrupted|reset the stream"):
            await stream.send_eof()


async def close_while_another_task_sends(stream: Stream) -> None:
    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(LARGE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(1)
        await stream.aclose()


async def close_forcefully(stream: Stream) -> None:
    await stream.send_all(b"the first half")
    await trio.aclose_forcefully(stream)


Interrupt = Callable[[Stream], Awaitable[None]]
INTERRUPTIONS: list[Interrupt] = [
    time_out_in_a_block,
    raise_in_a_block,
    cancelled_between_two_parts,
    close_after_an_interrupted_send,
    close_after_a_part_that_was_not_sent,
    end_after_an_interrupted_send,
    close_while_another_task_sends,
    close_forcefully,
]


@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidirectional", "one way"])
def test_the_peer_sees_a_reset(make_pair: MakePair, unidirectional: bool) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            for interrupt in INTERRUPTIONS:
                # Typed as the larger class: what they do both kinds have.
                stream: Any = await (
                    pair.connected.open_stream(unidirectional=True)
                    if unidirectional
                    else pair.connected.open_stream()
                )
                await stream.send_all(b"!")
                theirs = await first_stream(pair.accepted)
                await interrupt(stream)
                assert await how_it_ends(theirs) == ABORTED_CODE, interrupt.__name__

    run(main)


def test_a_message_that_was_ended_is_whole(make_pair: MakePair) -> None:
    """What goes wrong after the end was sent does not take the message back."""

    async def main() -> None:
        async with make_pair() as pair:
            stream = await pair.connected.open_stream()
            with suppress(_BugError):
                async with stream:
                    await stream.send_all(LARGE)
                    await stream.send_eof()
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.send_all(b"too late")
                    raise _BugError
            assert await how_it_ends(await first_stream(pair.accepted)) is None

    run(main)


def test_a_send_that_was_finished_later_is_whole(make_pair: MakePair) -> None:
    """A task that waits for room is no interruption, nor is a second one that had to be told."""

    async def main() -> None:
        async with make_pair(SMALL) as pair:
            stream = await pair.connected.open_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, LARGE)
                await trio.sleep(1)
                with pytest.raises(trio.BusyResourceError):
                    await stream.send_all(b"?")
                theirs = await first_stream(pair.accepted)
                got = 0
                while got < len(LARGE):
                    got += len(await theirs.receive_some())
            await stream.aclose()
            assert await how_it_ends(theirs) is None

    run(main)


def test_a_reader_that_raises_says_so(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            stream = await pair.connected.open_stream(unidirectional=True)
            await stream.send_all(b"!")
            with suppress(_BugError):
                async with await first_stream(pair.accepted):
                    raise _BugError
            with pytest.raises(StreamStoppedError) as caught:
                await stream.send_all(LARGE)
            assert caught.value.code == ABORTED_CODE

    run(main)


async def raise_in_a_connections_block(pair: Pair, connection: Connection) -> None:
    with suppress(_BugError):
        async with connection:
            raise _BugError


async def cancel_a_connections_block(pair: Pair, connection: Connection) -> None:
    with trio.move_on_after(1):
        async with connection:
            await trio.sleep_forever()


async def close_a_connection_forcefully(pair: Pair, connection: Connection) -> None:
    await trio.aclose_forcefully(connection)


async def close_after_a_cut_off_send(pair: Pair, connection: Connection) -> None:
    stream = await connection.open_stream()
    with trio.move_on_after(1):
        await stream.send_all(LARGE)
    await connection.aclose()


async def close_at_once_after_a_cut_off_send(pair: Pair, connection: Connection) -> None:
    stream = await connection.open_stream()
    with trio.move_on_after(1):
        await stream.send_all(LARGE)
    connection.close_now()


@pytest.mark.parametrize(
    "end",
    [
        raise_in_a_connections_block,
        cancel_a_connections_block,
        close_a_connection_forcefully,
        close_after_a_cut_off_send,
        close_at_once_after_a_cut_off_send,
    ],
)
def test_a_connection_that_is_cut_off_has_a_code(
    make_pair: MakePair, end: Callable[[Pair, Connection], Awaitable[None]]
) -> None:
    async def main() -> None:
        ours = hoststack.QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=65536)
        async with make_pair(ours, server_config=SMALL) as pair:
            await end(pair, pair.connected)
            with trio.fail_after(60):
                info = await pair.accepted.wait_closed()
            assert (info.code, info.is_application, info.by_peer) == (ABORTED_CODE, True, True)

    run(main)


def test_what_the_peer_has_not_taken_by_the_end_is_cut_off(
    make_pair: MakePair, transport: Transport
) -> None:
    """The end was sent, but the peer has not room for all, and gets no more."""

    async def main() -> None:
        ours = hoststack.QuicConfig(rx_fifo_bytes=65536, tx_fifo_bytes=65536)
        async with make_pair(ours, server_config=SMALL) as pair:
            stream = await pair.connected.open_stream()
            # What is in a FIFO of cut-through has arrived.
            fits = transport == "cut-through"
            await stream.send_all(bytes(4000 if fits else 8000))
            await stream.send_eof()
            await pair.connected.aclose()
            with trio.fail_after(60):
                info = await pair.accepted.wait_closed()
            assert info.code == (0 if fits else ABORTED_CODE)

    run(main)


def test_a_code_of_ones_own_stays(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(SMALL) as pair:
            with suppress(_BugError):
                async with pair.connected as connection:
                    stream = await connection.open_stream()
                    with trio.move_on_after(1):
                        await stream.send_all(LARGE)
                    await connection.aclose(7, "enough")
                    raise _BugError
            info = await pair.accepted.wait_closed()
            assert (info.code, info.reason) == (7, "enough")

    run(main)


async def _return(connection: Connection) -> None:
    await first_stream(connection)


async def _raise(connection: Connection) -> None:
    await first_stream(connection)
    raise _BugError


async def _break(connection: Connection) -> None:
    await first_stream(connection)
    raise trio.BrokenResourceError("as if the peer had done it")


async def _wait(connection: Connection) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "code"),
    [(_return, 0), (_raise, ABORTED_CODE), (_break, ABORTED_CODE), (_wait, ABORTED_CODE)],
)
def test_the_code_of_a_handlers_end(
    make_pair: MakePair, handler: Callable[[Connection], Awaitable[None]], code: int
) -> None:
    uri = f"quic://{SERVER}:5001"

    async def serve(pair: Pair) -> None:
        tls = TlsConfig.self_signed(["localhost"])
        try:
            with trio.move_on_after(5):
                await pair.server.serve(uri, handler, tls=tls, alpn=["test"])
        except* _BugError:
            assert handler is _raise

    async def main() -> None:
        async with make_pair() as pair, trio.open_nursery() as nursery:
            nursery.start_soon(serve, pair)
            await trio.testing.wait_all_tasks_blocked()
            async with pair.client.connect(
                uri, tls=TlsConfig(verify=False), alpn=["test"]
            ) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"!")
                info = await connection.wait_closed()
            assert (info.code, info.by_peer) == (code, True)

    run(main)


@pytest.mark.parametrize("ends", ["stack", "application"])
@pytest.mark.parametrize("how", ["raised", "cancelled"])
def test_a_stack_that_an_exception_ends_aborts_its_connections(ends: str, how: str) -> None:
    async def connect_and_end(stack: hoststack.Stack) -> None:
        # Not in a block: the stack's end is the one that counts.
        connecting = stack.connect(URI, tls=TlsConfig(verify=False), alpn=["test"])
        connection = await connecting.__aenter__()
        stream: SendStream = await connection.open_stream()
        await stream.send_all(b"half of it")
        if how == "raised":
            raise _BugError
        await trio.sleep_forever()

    async def client(network: MemoryNetwork) -> None:
        async with hoststack.open_stack(link=network.link(CLIENT)) as stack:
            if ends == "stack":
                await connect_and_end(stack)
            try:
                with trio.move_on_after(1):
                    async with stack.application("client") as application:
                        await connect_and_end(application)
            except _BugError:
                pass
            await trio.sleep_forever()

    async def main() -> None:
        network = MemoryNetwork()
        tls = TlsConfig.self_signed(["localhost"])
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            await server.listen(URI, tls=tls, alpn=["test"]) as listener,
            trio.open_nursery() as nursery,
        ):

            async def run_client() -> None:
                try:
                    with trio.move_on_after(1 if ends == "stack" else 60):
                        await client(network)
                except _BugError:
                    pass

            nursery.start_soon(run_client)
            accepted = await listener.accept()
            with trio.fail_after(30):
                info = await accepted.wait_closed()
            assert (info.code, info.by_peer) == (ABORTED_CODE, True)
            nursery.cancel_scope.cancel()

    run(main)
