"""Counters that another thread reads while the engine runs."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.worker import engines
from tests.support.streams import exchange

TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
CONNECTIONS = 20
#: What is, and not what was: it goes down as well.
PRESENT = ("connections", "half_open")

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


def words(counters: dict[str, Any]) -> dict[str, int]:
    """All counts, those in tuples and tables by a name of their own."""
    found: dict[str, int] = {}
    for name, value in counters.items():
        if isinstance(value, dict):
            found |= {f"{name} {kind}": count for kind, count in value.items()}
        elif isinstance(value, tuple):
            found |= {f"{name} {index}": count for index, count in enumerate(value)}
        else:
            found[name] = value
    return found


class Reader(threading.Thread):
    """Reads a stack's counters again and again, and notes what can't be."""

    #: A thread that never waits takes the interpreter for 5 ms at each of the engine's calls.
    PAUSE_S = 0.0002

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.is_over = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        last: dict[str, int] = {}
        while not self.is_over.wait(self.PAUSE_S):
            now = words(asdict(self.stack.counters()))
            for name in PRESENT:
                if not 0 <= now.pop(name) <= CONNECTIONS:
                    self.wrong.append(name)
            self.wrong += [
                f"{name}: {count} after {last[name]}"
                for name, count in now.items()
                if count < last.get(name, 0) or count > last.get(name, 0) + 1_000_000
            ]
            last = now
            self.reads += 1

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.join()


def test_they_are_whole_and_never_go_back() -> None:
    async def main() -> None:
        async with (
            hoststack.open_stack(link="udp", engine="native") as server,
            hoststack.open_stack(link="udp", engine="native") as client,
            await server.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
        ):
            uri = "quic://{}:{}".format(*listener.local)
            with trio.fail_after(30), Reader(client) as reader:
                for _ in range(CONNECTIONS):
                    async with (
                        client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected,
                        await listener.accept() as accepted,
                    ):
                        await exchange(connected, accepted, bytes(200_000))
            assert reader.wrong == []
            assert reader.reads > CONNECTIONS
            counters = client.counters()
            assert counters.connected == CONNECTIONS
            assert counters.rx_packets["1rtt"] > 0
            assert sum(counters.rx_in_turns) == sum(counters.tx_in_turns) == counters.turns

    trio.run(main)


def test_what_both_engines_know_has_one_name() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.01, loss=0.05, seed=7)
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1"), engine="aioquic") as server,
            hoststack.open_stack(link=network.link("10.0.0.2"), engine="native") as client,
            await server.listen("quic://10.0.0.1:4433", tls=TLS, alpn=["test"]) as listener,
            client.connect("quic://10.0.0.1:4433", tls=TRUSTING, alpn=["test"]) as connected,
            await listener.accept() as accepted,
        ):
            await exchange(connected, accepted, bytes(200_000))
            await exchange(accepted, connected, bytes(200_000))
            for connection in (connected, accepted):
                figures = await connection.statistics()
                assert figures["rtt_latest_s"] >= 0.02
                assert 0 < figures["rtt_variance_s"] < 1
                assert 0 < figures["ssthresh_bytes"] < 1 << 30

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
