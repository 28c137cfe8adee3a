"""The aioquic engine in quic_echo against aioquic's own asyncio, over one veth pair in one run.

One stream, one direction at a time, MTU 1500, a process at each end in a namespace of its own.
The contenders take turns, so that a bad minute of the machine hits them all; each figure is the
median of its rounds, and its ratio the median of what its rounds were to aioquic's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.support import netns

_TIMEOUT_S: Final = 120
#: How many times as fast as aioquic's asyncio, as shipped, quic_echo over af_xdp is to be.
EXPECTED_RATIO: Final = 5.0
_QUIC_ECHO: Final = (sys.executable, "-m", "apps.quic_echo")
_AIOQUIC: Final = (sys.executable, "-m", "bench.aioquic_asyncio")
_FULL_DATAGRAM: Final = ("--datagram-bytes", "1472")


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server, from its first line on; stopped at the end."""
    # quic_echo says on stderr that it listens, for its stdout is the report's.
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        yield server
    finally:
        server.terminate()
        try:
            server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def _client(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command[3:])} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def quic_echo(pair: netns.VethPair, link: str, direction: str, count: int) -> float:
    """One run; bits per second."""
    uri = f"quic://{pair.b.ipv4}:4434"
    engine = ("engine", "aioquic")  # bench.bulk has the native one
    upload, download = (count, 0) if direction == "upload" else (0, count)

    def words(side: netns.Side, *more: str) -> list[str]:
        return side.command(*_QUIC_ECHO, "interface", side.ifname, *engine, "link", link, *more)

    server = words(pair.b, "server", "uri", uri, f"TX={download}", f"RX={upload}")
    client = words(pair.a, "client", "uri", uri, f"TX={upload}", f"RX={download}", "json")
    with _running(server):
        report = _client([*client, "time", "sconnect:lastbyte"])
    return count * 8 / float(report["time"])


def aioquic(pair: netns.VethPair, options: tuple[str, ...], direction: str, count: int) -> float:
    """One run; bits per second."""
    with _running(pair.b.command(*_AIOQUIC, "server", pair.b.ipv4, *options)):
        client = (*_AIOQUIC, "client", pair.b.ipv4, direction, str(count), *options)
        report = _client(pair.a.command(*client))
    return float(report["bytes"]) * 8 / float(report["seconds"])


def measure(megabytes: int, rounds: int) -> list[dict[str, Any]]:
    """All contenders, in turns."""
    contenders: dict[str, tuple[Callable[..., float], Any, int]] = {
        # aioquic by itself is slower: it moves a quarter as much in about the same time
        "quic_echo, af_xdp": (quic_echo, "af_xdp", megabytes),
        "quic_echo, udp": (quic_echo, "udp", megabytes),
        "aioquic asyncio, as shipped": (aioquic, (), max(1, megabytes // 4)),
        "aioquic asyncio, full datagrams": (aioquic, _FULL_DATAGRAM, max(1, megabytes // 4)),
    }
    rows = []
    for direction in ("upload", "download"):
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        with netns.veth_pair() as pair:
            for _ in range(rounds):
                for name, (run, option, size) in contenders.items():
                    figures[name].append(run(pair, option, direction, size << 20))
        base = figures["aioquic asyncio, as shipped"]
        for name, found in figures.items():
            median = statistics.median(found)
            rows.append(
                {
                    "what": name,
                    "direction": direction,
                    "mbit_per_second": round(median / 1e6, 1),
                    "lowest": round(min(found) / 1e6, 1),
                    "highest": round(max(found) / 1e6, 1),
                    "ratio_to_aioquic": round(
                        statistics.median(a / b for a, b in zip(found, base, strict=True)), 2
                    ),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=100, help="for each transfer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("quic_echo bench: needs root: it makes network namespaces and loads XDP programs")
    rows = measure(wanted.megabytes, wanted.rounds)
    print(f"{'':34}{'':10}{'Mbit/s':>9}{'lowest':>9}{'highest':>9}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['what']:34}{row['direction']:10}{row['mbit_per_second']:>9}"
            f"{row['lowest']:>9}{row['highest']:>9}{row['ratio_to_aioquic']:>8}"
        )
    print(f"expected of quic_echo over af_xdp: {EXPECTED_RATIO} or more")
    if wanted.json:
        with open(wanted.json, "w", encoding="utf-8") as out:
            json.dump(
                {"benchmark": "quic_echo", "expected_ratio": EXPECTED_RATIO, "rows": rows},
                out,
                indent=2,
            )


if __name__ == "__main__":
    main()
