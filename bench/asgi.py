"""Requests of an ASGI application that answers with 6 bytes, over HTTP/3 and udp.

One process serves, and gtlsclient, in C, sends all requests on one connection as fast as the server
allows. Against hypercorn, with the same application.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from typing import Any, Final

from bench.lines import Expected, Line, compared
from bench.processes import BenchError, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from tests.support import netns

PORT: Final = 4433
_HYPERCORN: Final = "hypercorn"
#: Kinds of bench.asgi_ends, and the requests that a figure takes for each of its seconds.
_KINDS: Final = {
    "hoststack, trio": ("trio", 4000),
    "hoststack, asyncio": ("asyncio", 4000),
    "hoststack, uvloop": ("uvloop", 4000),
    _HYPERCORN: (_HYPERCORN, 1000),
}
_EXPECTED: Final = {"hoststack, uvloop": Expected(">=", 10)}
_UNIT: Final = "per second"
_PATIENCE_S: Final = 120


def _measure(pair: netns.VethPair, kind: str, count: int) -> float:
    """Requests a second."""
    address = pair.b.ipv4
    server = (sys.executable, "-m", "bench.asgi_ends", kind, address, str(PORT))
    url = f"https://localhost:{PORT}/"
    client = ("gtlsclient", "-q", "-n", str(count), "--exit-on-all-streams-close")
    with running(pair.b.command(*server)):
        began = time.monotonic()
        done = subprocess.run(
            pair.a.command(*client, address, str(PORT), url),
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        seconds = time.monotonic() - began
    if done.returncode:
        raise BenchError(f"gtlsclient failed against {kind}: {done.stderr.decode()[-200:]}")
    return count / seconds


def measure(rounds: int, seconds: float) -> Found:
    """Requests a second of each."""
    case = "hello"
    what = "ASGI, GET of 6 bytes, HTTP/3"
    if shutil.which("gtlsclient") is None:
        why_not = "gtlsclient is not installed: scripts/bootstrap.sh test"
        return Found(_UNIT, [], [Line(what=what, case=case, unit=_UNIT, why_not=why_not)])
    with netns.veth_pair() as pair:
        runs = {
            name: partial(_measure, pair, kind, round(count * seconds))
            for name, (kind, count) in _KINDS.items()
        }
        rates = interleave(runs, rounds, case)
    rows: list[dict[str, Any]] = [
        {"what": name, "case": case, **spread(found, 0)} for name, found in rates.items()
    ]
    lines = [
        compared(
            rates, name, _HYPERCORN, what=what, case=case, unit=_UNIT, expected=_EXPECTED.get(name)
        )
        for name in _KINDS
        if name != _HYPERCORN
    ]
    return Found(_UNIT, rows, lines)


BENCHMARK: Final = Benchmark("asgi", __doc__, measure, seconds=2.0)

if __name__ == "__main__":
    BENCHMARK.main()
