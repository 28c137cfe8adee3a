"""One large body over HTTP/3 and udp, and one stream of WebTransport against a raw QUIC stream.

An ASGI application that sends a body in parts of 256 KiB, with Hoststack in uvloop and with
hypercorn, and a file of as many bytes; gtlsclient, in C, takes it. The upload of WebTransport is
between two processes of Hoststack in trio, as is that of the raw stream.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from functools import partial
from typing import Any, Final

from bench.asgi import PORT, check_answer, seconds_of
from bench.lines import Expected, Line, compared
from bench.processes import run_to_json, running
from bench.report import Benchmark, Found
from bench.rounds import Figures, interleave, spread
from tests.support import netns

_OURS: Final = "hoststack, uvloop"
_FILE: Final = "hoststack, a file"
_HYPERCORN: Final = "hypercorn"
#: Kinds of bench.asgi_ends, and the size of their bodies for each second of a run.
_KINDS: Final = {
    _OURS: ("uvloop", 200_000_000),
    _FILE: ("files", 200_000_000),
    _HYPERCORN: (_HYPERCORN, 10_000_000),
}
_WEBTRANSPORT: Final = "WebTransport"
_RAW: Final = "a raw stream"
_UNIT: Final = "Gbit/s"
_BODY: Final = "body of one response, HTTP/3, udp"
_STREAM: Final = "upload on one stream, udp"


def _get(pair: netns.VethPair, kind: str, size_bytes: int) -> float:
    """Gbit/s of one body; the time of a body of one byte is taken off."""
    server = (sys.executable, "-m", "bench.asgi_ends", kind, pair.b.ipv4, str(PORT))
    with running(pair.b.command(*server, str(size_bytes))):
        check_answer(pair, "/1")
        least_s = seconds_of(pair, "/1")
        seconds = seconds_of(pair, f"/{size_bytes}")
    return size_bytes * 8 / (seconds - least_s) / 1e9


def _upload(pair: netns.VethPair, kind: str, seconds: float) -> float:
    line = (sys.executable, "-m", "bench.webtransport_ends")
    uri = f"quic://{pair.b.ipv4}:{PORT}"
    with running(pair.b.command(*line, "server", kind, uri)):
        found = run_to_json(pair.a.command(*line, "client", kind, uri, str(seconds)))[0]
    return float(found["bytes"]) * 8 / float(found["seconds"]) / 1e9


def measure(rounds: int, seconds: float) -> Found:
    """Gbit/s of each."""
    rows: list[dict[str, Any]] = []
    lines: list[Line] = []
    absent = {
        _HYPERCORN: "hypercorn is not installed: pip install '.[bench]'",
        _OURS: "gtlsclient is not installed: scripts/bootstrap.sh test",
    }
    with netns.veth_pair() as pair:
        bodies: Figures = {}
        if shutil.which("gtlsclient"):
            runs = {
                name: partial(_get, pair, kind, round(rate * seconds))
                for name, (kind, rate) in _KINDS.items()
                if name != _HYPERCORN or importlib.util.find_spec(_HYPERCORN)
            }
            bodies = interleave(runs, rounds, "body")
        uploads = interleave(
            {
                _WEBTRANSPORT: partial(_upload, pair, "webtransport", seconds),
                _RAW: partial(_upload, pair, "raw", seconds),
            },
            rounds,
            "upload",
        )
    for case, figures in (("body", bodies), ("upload", uploads)):
        rows += [{"what": name, "case": case, **spread(found)} for name, found in figures.items()]
    for name, other, least in ((_OURS, _HYPERCORN, 30), (_FILE, _HYPERCORN, None)):
        lines.append(
            compared(
                bodies,
                name,
                other,
                what=f"{_BODY}, {name}",
                case="body",
                unit=_UNIT,
                expected=Expected(">=", least) if least else None,
                absent=absent,
            )
        )
    lines.append(
        compared(
            uploads,
            _WEBTRANSPORT,
            _RAW,
            what=_STREAM,
            case="upload",
            unit=_UNIT,
            expected=Expected(">=", 0.9),
        )
    )
    return Found(_UNIT, rows, lines)


BENCHMARK: Final = Benchmark("bodies", __doc__, measure, seconds=1.0)

if __name__ == "__main__":
    BENCHMARK.main()
