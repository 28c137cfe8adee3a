"""`hoststack trace`: the XDP tracepoints and the engine's turns, live."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from typing import Final

import pyxdp
from hoststack.trace.probes import Counts, attach
from hoststack.trace.report import as_json, as_text, note_names

_ENDS: Final = {signal.SIGINT, signal.SIGTERM}
_INTERVAL_S: Final = 1.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` to the command line."""
    parser = commands.add_parser(
        "trace",
        help="show live what XDP and the engines of running processes do",
        description="Attaches to running processes without changing them. Shows each second's"
        " redirects and redirect errors of XDP programs, and histograms of the native engine's"
        " turns; a summary at the end. Ends with Ctrl-C. Needs root, python3-bpfcc and kernel"
        " headers.",
    )
    parser.add_argument("-i", "--interface", metavar="IFACE", help="XDP on this interface only")
    parser.add_argument(
        "--pid",
        type=_pid,
        action="append",
        default=[],
        metavar="PID",
        help="turns of this process only; may be given again",
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help="end after so long, and show the summary only"
    )
    parser.add_argument("--json", action="store_true", help="each as one line of JSON")
    parser.set_defaults(run=_run)


def _pid(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 22:
        raise argparse.ArgumentTypeError(f"there is no process {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("name a time above 0, of a day at most")
    return value


def _run(options: argparse.Namespace) -> int:
    view = _View(options.interface, options.json)
    # These signals end the waiting below, and interrupt nothing else.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        with attach(options.pid) as probes:
            count = len(probes.processes)
            found = f"{count} {'process' if count == 1 else 'processes'} with a native engine"
            print(f"tracing XDP and {found}", file=sys.stderr, flush=True)
            note_names(probes.processes, ())
            first = last = probes.read()
            start = since = time.monotonic()
            end = start + options.seconds if options.seconds else float("inf")
            while True:
                left = end - time.monotonic()
                signalled = signal.sigtimedwait(_ENDS, max(0.0, min(left, _INTERVAL_S)))
                now, counts = time.monotonic(), probes.read()
                if signalled is not None or now >= end:
                    view.show(counts.since(first), now - start)
                    return 0
                note_names(
                    (pid for pid, _ in counts.sums), (each.prog_id for each in counts.redirects)
                )
                if options.seconds is None:
                    view.show(counts.since(last), now - since)
                    last, since = counts, now
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _View:
    """Prints counts in the requested format."""

    def __init__(self, interface: str | None, is_json: bool) -> None:
        self._interface = interface
        self._is_json = is_json
        self._programs: set[int] = set()
        self._look()

    def _look(self) -> set[int] | None:
        """Return the programs that the interface has, or has had; None means any."""
        if self._interface is None:
            return None
        for program in pyxdp.attached_programs(self._interface):
            self._programs.add(program.program_id)
        note_names((), self._programs)
        return self._programs

    def show(self, counts: Counts, seconds: float) -> None:
        found = as_json(counts, seconds, self._look())
        if self._is_json:
            print(json.dumps(found), flush=True)
        else:
            print("\n".join(as_text(found)), flush=True)
