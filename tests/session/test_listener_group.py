"""Several members of an application group on one endpoint."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, Listener, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork

pytestmark = pytest.mark.usefixtures("engine")

TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"


def play(script: Callable[[Stack, Stack], Awaitable[None]]) -> None:
    """Run `script` with the stacks of a server and a client."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
        ):
            with trio.fail_after(600):
                await script(server, client)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def who_gets_it(client: Stack, listeners: list[Listener]) -> int:
    """Connect; which of the listeners accepts."""
    got: list[int] = []

    async def wait(index: int, scope: trio.CancelScope) -> None:
        async with await listeners[index].accept():
            got.append(index)
        scope.cancel()

    async with client.connect(URI, tls=TRUSTING, alpn=["test"]), trio.open_nursery() as nursery:
        for index in range(len(listeners)):
            nursery.start_soon(wait, index, nursery.cancel_scope)
    assert len(got) == 1
    return got[0]


@pytest.mark.parametrize("scope", ["global", "local"])
def test_members_get_connections_in_turns(scope: str) -> None:
    async def script(server: Stack, client: Stack) -> None:
        async with AsyncExitStack() as stack:
            members = [
                await stack.enter_async_context(
                    server.application("web", scopes=[scope], shares_listeners=True)  # type: ignore[list-item]
                )
                for _ in range(3)
            ]
            if scope == "local":
                client = await stack.enter_async_context(server.application("c", scopes=["local"]))
            listeners = [await member.listen(URI, tls=TLS, alpn=["test"]) for member in members]
            assert [await who_gets_it(client, listeners) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
            # One that goes leaves the others, and its connections are its own.
            async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                accepted = await listeners[1].accept()
                await listeners[1].aclose()
                left = [listeners[0], listeners[2]]
                assert sorted([await who_gets_it(client, left) for _ in range(4)]) == [0, 0, 1, 1]
                await is_alive(connection, accepted)
            # It may come back, also the application that was the first one.
            await listeners[0].aclose()
            assert await who_gets_it(client, [listeners[2]]) == 0
            back = [listeners[2], await members[0].listen(URI, tls=TLS, alpn=["test"])]
            assert sorted([await who_gets_it(client, back) for _ in range(4)]) == [0, 0, 1, 1]
            for listener in back:
                await listener.aclose()
            # The endpoint is free for others, once the worker has heard of it.
            await trio.testing.wait_all_tasks_blocked()
            await (await server.listen(URI, tls=TLS, alpn=["test"])).aclose()

    play(script)


async def is_alive(connection: Connection, accepted: Connection) -> None:
    stream = await connection.open_stream()
    await stream.send_all(b"x")
    async for theirs in accepted.streams():
        assert await theirs.receive_some() == b"x"
        break


def test_a_member_that_is_gone_gets_nothing() -> None:
    async def script(server: Stack, client: Stack) -> None:
        async with server.application("web", shares_listeners=True) as one:
            listener = await one.listen(URI, tls=TLS, alpn=["test"])
            async with server.application("web", shares_listeners=True) as two:
                await two.listen(URI, tls=TLS, alpn=["test"])
            for _ in range(3):
                assert await who_gets_it(client, [listener]) == 0

    play(script)


@pytest.mark.parametrize(
    ("name", "namespace", "shares"),
    [("other", "default", True), ("web", "blue", True), ("web", "default", False)],
)
def test_who_is_not_of_the_group_is_refused(name: str, namespace: str, shares: bool) -> None:
    async def script(server: Stack, client: Stack) -> None:
        server.namespaces.add("blue", "")
        async with (
            server.application("web", shares_listeners=True) as one,
            server.application(name, namespace=namespace, shares_listeners=shares) as two,
        ):
            listener = await one.listen(URI, tls=TLS, alpn=["test"])
            with pytest.raises(hoststack.ListenError) as caught:
                await two.listen(URI, tls=TLS, alpn=["test"])
            assert caught.value.errno == errno.EADDRINUSE
            assert await who_gets_it(client, [listener]) == 0

    play(script)
