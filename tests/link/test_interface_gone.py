"""Interfaces that go and come back under an AF_XDP link, and what else is done to them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
import pyxdp
from hoststack import Connection, TlsConfig
from hoststack.api.stack import EmbeddedStack
from hoststack.link.xdp.link import AfXdpLink
from tests.link.test_xdp_datagrams import run_within
from tests.quic.test_moves_on_links import opened
from tests.support.netns import VethPair, bring_up, run
from tests.support.streams import exchange

pytestmark = pytest.mark.needs_root
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)


@pytest.fixture(autouse=True)
def _on_each_engine(engine: str) -> None:
    """The native engine has the rings in C, the other one in Python."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


class Scene:
    """A server over AF_XDP on one side, and a client on the other."""

    def __init__(self, pair: VethPair, server: EmbeddedStack, client: EmbeddedStack) -> None:
        self.pair = pair
        self.server = server
        self.client = client
        self.uri = f"quic://{pair.a.ipv4}:4433"
        self._accepted, self.accepted = trio.open_memory_channel[Connection](10)

    @property
    def link(self) -> AfXdpLink:
        assert isinstance(self.server.link, AfXdpLink)
        return self.server.link

    async def handle(self, connection: Connection) -> None:
        await self._accepted.send(connection)
        await connection.wait_closed()

    async def serves(self) -> None:
        """A new connection carries bytes both ways."""
        async with self.client.connect(self.uri, tls=TRUSTING, alpn=["test"]) as connected:
            accepted = await self.accepted.receive()
            await exchange(connected, accepted, bytes(50_000))
            await exchange(accepted, connected, bytes(50_000))

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            # The link looks at its interface once a second, or when the kernel says something.
            await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def serving(pair: VethPair) -> AsyncIterator[Scene]:
    async with (
        hoststack.open_stack(pair.a.ifname, link="af_xdp") as server,
        hoststack.open_stack(link=opened("udp", pair.b)) as client,
        trio.open_nursery() as nursery,
    ):
        scene = Scene(pair, server, client)
        nursery.start_soon(lambda: server.serve(scene.uri, scene.handle, tls=TLS, alpn=["test"]))
        await scene.until(lambda: bool(server.link._opened))  # type: ignore[attr-defined]
        await scene.serves()
        yield scene
        nursery.cancel_scope.cancel()


def make_again(pair: VethPair) -> None:
    a, b = pair.a, pair.b
    run(
        *("ip", "link", "add", a.ifname, "netns", a.namespace, "type", "veth"),
        *("peer", "name", b.ifname, "netns", b.namespace),
    )
    for side in (a, b):
        bring_up(side, 1500)


def within(pair: VethPair, main: Callable[[], Awaitable[Any]]) -> None:
    run_within(pair.a, main)


def test_one_that_is_deleted_is_told_and_taken_again(veth_pair: VethPair) -> None:
    a = veth_pair.a

    async def main() -> None:
        async with serving(veth_pair) as scene:
            async with scene.client.connect(scene.uri, tls=TRUSTING, alpn=["test"]):
                accepted = await scene.accepted.receive()
                a.ip("link", "del", a.ifname)
                await scene.until(lambda: bool(scene.link.trouble))
                info = await accepted.wait_closed()
                assert f"{a.ifname} is gone" in info.reason
                with pytest.raises(OSError, match=f"{a.ifname} is gone") as listening:
                    await scene.server.listen(f"quic://{a.ipv4}:4434", tls=TLS, alpn=["test"])
                with pytest.raises(OSError, match="is gone") as connecting:
                    async with scene.server.connect(
                        f"quic://{veth_pair.b.ipv4}:4433", tls=TRUSTING, alpn=["test"]
                    ):
                        pass
                assert listening.value.errno == connecting.value.errno == errno.ENODEV
            make_again(veth_pair)
            await scene.until(lambda: not scene.link.trouble)
            await scene.serves()
            # And what is new works as before.
            async with await scene.server.listen(f"quic://{a.ipv4}:4434", tls=TLS, alpn=["test"]):
                pass

    within(veth_pair, main)


def test_what_a_connection_outlives(veth_pair: VethPair) -> None:
    """Down and up, another address for a moment, another MTU, another name."""
    a = veth_pair.a
    changes = [
        [("link", "set", a.ifname, "down"), ("link", "set", a.ifname, "up")],
        [
            ("address", "del", f"{a.ipv4}/24", "dev", a.ifname),
            ("address", "add", f"{a.ipv4}/24", "dev", a.ifname),
        ],
        [("link", "set", a.ifname, "mtu", "1400")],
        [
            ("link", "set", a.ifname, "down"),
            ("link", "set", a.ifname, "name", "renamed"),
            ("link", "set", "renamed", "up"),
        ],
    ]

    async def main() -> None:
        async with serving(veth_pair) as scene:
            async with scene.client.connect(scene.uri, tls=TRUSTING, alpn=["test"]) as connected:
                accepted = await scene.accepted.receive()
                for commands in changes:
                    for command in commands:
                        a.ip(*command)
                    await exchange(connected, accepted, bytes(50_000))
                    await exchange(accepted, connected, bytes(50_000))
            assert not scene.link.trouble

    within(veth_pair, main)


def test_a_program_that_is_taken_off_is_loaded_again(veth_pair: VethPair) -> None:
    """As by a `bpftool link detach` of somebody's."""

    async def main() -> None:
        async with serving(veth_pair) as scene:
            assert scene.link.steering is not None
            scene.link.steering._program.close()
            await scene.until(lambda: bool(scene.link.trouble))
            assert "taken off" in scene.link.trouble
            await scene.until(lambda: not scene.link.trouble)
            await scene.serves()

    within(veth_pair, main)
