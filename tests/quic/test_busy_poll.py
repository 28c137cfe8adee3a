"""Stacks that look for datagrams without end instead of sleeping."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
import trio

import hoststack
from hoststack import TlsConfig
from hoststack.link.auto import choose_link
from hoststack.link.base import Endpoint
from hoststack.link.memory import MemoryNetwork
from hoststack.link.udp.link import UdpLink
from hoststack.worker import engines
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker
from tests.support.netns import why_not
from tests.support.streams import exchange

SO_BUSY_POLL = 46
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)

needs_native = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


@needs_native
def test_it_never_sleeps_and_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asleep(self: Worker) -> None:
        raise AssertionError("a worker that polls busily went to sleep")

    for name in ("_loop", "_listen", "_keep_time"):
        monkeypatch.setattr(Worker, name, asleep)

    async def main() -> None:
        with trio.fail_after(15):
            await transfer()

    async def transfer() -> None:
        async with (
            hoststack.open_stack(link="udp", busy_poll_us=50) as server,
            hoststack.open_stack(link="udp", busy_poll_us=50) as client,
            await server.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
            client.connect(
                "quic://{}:{}".format(*listener.local), tls=TRUSTING, alpn=["test"]
            ) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, bytes(1_000_000))
            empty = client.counters().empty_turns
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert client.counters().empty_turns > empty

    trio.run(main)


@needs_native
def test_a_turn_looks_for_more_as_long_as_it_is_told() -> None:
    link = UdpLink()
    try:
        link.open_port(Endpoint("127.0.0.1", 0))
        worker = Worker(link, engine_maker("native", link))
        engine = worker.layer.engine
        assert engine.can_spin
        before = time.monotonic()
        assert engine.turn(0.0, 0.02).received == 0
        assert time.monotonic() - before >= 0.02
    finally:
        link.close()


@pytest.mark.parametrize("microseconds", [-1, 1001])
def test_other_tasks_do_not_wait_for_ever(microseconds: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="0 to 1000 microseconds"):
            async with hoststack.open_stack(link="udp", busy_poll_us=microseconds):
                raise AssertionError("it was opened")

    trio.run(main)


@pytest.mark.parametrize(("engine", "kind"), [("aioquic", "udp"), ("auto", "memory")])
def test_who_can_not_says_so(engine: Any, kind: Any) -> None:
    async def main() -> None:
        link = MemoryNetwork().link("10.0.0.1") if kind == "memory" else kind
        with pytest.raises(ValueError, match=f"poll busily over link {kind}"):
            async with hoststack.open_stack(link=link, engine=engine, busy_poll_us=50):
                raise AssertionError("it was opened")

    trio.run(main)


def test_udp_sockets_are_told() -> None:
    if why := why_not():
        pytest.skip(why)
    link = UdpLink()
    try:
        before = link.open_port(Endpoint("127.0.0.1", 0))
        assert link.busy_poll(60) == ""
        after = link.open_port(Endpoint("127.0.0.1", 0))
        for endpoint in (before, after):
            opened = link._sockets[endpoint].socket
            assert opened.getsockopt(socket.SOL_SOCKET, SO_BUSY_POLL) == 60
    finally:
        link.close()


def test_a_refusal_is_said_and_costs_nothing_else() -> None:
    link = UdpLink()
    try:
        assert link.busy_poll(-1) == "drivers are not busy-polled: SO_BUSY_POLL: Invalid argument"
        link.open_port(Endpoint("127.0.0.1", 0))
    finally:
        link.close()


def test_choosing_a_link_has_it_poll() -> None:
    if why := why_not():
        pytest.skip(why)
    link, reason = choose_link(None, "udp", busy_poll_us=50)
    try:
        assert reason == ""
        assert isinstance(link, UdpLink)
        opened = link._sockets[link.open_port(Endpoint("127.0.0.1", 0))].socket
        assert opened.getsockopt(socket.SOL_SOCKET, SO_BUSY_POLL) == 50
    finally:
        link.close()
