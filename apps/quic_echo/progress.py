"""Progress lines during a run: every N seconds, or updated in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import trio

from apps.quic_echo.crew import Crew

#: A transfer that ends before this needs no progress line.
_PATIENCE_S: Final = 2.0
_REFRESH_S: Final = 0.5


async def show_progress(crew: Crew) -> None:
    """Show progress until cancelled, on stderr, because stdout is for the report."""
    every_s = crew.options.stats_s
    if every_s:
        await _repeat(crew, every_s, lambda line: f"quic_echo: {line}\n")
    elif sys.stderr.isatty() and crew.options.log_level:
        await trio.sleep(_PATIENCE_S)
        try:
            await _repeat(crew, _REFRESH_S, lambda line: f"\r\x1b[K{line}")
        finally:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


async def _repeat(crew: Crew, every_s: float, decorate: Callable[[str], str]) -> None:
    before = (time.monotonic(), crew.tx_bytes, crew.rx_bytes)
    due = trio.current_time()
    while True:
        due += every_s
        await trio.sleep_until(due)
        now = (time.monotonic(), crew.tx_bytes, crew.rx_bytes)
        line = progress_line(now[0] - before[0], now[1] - before[1], now[2] - before[2], crew)
        print(decorate(line), end="", file=sys.stderr, flush=True)
        before = now


def progress_line(seconds: float, tx_bytes: int, rx_bytes: int, crew: Crew) -> str:
    """Return the rates of the last seconds, and the share of the total."""
    line = f"TX {_rate(tx_bytes, seconds)}, RX {_rate(rx_bytes, seconds)}"
    options = crew.options
    if options.connections and options.streams and options.tx_bytes is not None:
        per_stream = options.tx_bytes + (options.rx_bytes or 0)
        total = options.connections * options.streams * per_stream
        if total:
            line += f", {100 * (crew.tx_bytes + crew.rx_bytes) // total} %"
    return line


def _rate(count: int, seconds: float) -> str:
    bits = count * 8 / seconds if seconds > 0 else 0.0
    for unit, size in (("Gb/s", 1e9), ("Mb/s", 1e6), ("Kb/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.3f} {unit}"
    return f"{bits:.0f} b/s"
