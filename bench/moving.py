"""Requests of clients whose addresses change: 4 engines, 4 applications, 200 connections over udp.

`hoststack serve` answers with 6 bytes. Each connection asks without a pause, and moves to another
local port every second (the second is `--seconds`, as often as there are rounds). No request may
fail.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import trio

from bench.lines import Expected, Line
from bench.processes import BenchError, running
from bench.report import Benchmark, Found
from tests.support import netns
from tests.support.moving import Outcome, ask_while_moving

PORT: Final = 4433
_ENGINES: Final = 4
_CONNECTIONS: Final = 200
_PATIENCE_S: Final = 120


def measure(rounds: int, seconds: float) -> Found:
    """Requests, and those that failed."""

    async def ask(address: str) -> Outcome:
        with trio.fail_after(_PATIENCE_S + rounds * seconds):
            return await ask_while_moving(f"{address}:{PORT}", _CONNECTIONS, rounds, seconds)

    with tempfile.TemporaryDirectory() as folder, netns.veth_pair() as pair:
        bind = f"{pair.b.ipv4}:{PORT}"
        server = (sys.executable, "-m", "hoststack.cli.main", "serve", "bench.asgi_ends:hello")
        server += ("--app-dir", os.getcwd(), "--bind", bind, "--link", "udp")
        server += ("--workers", str(_ENGINES), "--apps", str(_ENGINES))
        server += ("--cli-socket", str(Path(folder) / "cli.sock"))
        with (
            running(
                pair.b.command(*server),
                is_ready=lambda each: "listening on" in each.errors(),
                timeout_s=_PATIENCE_S,  # nine processes start
            ),
            pair.a.inside(),
        ):
            began = time.monotonic()
            try:
                outcome = trio.run(ask, pair.b.ipv4)
            except trio.TooSlowError:
                raise BenchError(f"not all requests were answered in {_PATIENCE_S} s") from None
            took = time.monotonic() - began
    what = f"{_ENGINES} engines, {_ENGINES} applications, {_CONNECTIONS} connections that move"
    row = {
        "connections": _CONNECTIONS,
        "moves": outcome.moves,
        "moves that failed": len(outcome.stuck),
        "requests": outcome.requests,
        "a second": round(outcome.requests / took),
        "failed": len(outcome.failures),
    }
    line = Line(
        what=what,
        case="moving",
        unit="failed requests",
        expected=Expected("<=", 0),
        ours=len(outcome.failures),
    )
    told = {"first failures": outcome.failures[:5] + outcome.stuck[:5]}
    return Found("requests while connections move", [row], [line], told=told)


BENCHMARK: Final = Benchmark("moving", __doc__, measure, rounds=10, seconds=1)

if __name__ == "__main__":
    BENCHMARK.main()
