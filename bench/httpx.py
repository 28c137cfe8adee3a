"""100 parallel GETs of 6 bytes by clients in Python: httpx over HTTP/3 and HTTP/2, and niquests.

All ask the same caddy, between two namespaces, over one connection where the client has one. As
`python -m bench.httpx CLIENT URL SECONDS` it is one of the clients, which prints its figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from bench.caddy import caddyfile
from bench.lines import Expected, compared
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.httpx import AsyncHTTP3Transport
from tests.support import netns

_AT_ONCE: Final = 100
_PORT: Final = 8443
_PATIENCE_S: Final = 60.0
_OURS: Final = "hoststack.httpx, trio"
#: By the names that they have on the command line.
CLIENTS: Final = {
    "trio": _OURS,
    "asyncio": "hoststack.httpx, asyncio",
    "http2": "httpx over HTTP/2, asyncio",
    "niquests": "niquests over HTTP/3, asyncio",
}
_UNIT: Final = "per second"

Get = Callable[[], Awaitable[int]]


class _Count:
    """Requests that were answered in some time, by tasks that make one after the other."""

    def __init__(self, get: Get, seconds: float) -> None:
        self._get = get
        self._seconds = seconds
        self._end_s = 0.0
        self.requests = 0

    async def warm_up(self) -> None:
        """Connect, and start the clock."""
        await self._get()
        self._end_s = time.monotonic() + self._seconds

    async def repeat(self) -> None:
        """Request until the time is over. Raises ValueError for another status than 200."""
        while time.monotonic() < self._end_s:
            status = await self._get()
            if status != 200:
                raise ValueError(f"the server answers {status}")
            self.requests += 1


async def _in_trio(url: str, seconds: float) -> int:
    async with httpx.AsyncClient(transport=AsyncHTTP3Transport(verify=False)) as client:
        count = _Count(_httpx_get(client, url), seconds)
        await count.warm_up()
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(count.repeat)
    return count.requests


async def _in_asyncio(client: httpx.AsyncClient, url: str, seconds: float) -> int:
    async with client:
        return await _gathered(_httpx_get(client, url), seconds)


def _httpx_get(client: httpx.AsyncClient, url: str) -> Get:
    async def get() -> int:
        return (await client.get(url, timeout=_PATIENCE_S)).status_code

    return get


async def _of_niquests(url: str, seconds: float) -> int:
    import niquests

    place = urlsplit(url)
    async with niquests.AsyncSession(disable_http1=True, disable_http2=True) as session:
        session.quic_cache_layer.add_domain(place.hostname, place.port)

        async def get() -> int:
            response: Any = await session.get(url, verify=False, timeout=_PATIENCE_S)
            return int(response.status_code)

        return await _gathered(get, seconds)


async def _gathered(get: Get, seconds: float) -> int:
    count = _Count(get, seconds)
    await count.warm_up()
    await asyncio.gather(*(count.repeat() for _ in range(_AT_ONCE)))
    return count.requests


def _client(name: str, url: str, seconds: float) -> None:
    match name:
        case "trio":
            requests = trio.run(_in_trio, url, seconds)
        case "asyncio":
            ours = httpx.AsyncClient(transport=AsyncHTTP3Transport(verify=False))
            requests = asyncio.run(_in_asyncio(ours, url, seconds))
        case "http2":
            theirs = httpx.AsyncClient(http2=True, verify=False)
            requests = asyncio.run(_in_asyncio(theirs, url, seconds))
        case _:
            requests = asyncio.run(_of_niquests(url, seconds))
    print(json.dumps({"requests": requests, "seconds": seconds}))


def measure(rounds: int, seconds: float) -> Found:
    """Requests a second of each client."""
    with netns.veth_pair() as pair, tempfile.TemporaryDirectory() as name:
        config = caddyfile(Path(name), pair.b.ipv4, _PORT)
        url = f"https://{pair.b.ipv4}:{_PORT}/page"
        server = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        environment = {"HOME": name, "XDG_DATA_HOME": name}
        with running(
            pair.b.command(*server),
            environment=environment,
            is_ready=lambda process: "serving initial configuration" in process.errors(),
        ):
            runs = {}
            for word, what in CLIENTS.items():
                line = (sys.executable, "-m", "bench.httpx", word, url, str(seconds))
                runs[what] = partial(run_to_json, pair.a.command(*line))
            found = interleave(runs, rounds)
    case = f"{_AT_ONCE} at a time"
    rates = {
        what: [one["requests"] / one["seconds"] for one, _ in all_] for what, all_ in found.items()
    }
    rows: list[dict[str, Any]] = [
        {"what": what, "case": case, "figure": _UNIT, **spread(figures, 0)}
        for what, figures in rates.items()
    ]
    lines = [
        compared(
            rates,
            _OURS,
            CLIENTS[other],
            what="GET of 6 bytes by httpx",
            case=case,
            unit=_UNIT,
            expected=Expected(">=", 1),
        )
        for other in ("http2", "niquests")
    ]
    return Found("as named", rows, lines)


BENCHMARK: Final = Benchmark("httpx", __doc__, measure, seconds=3.0)

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CLIENTS:
        _client(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    else:
        BENCHMARK.main()
