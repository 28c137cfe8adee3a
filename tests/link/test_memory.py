"""The network in memory, on a clock that jumps: what it does to datagrams, and nothing else."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from hoststack.link.base import BURST, Endpoint, LinkError, Path
from hoststack.link.memory import MemoryLink, MemoryNetwork

A, B = "10.0.0.1", "10.0.0.2"
PORT = 4433
COUNT = 1000
#: Longer than the network keeps anything.
LONG_S = 60.0


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run with a clock that jumps to the next thing that happens."""

    async def awaited() -> None:
        await main()

    trio.run(awaited, clock=trio.testing.MockClock(autojump_threshold=0))


async def pair(network: MemoryNetwork) -> tuple[MemoryLink, MemoryLink, Path]:
    """Two hosts with an open port, and the path from the first to the second."""
    left, right = network.link(A), network.link(B)
    for link in (left, right):
        link.open_port(Endpoint("0.0.0.0", PORT))
    return left, right, await left.connect_path(PORT, Endpoint(B, PORT))


async def everything(link: MemoryLink) -> list[tuple[float, bytes]]:
    """What comes until nothing more does, and when."""
    got: list[tuple[float, bytes]] = []
    while True:
        with trio.move_on_after(LONG_S) as patience:
            await link.wait_readable()
        if patience.cancelled_caught:
            return got
        burst = link.receive()
        assert burst
        got += [(trio.current_time(), data) for data, _, _ in burst]


async def carried(
    seed: int = 1, count: int = COUNT, **impairments: Any
) -> tuple[list[bytes], list[tuple[float, bytes]], float]:
    """Send numbered datagrams through such a network: those, what came when, and when sent."""
    left, right, path = await pair(MemoryNetwork(seed, **impairments))
    sent = [number.to_bytes(4, "big") * 8 for number in range(count)]
    now_s = trio.current_time()
    assert left.send([(data, path) for data in sent]) == count
    return sent, await everything(right), now_s


def test_both_ways() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork())
        assert path == Path(Endpoint(A, PORT), Endpoint(B, PORT))
        assert left.send([(b"there", path), (b"", path)]) == 2
        (there, empty) = right.receive()
        back = Path(Endpoint(B, PORT), Endpoint(A, PORT))
        assert there == (b"there", back, 0)
        assert empty == (b"", back, 0)
        assert there[1] is empty[1]
        right.send([(b"back", there[1])])
        ((data, came, _),) = left.receive()
        assert data == b"back"
        assert came is path
        for link, rx_bytes, tx_bytes in ((left, 4, 5), (right, 5, 4)):
            statistics = link.statistics()
            assert statistics["rx_bytes"] == rx_bytes
            assert statistics["tx_bytes"] == tx_bytes

    run(main)


def test_ipv6() -> None:
    async def main() -> None:
        network = MemoryNetwork(mtu_bytes=1500)
        left, right = network.link("fd00:0::1"), network.link("fd00::2")
        right.open_port(Endpoint("::", PORT))
        path = await left.connect_path(1, Endpoint("fd00::2", PORT))
        assert path.local == Endpoint("fd00::1", 1)
        assert left.max_datagram_bytes(path) == 1452
        left.send([(b"x", path)])
        assert right.receive()[0][1].local == Endpoint("fd00::2", PORT)

    run(main)


def test_unimpaired_comes_at_once_and_in_order() -> None:
    async def main() -> None:
        sent, got, now_s = await carried()
        assert got == [(now_s, data) for data in sent]

    run(main)


def test_a_burst_has_its_budget() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork())
        left.send([(b"x", path)] * (BURST + 10))
        assert [len(right.receive()), len(right.receive(3)), len(right.receive())] == [BURST, 3, 7]
        assert right.receive() == []

    run(main)


def test_delay() -> None:
    async def main() -> None:
        sent, got, now_s = await carried(delay_s=0.25)
        assert got == [(now_s + 0.25, data) for data in sent]

    run(main)


def test_delay_is_not_received_early() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork(delay_s=1))
        left.send([(b"x", path)])
        await trio.sleep(0.999)
        assert right.receive() == []
        await trio.sleep(0.001)
        assert len(right.receive()) == 1

    run(main)


def test_an_earlier_arrival_wakes_the_waiter() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=10)
        left, right, path = await pair(network)
        left.send([(b"late", path)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            network.impairments.delay_s = 2
            left.send([(b"early", path)])
        assert trio.current_time() == pytest.approx(2)
        assert [data for data, _, _ in right.receive()] == [b"early"]

    run(main)


def test_loss() -> None:
    async def main() -> None:
        sent, got, now_s = await carried(loss=0.3)
        # 6 standard deviations of a binomial distribution are 87.
        assert abs(len(got) - 700) < 87
        assert [at for at, _ in got] == [now_s] * len(got)
        came = {data for _, data in got}
        assert [data for _, data in got] == [data for data in sent if data in came]

    run(main)


def test_everything_is_lost() -> None:
    async def main() -> None:
        _, got, _ = await carried(loss=1.0)
        assert got == []

    run(main)


def test_duplicate() -> None:
    async def main() -> None:
        sent, got, _ = await carried(duplicate=0.3)
        copies = Counter(data for _, data in got)
        assert set(copies) == set(sent)
        assert set(copies.values()) == {1, 2}
        assert abs(len(got) - 1300) < 87

    run(main)


def test_reorder() -> None:
    async def main() -> None:
        sent, got, now_s = await carried(reorder=0.3)
        data = [data for _, data in got]
        assert sorted(data) == sent
        assert data != sent
        late = [at for at, _ in got if at > now_s]
        assert abs(len(late) - 300) < 87
        assert max(late) <= now_s + 0.01
        # Those that were not held back kept their order.
        prompt = [data for at, data in got if at == now_s]
        assert prompt == sorted(prompt)

    run(main)


def test_corrupt() -> None:
    async def main() -> None:
        sent, got, _ = await carried(corrupt=0.3)
        flipped = [
            (int.from_bytes(was, "big") ^ int.from_bytes(now, "big")).bit_count()
            for was, (_, now) in zip(sent, got, strict=True)
        ]
        assert set(flipped) == {0, 1}
        assert abs(sum(flipped) - 300) < 87
        assert {len(data) for _, data in got} == {32}

    run(main)


def test_an_empty_datagram_cannot_be_corrupted() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork(corrupt=1.0))
        left.send([(b"", path)])
        assert right.receive()[0][0] == b""

    run(main)


ALL: dict[str, Any] = {
    "loss": 0.1,
    "reorder": 0.2,
    "duplicate": 0.1,
    "corrupt": 0.1,
    "delay_s": 0.02,
}


def test_same_seed_same_result() -> None:
    results = [
        trio.run(partial(carried, seed, **ALL), clock=trio.testing.MockClock(autojump_threshold=0))
        for seed in (5, 5, 6)
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_impairments_may_change() -> None:
    async def main() -> None:
        network = MemoryNetwork(loss=1.0)
        left, right, path = await pair(network)
        left.send([(b"lost", path)])
        network.impairments.loss = 0.0
        left.send([(b"came", path)])
        assert [data for data, _, _ in right.receive()] == [b"came"]

    run(main)


def test_queue_is_bounded() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork())
        burst = [(b"x", path)] * 65536
        assert left.send([*burst, (b"more", path), (b"more", path)]) == 65538
        assert right.statistics()["rx_queue_full"] == 2
        assert [data for data, _, _ in right.receive(70000)] == [b"x"] * 65536
        left.send([(b"again", path)])
        assert len(right.receive()) == 1

    run(main)


def test_too_large_is_counted_and_taken() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork(mtu_bytes=1000))
        assert left.max_datagram_bytes(path) == 972
        assert left.send([(bytes(size), path) for size in (973, 972, 5000)]) == 3
        assert [len(data) for data, _, _ in right.receive()] == [972]
        assert left.statistics()["tx_too_large"] == 2
        assert left.statistics()["tx_datagrams"] == 1

    run(main)


def test_closed_port() -> None:
    async def main() -> None:
        left, right, path = await pair(MemoryNetwork())
        right.close_port(Endpoint("0.0.0.0", PORT))
        right.close_port(Endpoint("0.0.0.0", PORT))
        left.send([(b"x", path)])
        assert right.receive() == []
        assert right.statistics()["rx_closed_port"] == 1
        right.open_port(Endpoint(B, PORT))
        left.send([(b"x", path)])
        assert len(right.receive()) == 1

    run(main)


def test_ports_in_use_and_free_ones() -> None:
    link = MemoryNetwork().link(A)
    ports = [link.open_port(Endpoint(A, 0)).port for _ in range(3)]
    assert len(set(ports)) == 3
    with pytest.raises(LinkError) as caught:
        link.open_port(Endpoint("0.0.0.0", ports[0]))
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(LinkError, match=r"10\.0\.0\.1") as caught:
        link.open_port(Endpoint(B, 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_no_such_host() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        left, right, path = await pair(network)
        with pytest.raises(LinkError, match=r"10\.0\.0\.9") as caught:
            await left.connect_path(PORT, Endpoint("10.0.0.9", 1))
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(LinkError, match=r"10\.0\.0\.9"):
            left.path_from(path.local, Endpoint("10.0.0.9", 1))
        assert left.path_from(path.local, path.remote) is path
        for host, port in ((path.local.host, 1), (B, path.local.port)):
            with pytest.raises(LinkError, match="is not open"):
                left.path_from(Endpoint(host, port), path.remote)
        # One that leaves is a host that is switched off.
        right.close()
        right.close()
        assert left.send([(b"x", path)]) == 1
        network.link(B)
        with pytest.raises(ValueError, match="already"):
            network.link(B)

    run(main)
