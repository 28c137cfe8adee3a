"""Two workers of a daemon with an application each, against one worker for both: goodput in all.

Beside them is one worker with one application, which has the machine for itself. Each application
sends on one stream over af_xdp, to a program of its own with UDP sockets. Where the CPU time goes
stands beside it: with as few cores as there are processes at work, these are the limit, and not the
workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, compared
from bench.processes import Process, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

EXPECTED: Final = Expected(">", 1)
#: Workers, and applications.
CASES: Final = {
    "1 worker, 1 application": (1, 1),
    "1 worker, 2 applications": (1, 2),
    "2 workers, an application each": (2, 2),
}
ONE, ONE_OF_TWO, TWO = CASES
_SHARES: Final = ("workers", "applications", "peers", "whole machine")


@dataclass(frozen=True)
class Total:
    """What all applications of a run reached."""

    gbit_per_second: float
    cpus: dict[str, float]
    """CPU seconds a second: of whom."""


def _busy_seconds() -> float:
    """Of all CPUs, softirqs included (proc(5))."""
    words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _used(pids: Sequence[int]) -> float:
    return sum(sum(ends.cpu_seconds(pid)) for pid in pids)


def _run(engine: str, workers: int, applications: int, seconds: float) -> Total:
    with ExitStack() as stack:
        pair = stack.enter_context(netns.veth_pair(queues=2))
        served = stack.enter_context(daemon(pair.a, engine, workers=workers))
        peers: list[Process] = []
        clients: list[Process] = []
        for number in range(applications):
            uri = f"quic://{pair.b.ipv4}:{ends.PORT + number}"
            line = ends.end_command(pair.b, "server", "udp", engine, uri)
            peers.append(stack.enter_context(running(line)))
            words = [f"--socket={served.api}", f"--worker={number % workers}", "--waits"]
            words += [f"--seconds={seconds}", f"--server-pid={peers[-1].pid}"]
            line = ends.end_command(pair.a, "upload", "af_xdp", engine, uri, *words)
            clients.append(Process(line, has_input=True))
            stack.callback(clients[-1].close)
            clients[-1].wait_ready()
        who = {
            "workers": served.worker_pids,
            "applications": [client.pid for client in clients],
            "peers": [peer.pid for peer in peers],
        }
        used, busy_s, start_s = _all_used(who), _busy_seconds(), time.perf_counter()
        for client in clients:
            client.say("go")
        # Before they end, as nobody's CPU time can be read any more then.
        time.sleep(seconds)
        took_s = time.perf_counter() - start_s
        shares = {name: (now - used[name]) / took_s for name, now in _all_used(who).items()}
        shares["whole machine"] = (_busy_seconds() - busy_s) / took_s
        found = [client.finish_to_json() for client in clients]
    speeds = [one["bytes"] * 8 / one["seconds"] / 1e9 for one in found]
    return Total(sum(speeds), shares)


def _all_used(who: dict[str, list[int]]) -> dict[str, float]:
    return {name: _used(pids) for name, pids in who.items()}


def measure(rounds: int, seconds: float) -> Found:
    """Goodput in all of each case, and the CPUs that each kind of process took."""
    engine = available_engines()[0]
    found = interleave(
        {name: partial(_run, engine, *counts, seconds) for name, counts in CASES.items()}, rounds
    )
    goodput = {name: [one.gbit_per_second for one in all_] for name, all_ in found.items()}
    rows: list[dict[str, Any]] = [
        {"what": name, "figure": "Gbit/s", **spread(goodput[name])} for name in CASES
    ]
    rows += [
        {"what": name, "figure": f"CPUs: {share}", **spread([one.cpus[share] for one in all_], 2)}
        for name, all_ in found.items()
        for share in _SHARES
    ]
    of_two = partial(
        compared,
        goodput,
        TWO,
        what=f"goodput in all, {engine}, a daemon over af_xdp",
        case=TWO,
        unit="Gbit/s",
    )
    return Found(
        "Gbit/s in all, and CPUs at work",
        rows,
        [of_two(ONE_OF_TWO, expected=EXPECTED), of_two(ONE)],
        told={"engine": engine, "cpus": os.cpu_count()},
    )


BENCHMARK: Final = Benchmark("workers", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()
