"""Honest handshakes beside a flood of such as nobody finishes: how long they take.

A worker over af_xdp gets 2,000 first packets a second: from forged addresses, or from 16 ports of
the honest client's own address, which answer Retry and then nothing, as behind one NAT. A client
of the native engine opens and closes connections beside that, one after the other.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from bench import ALPN, ends
from bench.lines import Expected, Line
from bench.processes import BenchError, running
from bench.report import Benchmark, Found
from hoststack import TlsConfig, open_stack
from hoststack.worker.engines import available_engines
from tests.support import netns

PER_SECOND: Final = 2000
KINDS: Final = ("none", "forged", "silent")
#: Before the honest client begins: by then the flood has filled what it can.
_LEAD_S: Final = 1.5
_PATIENCE_S: Final = 30
EXPECTED_MS: Final = Expected("<", 1000)


async def _handshakes(uri: str, seconds: float) -> list[float]:
    """The milliseconds of each."""
    took: list[float] = []
    end = time.monotonic() + seconds
    async with open_stack(link="udp", engine="native") as client:
        while time.monotonic() < end:
            began = time.monotonic()
            with trio.fail_after(_PATIENCE_S):
                async with client.connect(uri, tls=TlsConfig(verify=False), alpn=[ALPN]):
                    took.append((time.monotonic() - began) * 1000)
    return took


@contextmanager
def _flood(pair: netns.VethPair, kind: str, seconds: float, rates: list[float]) -> Iterator[None]:
    """A flood beside the block, which takes less than so many seconds. Adds to `rates` how many
    packets a second it came to."""
    if kind == "none":
        yield
        return
    macs = (pair.b.mac + pair.a.mac).hex()
    words = ["-m", "bench.flood", kind, pair.a.ifname, macs, pair.b.ipv4, str(ends.PORT)]
    words += [f"--per-second={PER_SECOND}", f"--seconds={seconds}"]
    with running(pair.a.command(sys.executable, *words)) as process:
        time.sleep(_LEAD_S)
        yield
        rates.append(process.finish_to_json()["sent"] / seconds)


def _measure_one(
    pair: netns.VethPair, engine: str, kind: str, seconds: float, rates: list[float]
) -> list[float]:
    uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
    with (
        running(ends.end_command(pair.b, "server", "af_xdp", engine, uri)),
        _flood(pair, kind, 2 * _LEAD_S + seconds, rates),
        pair.a.inside(),
    ):
        try:
            return trio.run(_handshakes, uri, seconds)
        except trio.TooSlowError:
            raise BenchError(f"no handshake within {_PATIENCE_S} s beside {kind}") from None


def measure(rounds: int, seconds: float) -> Found:
    """Median and 99th percentile for each engine and flood, over all rounds."""
    took: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    with netns.veth_pair() as pair:
        # What answers forged addresses goes to the other side, as to a router.
        pair.b.ip("route", "add", "default", "via", pair.a.ipv4)
        for _ in range(rounds):
            for engine in available_engines():
                for kind in KINDS:
                    rate = rates.setdefault((engine, kind), [])
                    each = _measure_one(pair, engine, kind, seconds, rate)
                    took.setdefault((engine, kind), []).extend(each)
    p99 = {key: statistics.quantiles(each, n=100)[98] for key, each in took.items()}
    return Found(
        "ms of an honest handshake, beside a flood of first packets",
        [
            {
                "engine": engine,
                "flood": kind,
                "a second": round(statistics.mean(rates[engine, kind] or [0])),
                "handshakes": len(each),
                "median": round(statistics.median(each), 2),
                "p99": round(p99[engine, kind], 1),
                "longest": round(max(each), 1),
            }
            for (engine, kind), each in took.items()
        ],
        [
            Line(
                what=f"handshake beside a flood, {engine}",
                case=f"p99, {kind}",
                unit="ms",
                expected=EXPECTED_MS,
                ours=p99[engine, kind],
            )
            for engine, kind in took
            if kind != "none"
        ],
    )


BENCHMARK: Final = Benchmark("half_open", __doc__, measure, rounds=1, seconds=4)

if __name__ == "__main__":
    BENCHMARK.main()
