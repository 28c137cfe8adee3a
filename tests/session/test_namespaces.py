"""Namespaces: who is admitted, and who finds whom."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import hoststack
from hoststack import NamespaceError, Stack, TlsConfig
from hoststack.boundary.scope import SCOPES
from hoststack.link.memory import MemoryNetwork
from hoststack.session.namespaces import Namespaces

TLS = TlsConfig.self_signed(["localhost"])
HOST = "10.0.0.1"
URI = f"quic://{HOST}:4433"


def play(script: Callable[[Stack], Awaitable[None]]) -> None:
    """Run `script` with a stack that has a namespace "blue" with the secret "s"."""

    async def main() -> None:
        async with hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack:
            stack.namespaces.add("blue", "s")
            with trio.fail_after(600):
                await script(stack)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def finds(client: Stack, uri: str = URI) -> bool:
    """Whether there is another application at a URI; False as well for a peer in the network."""
    try:
        async with client.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
            return bool((await connection.statistics()).get("cut_through"))
    except hoststack.ConnectError:
        return False


def test_the_default_namespace_is_open_to_all() -> None:
    namespaces = Namespaces()
    assert namespaces.admit("default", "", ["global"]) == {"global"}
    assert namespaces.admit("default", "", ["local", "global"]) == SCOPES
    with pytest.raises(ValueError, match="open to all"):
        namespaces.add("default", "mine")


@pytest.mark.parametrize(("id", "secret"), [("blue", ""), ("blue", "t"), ("red", "s"), ("", "")])
def test_a_wrong_secret_is_refused_as_an_unknown_namespace_is(id: str, secret: str) -> None:
    namespaces = Namespaces()
    namespaces.add("blue", "s")
    with pytest.raises(NamespaceError, match="there is no namespace") as caught:
        namespaces.admit(id, secret, ["local"])
    assert caught.value.errno == errno.EACCES
    assert namespaces.admit("blue", "s", ["local"]) == {"local"}


def test_a_namespace_allows_its_scopes() -> None:
    namespaces = Namespaces()
    namespaces.add("inner", "", ["local"])
    assert namespaces.admit("inner", "whatever", ["local"]) == {"local"}
    with pytest.raises(NamespaceError, match="scope global"):
        namespaces.admit("inner", "", ["local", "global"])
    for bad in ([], ["remote"], ["local", "remote"]):
        with pytest.raises(ValueError, match="scopes are"):
            namespaces.admit("inner", "", bad)


def test_adding_again_changes_the_secret() -> None:
    namespaces = Namespaces()
    namespaces.add("blue", "old")
    namespaces.add("blue", "new")
    with pytest.raises(NamespaceError):
        namespaces.admit("blue", "old", ["local"])
    namespaces.admit("blue", "new", ["local"])
    assert namespaces.lines() == [
        "default scope global local",
        "blue scope global local secret set",
    ]


@given(st.text())
def test_any_id_is_taken_or_refused(id: str) -> None:
    namespaces = Namespaces()
    try:
        namespaces.add(id, "s")
    except ValueError:
        return
    assert namespaces.admit(id, "s", ["local"]) == {"local"}


def test_applications_of_one_namespace_find_each_other_and_nobody_else_does() -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", namespace="blue", secret="s", scopes=["local"]) as server,
            stack.application("b", namespace="blue", secret="s", scopes=["local"]) as friend,
            stack.application("c", scopes=["local"]) as stranger,
            stack.application("d", namespace="blue", secret="s") as outside,
            await server.listen(URI, tls=TLS, alpn=["test"]),
        ):
            assert await finds(friend)
            assert not await finds(stranger)
            assert not await finds(outside)
            assert not await finds(stack)
            assert not await finds(friend, f"quic://{HOST}:4434")

    play(script)


def test_each_namespace_has_ports_of_its_own() -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", namespace="blue", secret="s", scopes=["local"]) as blue,
            stack.application("b", scopes=["local"]) as other,
            await blue.listen(URI, tls=TLS, alpn=["test"]),
            await other.listen(URI, tls=TLS, alpn=["test"]),
            # Nor are they the network's.
            await stack.listen(URI, tls=TLS, alpn=["test"]),
            await blue.listen(f"quic://{HOST}:0", tls=TLS, alpn=["test"]) as picked,
        ):
            assert picked.local[1] >= 49152
            assert await finds(blue, f"quic://{HOST}:{picked.local[1]}")
            with pytest.raises(hoststack.ListenError, match="namespace 'blue'") as caught:
                await blue.listen(URI, tls=TLS, alpn=["test"])
            assert caught.value.errno == errno.EADDRINUSE

    play(script)


def test_who_has_both_scopes_looks_locally_first() -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", scopes=["local", "global"]) as both,
            stack.application("b", scopes=["local"]) as local,
        ):
            listener = await stack.listen(URI, tls=TLS, alpn=["test"])
            # Over the network, to this host itself.
            async with both.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
                assert "cut_through" not in await connection.statistics()
                await (await listener.accept()).aclose()
            async with await local.listen(URI, tls=TLS, alpn=["test"]):
                assert await finds(both)
            await listener.aclose()

    play(script)


def test_a_listener_of_both_scopes_is_found_in_both_and_gone_from_both() -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", scopes=["local", "global"]) as both,
            stack.application("b", scopes=["local"]) as local,
        ):
            async with await both.listen(URI, tls=TLS, alpn=["test"]) as listener:
                assert await finds(local)
                async with stack.connect(
                    URI, tls=TlsConfig(verify=False), alpn=["test"]
                ) as connection:
                    assert connection.remote == listener.local
            assert not await finds(local)
            async with (
                await local.listen(URI, tls=TLS, alpn=["test"]),
                await stack.listen(URI, tls=TLS, alpn=["test"]),
            ):
                pass

    play(script)


def test_a_listener_that_gets_only_one_scope_gets_none() -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", scopes=["local", "global"]) as both,
            stack.application("b", scopes=["local"]) as local,
            await local.listen(URI, tls=TLS, alpn=["test"]),
        ):
            with pytest.raises(hoststack.ListenError):
                await both.listen(URI, tls=TLS, alpn=["test"])
            # The network's port was given back.
            await (await stack.listen(URI, tls=TLS, alpn=["test"])).aclose()

    play(script)


@pytest.mark.parametrize("host", ["127.0.0.1", HOST])
def test_a_listener_on_all_addresses_is_meant_by_addresses_of_this_machine(host: str) -> None:
    async def script(stack: Stack) -> None:
        async with (
            stack.application("a", scopes=["local"]) as server,
            stack.application("b", scopes=["local"]) as client,
            await server.listen("quic://0.0.0.0:4433", tls=TLS, alpn=["test"]),
        ):
            assert await finds(client, f"quic://{host}:4433")
            assert not await finds(client, "quic://10.0.0.9:4433")
            assert not await finds(client, "quic://[::1]:4433")

    play(script)


def test_the_end_of_an_application_is_the_end_of_what_it_had() -> None:
    async def script(stack: Stack) -> None:
        async with stack.application("b", scopes=["local"]) as client:
            async with stack.application("a", scopes=["local"]) as server:
                listener = await server.listen(URI, tls=TLS, alpn=["test"])
                async with client.connect(
                    URI, tls=TlsConfig(verify=False), alpn=["test"]
                ) as connection:
                    accepted = await listener.accept()
                    stream = await connection.open_stream()
                    await stream.send_all(b"x")
            # Both sides hear of it, also the one that is gone.
            assert (await connection.wait_closed()).code == 0
            assert (await accepted.wait_closed()).code == 0
            assert not await finds(client)
        await trio.testing.wait_all_tasks_blocked()
        layer = stack._worker.layer
        assert not len(layer.sessions)
        assert len(layer.applications) == 1

    play(script)


def test_the_end_of_an_application_closes_what_it_has_in_the_network() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(HOST)) as stack,
            hoststack.open_stack(link=network.link("10.0.0.2")) as far,
        ):
            async with stack.application("a") as server:
                listener = await server.listen(URI, tls=TLS, alpn=["test"])
                async with far.connect(
                    URI, tls=TlsConfig(verify=False), alpn=["test"]
                ) as connection:
                    await listener.accept()
            with trio.fail_after(5):
                assert (await connection.wait_closed()).code == 0
            # The port is free for others.
            await (await stack.listen(URI, tls=TLS, alpn=["test"])).aclose()
            await trio.sleep(60)
            assert len(stack._worker.layer.applications) == 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
