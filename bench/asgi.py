"""Requests of an ASGI application that answers with 6 bytes, over HTTP/3 and udp.

One process serves, and gtlsclient, in C, sends all requests on one connection as fast as the server
allows. Against hypercorn, with the same application; against uvicorn over HTTP/1.1, asked by wrk on
100 connections; and a file of 6 bytes against caddy.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.caddy import caddyfile
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
_FILES: Final = "hoststack, a file"
_CADDY: Final = "caddy, a file"
_UVICORN: Final = "uvicorn, HTTP/1.1"
_FAST_COUNT: Final = 20000
_EXPECTED: Final = {"hoststack, uvloop": Expected(">=", 10)}
_AT_LEAST: Final = Expected(">=", 1)
_UNIT: Final = "per second"
_PATIENCE_S: Final = 120


def _measure(pair: netns.VethPair, kind: str, count: int) -> float:
    """Requests a second."""
    server = (sys.executable, "-m", "bench.asgi_ends", kind, pair.b.ipv4, str(PORT))
    with running(pair.b.command(*server)):
        return _ask(pair, count, "/page" if kind == "files" else "/")


def _ask(pair: netns.VethPair, count: int, path: str) -> float:
    """Requests a second, of `count`."""
    check_answer(pair, path)
    return count / seconds_of(pair, path, count)


def check_answer(pair: netns.VethPair, path: str) -> None:
    """Raise BenchError without a page: gtlsclient exits with 0 after a failed handshake too."""
    output, _ = _gtlsclient(pair, path, 1)
    if "[:status: 200]" not in output:
        raise BenchError(f"the server does not answer {path} with 200: {output[-200:]}")


def seconds_of(pair: netns.VethPair, path: str, count: int = 1) -> float:
    """How long gtlsclient takes for GETs on one connection. Raises BenchError."""
    return _gtlsclient(pair, path, count, "-q")[1]


def _gtlsclient(pair: netns.VethPair, path: str, count: int, *options: str) -> tuple[str, float]:
    """What gtlsclient printed, and the seconds that it took."""
    client = ("gtlsclient", *options, "-n", str(count), "--exit-on-all-streams-close")
    began = time.monotonic()
    done = subprocess.run(
        pair.a.command(*client, pair.b.ipv4, str(PORT), f"https://localhost:{PORT}{path}"),
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise BenchError(f"gtlsclient failed: {done.stderr[-200:]}")
    return done.stdout + done.stderr, seconds


def _caddy(pair: netns.VethPair, count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = caddyfile(Path(folder), pair.b.ipv4, PORT)
        command = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        with running(
            pair.b.command(*command),
            environment={"HOME": folder, "XDG_DATA_HOME": folder},
            is_ready=lambda process: "serving initial configuration" in process.errors(),
        ):
            return _ask(pair, count, "/page")


def _uvicorn(pair: netns.VethPair, seconds: float) -> float:
    address = pair.b.ipv4
    server = (sys.executable, "-m", "bench.asgi_ends", "uvicorn", address, str(PORT))
    with running(
        pair.b.command(*server), is_ready=lambda process: "running on" in process.errors()
    ):
        line = ("wrk", "-t1", "-c100", f"-d{max(1, round(seconds))}", f"http://{address}:{PORT}/")
        done = subprocess.run(
            pair.a.command(*line), capture_output=True, text=True, timeout=60, check=False
        )
    found = re.search(r"Requests/sec: +([0-9.]+)", done.stdout)
    if found is None or "Non-2xx" in done.stdout:
        raise BenchError(f"wrk failed against uvicorn: {done.stdout}{done.stderr}")
    return float(found[1])


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
        fast = round(_FAST_COUNT * seconds / 2)
        runs[_FILES] = partial(_measure, pair, "files", round(4000 * seconds))
        if shutil.which("caddy"):
            runs[_CADDY] = partial(_caddy, pair, fast)
        if shutil.which("wrk") and importlib.util.find_spec("uvicorn"):
            runs[_UVICORN] = partial(_uvicorn, pair, seconds)
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
    absent = {
        _CADDY: "caddy is not installed: scripts/bootstrap.sh test",
        _UVICORN: "install wrk (Debian) and uvicorn[standard] (PyPI)",
    }
    lines += [
        compared(
            rates, ours, other, what=what, case=case, unit=_UNIT, expected=_AT_LEAST, absent=absent
        )
        for ours, other in (("hoststack, uvloop", _UVICORN), (_FILES, _CADDY))
    ]
    return Found(_UNIT, rows, lines)


BENCHMARK: Final = Benchmark("asgi", __doc__, measure, seconds=2.0)

if __name__ == "__main__":
    BENCHMARK.main()
