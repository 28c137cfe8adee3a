"""Goodput of an honest connection beside 50,000 packets a second from forged addresses.

One stream up, alone and beside each kind of packet that an engine answers, or drops, without a
connection. The sender of the forged ones is in C, and takes a core; on a machine of two cores the
honest ends share the other one with what the kernel does for all. CPU time is that of the server's
process for each forged packet that it read, while nothing honest goes on.
"""

from __future__ import annotations

import os
import signal
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from bench import ends
from bench.lines import Expected, Line
from bench.processes import Process, running
from bench.report import Benchmark, Found
from bench.rounds import progress
from hoststack.quic.cid import CidGenerator
from hoststack.quic.seam import CidConfig
from hoststack.worker.engines import available_engines
from tests.support import netns
from tests.support.initials import Initials

PER_SECOND: Final = 50_000
LINKS: Final = ("af_xdp", "udp")
EXPECTED: Final = Expected(">=", 0.5)
_PAYLOADS: Final = 4000
#: Of Retry tokens (NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2).
_RETRY_MAGIC: Final = b"\xb7"
#: The attack goes on until an upload's last byte is acknowledged.
_MORE_S: Final = 30


def _initials(count: int) -> Iterator[bytes]:
    made = Initials(ends.ALPN)
    return (made.first() for _ in range(count))


def _garbage(count: int) -> Iterator[bytes]:
    """Headers of Initials, before bytes that no key opens."""
    for _ in range(count):
        start = b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0\x44\x90"
        yield start + os.urandom(1200 - len(start))


def _versions(count: int) -> Iterator[bytes]:
    for _ in range(count):
        start = b"\xc3\x1a\x2a\x3a\x4a\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
        yield start.ljust(1200, b"\0")


def _short(count: int) -> Iterator[bytes]:
    """Connection IDs as the server makes them, of connections that are not there."""
    prefix = CidGenerator(CidConfig()).prefix
    return (b"\x40" + prefix + os.urandom(60) for _ in range(count))


def _tokens(count: int) -> Iterator[bytes]:
    made = Initials(ends.ALPN)
    return (made.packet(os.urandom(12), _RETRY_MAGIC + os.urandom(107)) for _ in range(count))


KINDS: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "Initials": _initials,
    "garbage": _garbage,
    "unknown versions": _versions,
    "unknown CIDs": _short,
    "wrong tokens": _tokens,
}


class Spoofer:
    """The sender: compiled, and its payloads made, once."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "spoofer"
        source = Path(__file__).with_name("spoofer.c")
        subprocess.run(["gcc", "-O2", str(source), "-o", str(self._program)], check=True)
        self._payloads: dict[str, Path] = {}
        for kind, make in KINDS.items():
            self._payloads[kind] = folder / kind.replace(" ", "_")
            self._payloads[kind].write_bytes(
                b"".join(struct.pack("!H", len(each)) + each for each in make(_PAYLOADS))
            )

    @contextmanager
    def attack(self, pair: netns.VethPair, kind: str, seconds: float) -> Iterator[Process]:
        """A block beside the attack, which takes that long if it is waited for."""
        macs = (pair.b.mac + pair.a.mac).hex()
        words = [str(self._program), pair.a.ifname, macs, pair.b.ipv4, str(ends.PORT)]
        words += [str(PER_SECOND), str(seconds)]
        line = pair.a.command("sh", "-c", 'exec "$@" < "$0"', str(self._payloads[kind]), *words)
        with running(line) as process:
            yield process


def _told(server: Process) -> tuple[float, float]:
    """Datagrams that the server has read, and its CPU seconds."""
    lines = server.output().count("\n")
    os.kill(server.pid, signal.SIGUSR1)
    while server.output().count("\n") == lines:
        time.sleep(0.01)
    came, used_s = server.output().split("\n")[-2].split()
    return int(came), float(used_s)


def _goodput(command: list[str], attack: AbstractContextManager[object]) -> float:
    """Gbit/s of a connection that was there before the attack began."""
    process = Process(command, has_input=True)
    try:
        process.wait_ready()
        with attack:
            process.say("go")
            found = process.finish_to_json()
    finally:
        process.close()
    return float(found["bytes"] / found["seconds"] * 8e-9)


def _measure_one(
    pair: netns.VethPair, spoofer: Spoofer, link: str, engine: str, kind: str, seconds: float
) -> dict[str, float]:
    uri = f"quic://{pair.b.ipv4}:{ends.PORT}"
    with running(ends.end_command(pair.b, "server", link, engine, uri)) as server:
        words = [f"--seconds={seconds}", f"--server-pid={server.pid}", "--waits"]
        upload = ends.end_command(pair.a, "upload", link, engine, uri, *words)
        alone = _goodput(upload, nullcontext())
        with spoofer.attack(pair, kind, seconds) as process:
            before = _told(server)
            process.finish()
            after = _told(server)
        beside = _goodput(upload, spoofer.attack(pair, kind, seconds + _MORE_S))
    came, used_s = (now - was for now, was in zip(after, before, strict=True))
    return {
        "alone": alone,
        "beside": beside,
        "us": used_s / came * 1e6,
        "sent": process.found()["sent"] / seconds,
        "read": came / seconds,
    }


def measure(rounds: int, seconds: float) -> Found:
    """Medians over all rounds."""
    rows: list[dict[str, Any]] = []
    lines: list[Line] = []
    engine = available_engines()[0]
    with tempfile.TemporaryDirectory() as folder, netns.veth_pair() as pair:
        spoofer = Spoofer(Path(folder))
        # Answers to forged addresses go to the other side, as to a router.
        pair.b.ip("route", "add", "default", "via", pair.a.ipv4)
        for link in LINKS:
            for kind in KINDS:
                progress(f"{link}, {kind}")
                runs = [
                    _measure_one(pair, spoofer, link, engine, kind, seconds) for _ in range(rounds)
                ]
                left = statistics.median(run["beside"] / run["alone"] for run in runs)
                middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                rows.append(
                    {
                        "link": link,
                        "kind": kind,
                        "server us a packet": round(middle["us"], 2),
                        "sent a second": round(middle["sent"]),
                        "read": round(middle["read"]),
                        "Gbit/s alone": round(middle["alone"], 2),
                        "beside": round(middle["beside"], 2),
                        "left": round(left, 2),
                    }
                )
                lines.append(
                    Line(
                        what=f"goodput beside {kind}, {link}",
                        case=f"{PER_SECOND} a second",
                        unit="of that alone",
                        expected=EXPECTED,
                        ours=left,
                    )
                )
    return Found("goodput beside forged packets", rows, lines, told={"engine": engine})


BENCHMARK: Final = Benchmark("abuse", __doc__, measure, rounds=1, seconds=2)

if __name__ == "__main__":
    BENCHMARK.main()
