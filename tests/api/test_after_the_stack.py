"""Objects that a program still has when their stack has ended: they raise, and no task waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import hoststack
from hoststack import Connection, ConnectionClosedError, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.native.session._session import lib
from tests.api.conftest import CLIENT, SERVER, SMALL, URI, MakePair, Transport, first_stream, run

CLEAN = (trio.BrokenResourceError, trio.ClosedResourceError)


async def _reset(stream: Any) -> None:
    stream.reset(1)
    stream.stop_sending(1)


USES: dict[str, Callable[[Connection, Any], Awaitable[Any]]] = {
    "receive_some": lambda connection, stream: stream.receive_some(),
    "receive_into": lambda connection, stream: stream.receive_into(bytearray(9)),
    "wait_writable": lambda connection, stream: stream.wait_send_all_might_not_block(),
    "send_all": lambda connection, stream: stream.send_all(bytes(100_000)),
    "wait_acknowledged": lambda connection, stream: stream.wait_acknowledged(),
    "send_eof": lambda connection, stream: stream.send_eof(),
    "reset": lambda connection, stream: _reset(stream),
    "aclose": lambda connection, stream: stream.aclose(),
    "statistics": lambda connection, stream: connection.statistics(),
    "open_stream": lambda connection, stream: connection.open_stream(),
    "aclose_connection": lambda connection, stream: connection.aclose(),
    "wait_closed": lambda connection, stream: connection.wait_closed(),
}


async def use_all(connection: Connection, stream: Any) -> None:
    for name, use in USES.items():
        try:
            with trio.fail_after(1):
                await use(connection, stream)
        except CLEAN:
            assert name not in ("reset", "aclose", "aclose_connection", "wait_closed")


def test_what_is_used_after_its_stack(make_pair: MakePair) -> None:
    async def main() -> None:
        async with make_pair(config=SMALL) as pair:
            stream = await pair.connected.open_stream()
            await stream.send_all(b"a")
            theirs = await first_stream(pair.accepted)
        await use_all(pair.connected, stream)
        await use_all(pair.accepted, theirs)

    run(main)


@pytest.mark.parametrize("use", ["receive_some", "send_all", "wait_acknowledged", "wait_closed"])
def test_no_task_waits_for_a_stack_that_failed(use: str) -> None:
    """The tasks are outside its block, as those of a `handler_nursery` may be."""
    network = MemoryNetwork()
    tls = TlsConfig.self_signed([SERVER])

    async def wait(connection: Connection, stream: Any) -> None:
        with trio.fail_after(10):
            if use == "wait_closed":
                assert (await connection.wait_closed()).code
            else:
                with pytest.raises(ConnectionClosedError):
                    await USES[use](connection, stream)
            await use_all(connection, stream)

    def fail(events: object) -> bool:
        raise RuntimeError("broken")

    async def fail_while_a_task_waits(outside: trio.Nursery) -> None:
        async with (
            hoststack.open_stack(link=network.link(SERVER), config=SMALL) as server,
            await server.listen(URI, tls=tls, alpn=["test"]),
            hoststack.open_stack(link=network.link(CLIENT), config=SMALL) as client,
        ):
            connecting = client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"])
            connection = await connecting.__aenter__()
            stream = await connection.open_stream()
            outside.start_soon(wait, connection, stream)
            await trio.testing.wait_all_tasks_blocked()
            client._worker.layer.give_to_applications = fail  # type: ignore[method-assign]
            client._worker.wake()
            await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as outside:
            with pytest.raises(BaseExceptionGroup) as caught:
                await fail_while_a_task_waits(outside)
            assert caught.value.split(RuntimeError)[1] is None

    run(main)


def test_a_stack_that_has_ended_refuses_calls(make_pair: MakePair) -> None:
    tls = TlsConfig.self_signed([SERVER])

    async def wait_for_silence(stack: hoststack.Stack) -> None:
        with trio.fail_after(5), pytest.raises(hoststack.ConnectError):
            async with stack.connect(
                "quic://10.0.0.9:1", tls=TlsConfig(verify=False), alpn=["test"]
            ):
                pass

    async def main() -> None:
        async with trio.open_nursery() as outside:
            async with make_pair() as pair:
                pair.network.link("10.0.0.9")  # it does not answer
                outside.start_soon(wait_for_silence, pair.client)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                with pytest.raises(hoststack.ListenError):
                    await pair.server.listen(f"quic://{SERVER}:1", tls=tls, alpn=["test"])
                await wait_for_silence(pair.client)

    run(main)


def test_each_task_that_waits_for_a_stream_hears_that_there_is_no_room(
    make_pair: MakePair, transport: Transport
) -> None:
    if transport == "attached":
        pytest.skip("its worker opens the streams")
    config = hoststack.QuicConfig(max_streams_bidi=1, idle_timeout_s=0)

    async def main() -> None:
        async with make_pair(config=config) as pair, trio.open_nursery() as nursery:
            failed: list[int | None] = []

            async def open_one() -> None:
                try:
                    await pair.connected.open_stream()
                except OSError as error:
                    failed.append(error.errno)

            stream = await pair.connected.open_stream()
            for _ in range(3):
                nursery.start_soon(open_one)
            await trio.testing.wait_all_tasks_blocked()
            application: Any = pair.client._router._application
            lib.hs_application_set_max(application.streams, 1)
            async with stream:
                await stream.send_eof()
                theirs = await first_stream(pair.accepted)
                await theirs.receive_some()
                await theirs.aclose()
                await stream.receive_some()
            await trio.sleep(1)
            assert len(failed) == 3
            nursery.cancel_scope.cancel()

    run(main)
