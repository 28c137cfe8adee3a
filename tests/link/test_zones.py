"""Link-local addresses, whose zone says by which interface they are reached (RFC 4007)."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal

import pytest
import trio

import hoststack
from hoststack import ConnectError, Connection, LinkError, ListenError, TlsConfig
from hoststack.link import zones
from tests.apps.echo_process import PATIENCE_S
from tests.daemon.conftest import run_daemon
from tests.daemon.echoing import TLS, ask, echo
from tests.support.netns import VethPair

TRUSTING = TlsConfig(verify=False)
LinkName = Literal["udp", "af_xdp"]


@pytest.mark.parametrize(
    ("host", "interface", "expected"),
    [
        ("fe80::1%lo", None, "fe80::1%lo"),
        ("fe80::1%1", None, "fe80::1%lo"),
        ("fe80::1", "eth7", "fe80::1%eth7"),
        ("fd00::1%lo", None, "fd00::1"),
        ("::1", None, "::1"),
        ("10.0.0.1", "eth7", "10.0.0.1"),
    ],
)
def test_one_form(host: str, interface: str | None, expected: str) -> None:
    assert zones.canonical(host, interface) == expected


@pytest.mark.parametrize("zone", ["nosuch", "999999", "9" * 15])
@pytest.mark.parametrize("address", ["fe80::1", "fd00::1"])
def test_an_interface_that_does_not_exist(zone: str, address: str) -> None:
    with pytest.raises(LinkError, match=f"there is no interface '{zone}'") as caught:
        zones.canonical(f"{address}%{zone}")
    assert caught.value.errno == errno.ENODEV


def test_who_names_no_interface_is_told() -> None:
    with pytest.raises(LinkError, match="name the interface"):
        zones.canonical("fe80::1")
    with pytest.raises(LinkError, match="this stack uses eth7 alone"):
        zones.on_interface("fe80::1%lo", "eth7")


@pytest.mark.parametrize("scheme", ["quic", "tcp", "udp"])
@pytest.mark.parametrize("zone", ["%nosuch", "%25nosuch", ""])
def test_stacks_say_what_is_wrong(scheme: str, zone: str) -> None:
    said = "there is no interface 'nosuch'" if zone else "name the interface"

    async def main() -> None:
        uri = f"{scheme}://[fe80::1{zone}]:4433"
        tls, alpn = (TLS, ["test"]) if scheme == "quic" else (None, [])
        async with hoststack.open_stack(link="udp") as stack:
            with pytest.raises(ConnectError, match=said):
                async with stack.connect(uri, alpn=alpn):
                    pytest.fail("there is no such place")
            with pytest.raises(ListenError, match=said):
                await stack.listen(uri, tls=tls, alpn=alpn)

    trio.run(main)


async def answer(connection: Connection) -> None:
    async for datagram in connection.datagrams():
        await connection.send_datagram(f"{connection.remote[0]} {datagram.decode()}".encode())


async def reflect(connection: Connection) -> None:
    async for stream in connection.streams():
        assert isinstance(stream, hoststack.Stream)
        async with stream:
            async for chunk in stream:
                await stream.send_all(connection.remote[0].encode() + b" " + chunk)


SERVICES: dict[str, Any] = {"quic": echo, "tcp": reflect, "udp": answer}

MakeStack = Callable[[], Any]


@contextmanager
def serving(pair: VethPair, make_stack: MakeStack, zone: str) -> Iterator[dict[str, Any]]:
    """A server of all protocols on a link-local address of `a`; where it listens."""
    told: queue.Queue[Any] = queue.Queue()
    stop = trio.Event()

    async def main() -> None:
        uri = f"[{pair.a.link_local()}{zone}]:0"
        async with make_stack() as stack, trio.open_nursery() as nursery:
            found: dict[str, Any] = {}
            for scheme, handler in SERVICES.items():
                tls, alpn = (TLS, ["test"]) if scheme == "quic" else (None, [])
                serve = partial(stack.serve, f"{scheme}://{uri}", handler, tls=tls, alpn=alpn)
                found[scheme] = (await nursery.start(serve)).local
            told.put((trio.lowlevel.current_trio_token(), found))
            await stop.wait()
            nursery.cancel_scope.cancel()

    def run() -> None:
        try:
            with pair.a.inside():
                trio.run(main)
        except BaseException as error:
            told.put((None, error))
            raise

    thread = threading.Thread(target=run)
    thread.start()
    token, found = told.get(timeout=PATIENCE_S)
    if token is None:
        raise found
    try:
        yield found
    finally:
        token.run_sync_soon(stop.set)
        thread.join(PATIENCE_S)


async def talk(stack: hoststack.Stack, pair: VethPair, where: dict[str, Any], zone: str) -> None:
    """Reach all services, and see the zones on both sides."""
    there = f"{pair.a.link_local()}%{pair.b.ifname}"
    here = f"{pair.b.link_local()}%{pair.b.ifname}"
    seen = f"{pair.b.link_local()}%{pair.a.ifname}".encode()
    for scheme, local in where.items():
        assert local[0] == f"{pair.a.link_local()}%{pair.a.ifname}"
        uri = f"{scheme}://[{pair.a.link_local()}{zone}]:{local[1]}"
        tls, alpn = (TRUSTING, ["test"]) if scheme == "quic" else (None, [])
        async with stack.connect(uri, tls=tls, alpn=alpn) as connection:
            assert connection.remote == (there, local[1])
            assert connection.local[0] == here
            if scheme == "udp":
                for _ in range(3):
                    await connection.send_datagram(b"hello")
                    assert await connection.receive_datagram() == seen + b" hello"
            elif scheme == "tcp":
                assert await ask(connection, b"hello") == seen + b" hello"
            else:
                for _ in range(3):
                    assert await ask(connection, b"x" * 100_000) == b"x" * 100_000


@pytest.mark.needs_root
@pytest.mark.parametrize("link", ["udp", "af_xdp"])
def test_over_each_link(veth_pair: VethPair, link: LinkName, engine: str) -> None:
    pair = veth_pair

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.open_stack(pair.b.ifname, link=link) as stack:
                for zone in (f"%{pair.b.ifname}", f"%25{pair.b.ifname}"):
                    await talk(stack, pair, where, zone)
                if link == "af_xdp":
                    await talk(stack, pair, where, "")
                    with pytest.raises(ConnectError, match="this stack uses right alone"):
                        async with stack.connect("quic://[fe80::1%lo]:1", alpn=["test"]):
                            pytest.fail("it is not there")

    def make_stack() -> Any:
        return hoststack.open_stack(pair.a.ifname, link=link)

    with serving(pair, make_stack, f"%{pair.a.ifname}") as where, pair.b.inside():
        trio.run(main)


@pytest.mark.needs_root
@pytest.mark.parametrize("link", ["udp", "af_xdp"])
def test_attached(veth_pair: VethPair, link: LinkName) -> None:
    pair = veth_pair

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.open_stack(pair.b.ifname, link="udp") as stack:
                await talk(stack, pair, where, f"%{pair.b.ifname}")

    words = ["-i", pair.a.ifname] if link == "af_xdp" else ["--link", "udp"]
    with run_daemon(*words, prefix=pair.a.command()) as daemon:

        @asynccontextmanager
        async def make_stack() -> AsyncIterator[hoststack.Stack]:
            async with hoststack.attach(daemon.api) as stack:
                assert stack.link_name == link
                yield stack

        with serving(pair, make_stack, f"%{pair.a.ifname}") as where, pair.b.inside():
            trio.run(main)
