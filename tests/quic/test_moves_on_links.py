"""Connections that move, over veth: on AF_XDP and on UDP sockets, IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import trio

import hoststack
import pyxdp
from hoststack import Connection, MigrationError, QuicConfig, Stack
from hoststack.link.base import Link
from hoststack.link.udp.link import UdpLink
from hoststack.link.xdp.link import AfXdpLink
from hoststack.session import migrator
from hoststack.worker import engines
from tests.quic.test_native_features import TLS, TRUSTING, exchange
from tests.support.links import steering_of
from tests.support.netns import Side, VethPair

#: Further addresses of each side, and their prefixes.
MORE = {
    "ipv4": ("10.77.0.11", "10.77.0.12", 24),
    "ipv6": ("fd77::11", "fd77::12", 64),
}
PORT, PREFERRED_PORT = 4433, 5555
SIZE_BYTES = 2_000_000

Family = Literal["ipv4", "ipv6"]

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        "native" not in engines.available_engines(), reason="the native engine was not built"
    ),
    pytest.mark.parametrize("family", MORE),
    pytest.mark.parametrize("kind", ["af_xdp", "udp"]),
]


def entering(side: Side, verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb of a link's, called in a namespace: a stack's task calls it from outside."""

    def call(*arguments: Any) -> Any:
        with side.inside():
            return verb(*arguments)

    return call


def opened(kind: str, side: Side) -> Link:
    """A link whose sockets are in the side's namespace, whenever they are made."""
    works, why = pyxdp.available()
    if kind == "af_xdp" and not works:
        pytest.skip(why)
    with side.inside():
        link: Any = AfXdpLink.open(side.ifname) if kind == "af_xdp" else UdpLink()
    for name in ("open_port", "local_endpoint_for", "max_datagram_bytes"):
        setattr(link, name, entering(side, getattr(link, name)))
    return link  # type: ignore[no-any-return]


def ports_of(stack: Stack) -> set[tuple[str, int]]:
    """The local endpoints whose packets come to a stack."""
    link = stack.link
    if isinstance(link, AfXdpLink):
        return {(host, port) for host, port in steering_of(link).ports()}
    assert isinstance(link, UdpLink)
    return set(link._sockets)


def add_addresses(pair: VethPair, family: Family) -> tuple[str, str]:
    """A second address for each side."""
    left, right, prefix = MORE[family]
    for side, host in ((pair.a, left), (pair.b, right)):
        words = ("nodad",) if family == "ipv6" else ()
        side.ip("address", "add", f"{host}/{prefix}", "dev", side.ifname, *words)
    return left, right


def uri_of(host: str, port: int) -> str:
    return f"quic://[{host}]:{port}" if ":" in host else f"quic://{host}:{port}"


async def until(is_so: Callable[[], bool], connection: Connection) -> None:
    """Turn the worker over until something holds."""
    with trio.fail_after(10):
        while not is_so():
            await connection.statistics()


def test_to_a_port_and_to_an_address(
    veth_pair: VethPair, kind: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrator, "_STRAGGLERS_S", 0.2)
    a, b = veth_pair.a, veth_pair.b
    _, another = add_addresses(veth_pair, family)
    there = getattr(a, family)
    uri = uri_of(there, PORT)

    async def main() -> None:
        async with (
            hoststack.open_stack(link=opened(kind, a), engine="native") as server,
            hoststack.open_stack(link=opened(kind, b), engine="native") as client,
            await server.listen(uri, tls=TLS, alpn=["test"]) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            shared = connected.local
            # Of two IPv6 addresses the kernel takes the newer one.
            here, elsewhere = shared[0], ({another, getattr(b, family)} - {shared[0]}).pop()
            for local, host in ((None, here), (elsewhere, elsewhere), (here, here)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(exchange, connected, accepted, bytes(SIZE_BYTES))
                    await connected.migrate(local)
                assert connected.local[0] == host
                await exchange(accepted, connected, bytes(SIZE_BYTES))
                assert accepted.remote == connected.local
                await until(lambda: ports_of(client) == {shared, connected.local}, connected)
            figures = await accepted.statistics()
            assert figures["path_changes"] == 3
            with pytest.raises(MigrationError, match="not an address of this machine"):
                await connected.migrate(there)

    trio.run(main)


def test_to_a_preferred_address(veth_pair: VethPair, kind: str, family: Family) -> None:
    a, b = veth_pair.a, veth_pair.b
    preferred, _ = add_addresses(veth_pair, family)
    uri = uri_of(getattr(a, family), PORT)
    wanted = uri_of(preferred, PREFERRED_PORT).removeprefix("quic://")

    async def main() -> None:
        config = QuicConfig(preferred_addresses=(wanted,))
        async with (
            hoststack.open_stack(link=opened(kind, a), engine="native") as server,
            hoststack.open_stack(link=opened(kind, b), engine="native") as client,
            await server.listen(uri, tls=TLS, alpn=["test"], config=config) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            assert (preferred, PREFERRED_PORT) in ports_of(server)
            await exchange(connected, accepted, bytes(SIZE_BYTES))
            await until(lambda: connected.remote == (preferred, PREFERRED_PORT), connected)
            await exchange(accepted, connected, bytes(SIZE_BYTES))
            assert accepted.local == (preferred, PREFERRED_PORT)

    trio.run(main)


def test_a_second_address_on_the_same_port(veth_pair: VethPair, kind: str, family: Family) -> None:
    """Two sockets of one port: what comes is told apart by the address."""
    a, b = veth_pair.a, veth_pair.b
    preferred, _ = add_addresses(veth_pair, family)
    uri = uri_of(getattr(a, family), PORT)
    wanted = uri_of(preferred, PORT).removeprefix("quic://")

    async def main() -> None:
        config = QuicConfig(preferred_addresses=(wanted,))
        async with (
            hoststack.open_stack(link=opened(kind, a), engine="native") as server,
            hoststack.open_stack(link=opened(kind, b), engine="native") as client,
            await server.listen(uri, tls=TLS, alpn=["test"], config=config) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, bytes(SIZE_BYTES))
            await until(lambda: connected.remote == (preferred, PORT), connected)
            await connected.migrate()
            await exchange(accepted, connected, bytes(SIZE_BYTES))
            assert accepted.local == (preferred, PORT)

    trio.run(main)


def test_from_one_kind_of_address_to_the_other(
    veth_pair: VethPair, kind: str, family: Family
) -> None:
    """A server that prefers the other kind; its packets carry less or more of a datagram."""
    a, b = veth_pair.a, veth_pair.b
    other = getattr(a, "ipv6" if family == "ipv4" else "ipv4")
    uri = uri_of(getattr(a, family), PORT)
    wanted = uri_of(other, PREFERRED_PORT).removeprefix("quic://")

    async def main() -> None:
        config = QuicConfig(preferred_addresses=(wanted,), probe_mtu=False)
        async with (
            hoststack.open_stack(link=opened(kind, a), engine="native") as server,
            hoststack.open_stack(link=opened(kind, b), engine="native", config=config) as client,
            await server.listen(uri, tls=TLS, alpn=["test"], config=config) as listener,
            client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            await until(lambda: connected.remote == (other, PREFERRED_PORT), connected)
            await exchange(connected, accepted, bytes(SIZE_BYTES))
            await exchange(accepted, connected, bytes(SIZE_BYTES))
            assert accepted.local == (other, PREFERRED_PORT)

    trio.run(main)
