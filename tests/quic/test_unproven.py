"""Packets of addresses that nobody has proven: what they get, and what they leave behind."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, Stack, TlsConfig
from hoststack.link.base import BURST, Endpoint
from hoststack.link.memory import MemoryLink, MemoryNetwork
from hoststack.link.xdp.link import AfXdpLink
from hoststack.worker.engines import available_engines
from tests.support.checksummed import udp_frame
from tests.support.initials import Initials
from tests.support.netns import VethPair
from tests.support.wires import WireCalls

ENGINES = available_engines()
SERVER, CLIENT, PORT = "10.0.0.1", "10.0.0.2", 4433
URI = f"quic://{SERVER}:{PORT}"
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
#: Fewer than a burst: no sign that more arrives than can be read.
SLICE = 16
RETRY_MAGIC = b"\xb7"

pytestmark = pytest.mark.skipif("native" not in ENGINES, reason="the native engine was not built")


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Stranger:
    """Sends to a server, and answers nothing."""

    def __init__(self, stack: Stack, link: MemoryLink) -> None:
        self.stack = stack
        self.link = link
        self._port = link.open_port(Endpoint("0.0.0.0", 0)).port

    async def send(self, datagrams: list[bytes], at_once: int = SLICE) -> None:
        """A slice every 0.1 ms."""
        path = await self.link.connect_path(self._port, Endpoint(SERVER, PORT))
        for start in range(0, len(datagrams), at_once):
            self.link.send([(data, path) for data in datagrams[start : start + at_once]])
            await trio.sleep(0.0001)

    def answers(self) -> int:
        """How many have come since the last call."""
        count = 0
        while burst := self.link.receive():
            count += len(burst)
        return count


@asynccontextmanager
async def attacked(engine: Any, config: QuicConfig | None = None) -> AsyncIterator[Stranger]:
    network = MemoryNetwork()
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine, config=config) as stack,
        await stack.listen(URI, tls=TLS, alpn=["test"]),
    ):
        yield Stranger(stack, network.link(CLIENT))


def unknown_version() -> bytes:
    start = b"\xc3\x1a\x2a\x3a\x4a\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    return start.ljust(1200, b"\0")


@pytest.mark.parametrize("engine", ENGINES)
def test_version_negotiations_are_limited(engine: str) -> None:
    async def main() -> None:
        async with attacked(engine) as stranger:
            await stranger.send([unknown_version() for _ in range(1200)])
            answers = stranger.answers()
            assert 1000 <= answers <= 1010
            assert stranger.stack.counters().dropped == {
                "unknown_version": answers,
                "unanswered_version": 1200 - answers,
            }
            await trio.sleep(1.1)
            await stranger.send([unknown_version()])
            assert stranger.answers() == 1

    run(main)


def test_refusals_of_tokens_are_limited() -> None:
    async def main() -> None:
        async with attacked("native") as stranger:
            initials = Initials()
            wrong = [
                initials.packet(os.urandom(12), RETRY_MAGIC + os.urandom(89)) for _ in range(1200)
            ]
            await stranger.send(wrong)
            answers = stranger.answers()
            assert 1000 <= answers <= 1010
            assert stranger.stack.counters().dropped == {
                "bad_token": answers,
                "unanswered_token": 1200 - answers,
            }

    run(main)


def test_where_more_comes_than_can_be_read_few_are_answered() -> None:
    """A crowd is answered; a flood is read, so that what is behind it is, too."""

    async def main() -> None:
        async with attacked("native", QuicConfig(retry_above_half_open=0)) as stranger:
            initials = Initials()
            crowd = [initials.first() for _ in range(15 * BURST)]
            await stranger.send(crowd, at_once=len(crowd))
            assert stranger.answers() == len(crowd)
            await stranger.send([b""] * 15, at_once=1)  # a crowd is forgotten in as many bursts
            flood = [initials.first() for _ in range(40 * BURST)]
            await stranger.send(flood, at_once=len(flood))
            answers = stranger.answers()
            assert answers == 15 * BURST + 25 * 4
            unanswered = {"unanswered_initial": len(flood) - answers}
            assert stranger.stack.counters().dropped == {"malformed": 15, **unanswered}
            await stranger.send([initials.first()])
            assert stranger.answers() == 1

    run(main)


def test_handshakes_that_come_to_nothing_are_no_events() -> None:
    async def main() -> None:
        config = QuicConfig(handshake_timeout_s=1)
        async with attacked("native", config) as stranger:
            worker: Any = stranger.stack
            engine = worker._worker.layer.engine
            told: list[int] = []
            read = engine._events

            def counted(raw: Any, count: int) -> Any:
                told.append(count)
                return read(raw, count)

            engine._events = counted
            initials = Initials()
            await stranger.send([initials.first() for _ in range(20)])
            assert stranger.stack.counters().half_open == 20
            await trio.sleep(10)
            counters = stranger.stack.counters()
            assert (counters.half_open, counters.connections) == (0, 0)
            assert sum(told) == 0

    run(main)


@pytest.mark.needs_root
def test_a_frame_that_can_not_be_decrypted_redirects_nothing(veth_pair: VethPair) -> None:
    """It has a connection's addresses and connection ID, and another MAC address."""
    here, there = veth_pair.a, veth_pair.b
    other_mac = bytes.fromhex("020000000099")

    async def main() -> None:
        with here.inside():
            link = AfXdpLink.open(here.ifname)
        with there.inside():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            wire.bind((there.ifname, 0))
        async with hoststack.open_stack(link=link, engine="native") as stack:
            with here.inside():
                listener = await stack.listen(f"quic://{here.ipv4}:0", tls=TLS, alpn=["test"])
            with there.inside():
                client = hoststack.open_stack(link="udp", engine="native")
                uri = f"quic://{here.ipv4}:{listener.local[1]}"
                async with (
                    client as from_there,
                    from_there.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
                    await listener.accept() as accepted,
                ):
                    worker: Any = stack
                    engine = worker._worker.layer.engine
                    (connection,) = engine.connections()
                    cid = connection.connection_ids().local[0]
                    calls = WireCalls(int(engine._wire.address))
                    path = calls.lib.path_by_id(calls.wire, 0)
                    before = bytes(path.key)
                    assert there.mac in before
                    frame = udp_frame(
                        b"\x40" + cid + os.urandom(60),
                        macs=here.mac + other_mac,
                        hosts=(there.ipv4, here.ipv4),
                        ports=(connected.local[1], listener.local[1]),
                    )
                    wire.send(frame)
                    while not stack.counters().dropped:
                        await trio.lowlevel.checkpoint()
                    assert stack.counters().dropped == {"undecryptable": 1}
                    assert bytes(path.key) == before
                    stream = await connected.open_stream()
                    await stream.send_all(b"goes on")
                    came: Any = await accepted.streams().receive()
                    assert await came.receive_some() == b"goes on"
        wire.close()

    async def in_time() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(in_time)
