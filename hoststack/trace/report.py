"""The counts as text and as JSON."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyxdp
from hoststack.native.wire._wire import ffi
from hoststack.trace.probes import FIGURES, Counts

#: Why a redirect to an AF_XDP socket failed, by errno (the kernel's net/xdp/xsk.c).
_REASONS: Final = {
    errno.ENOMEM: "the FILL ring was empty: the reader is behind",
    errno.ENOBUFS: "the RX ring was full: the reader is behind",
    errno.ENOSPC: "the packet is larger than a UMEM frame",
    errno.EINVAL: "the socket is bound to another queue or interface",
    errno.ENXIO: "the socket is not bound",
}
#: enum xdp_action (the kernel's include/uapi/linux/bpf.h).
_ACTIONS: Final = ("aborted", "drop", "pass", "tx", "redirect")
_TITLES: Final = {
    "turn_ns": "duration of a turn, ns",
    "received": "datagrams received in a turn",
    "sent": "datagrams sent in a turn",
}
_BAR: Final = 40


class _Program(NamedTuple):
    name: str
    workers: int
    """Of our steering program; 0 for others."""


@cache
def _program(prog_id: int) -> _Program:
    try:
        with pyxdp.Program.from_id(prog_id) as program:
            config = program.maps.get("hs_config")
            raw = config.lookup(0) if config is not None else None
            if raw is None:
                return _Program(program.name, 0)
            return _Program(
                program.name, int(ffi.from_buffer("struct hs_steer_config *", raw).workers)
            )
    except pyxdp.PyxdpError:  # the program is gone
        return _Program("?", 0)


def as_json(counts: Counts, seconds: float, programs: Collection[int] | None) -> dict[str, Any]:
    """Return one object with all counts, or with those of these XDP programs and all processes."""
    return {
        "seconds": round(seconds, 3),
        "redirects": [row for row in _redirects(counts, programs) if "error" not in row],
        "redirect_errors": [row for row in _redirects(counts, programs) if "error" in row],
        "exceptions": [
            {
                **_where(each.prog_id, each.ifindex),
                "action": _ACTIONS[each.act] if each.act < len(_ACTIONS) else str(each.act),
                "count": count,
            }
            for each, count in sorted(counts.exceptions.items())
            if programs is None or each.prog_id in programs
        ],
        "processes": [_process(counts, pid) for pid in sorted({pid for pid, _ in counts.sums})],
    }


def _where(prog_id: int, ifindex: int) -> dict[str, Any]:
    return {"program": _program(prog_id).name, "program_id": prog_id, "ifindex": ifindex}


def _redirects(counts: Counts, programs: Collection[int] | None) -> Iterator[dict[str, Any]]:
    for each, count in sorted(counts.redirects.items()):
        if programs is not None and each.prog_id not in programs:
            continue
        row = {**_where(each.prog_id, each.ifindex), "map_index": each.map_index}
        workers = _program(each.prog_id).workers
        if workers:
            row["queue"], row["worker"] = divmod(each.map_index, workers)
        if each.error:
            row["error"] = errno.errorcode.get(each.error, str(each.error))
            row["reason"] = _REASONS.get(each.error, os.strerror(each.error))
        yield {**row, "count": count}


def _process(counts: Counts, pid: int) -> dict[str, Any]:
    found: dict[str, Any] = {"pid": pid, "command": _command(pid), "turns": 0}
    for figure in FIGURES:
        slots = {
            slot.bits: count
            for slot, count in counts.slots.items()
            if (slot.pid, slot.figure) == (pid, figure)
        }
        found["turns"] = max(found["turns"], sum(slots.values()))
        found[figure] = {
            "sum": counts.sums.get((pid, figure), 0),
            "histogram": [
                {"from": 1 << bits >> 1, "to": max(0, (1 << bits) - 1), "count": count}
                for bits, count in sorted(slots.items())
            ],
        }
    return found


def note_names(pids: Iterable[int], programs: Iterable[int]) -> None:
    """Look up the names of processes and XDP programs while they exist."""
    for pid in pids:
        _command(pid)
    for prog_id in programs:
        _program(prog_id)


@cache
def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return b" ".join(words).decode(errors="replace").strip()[:100]


def as_text(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines for what `as_json` returned."""
    yield f"--- {found['seconds']:.1f} s ---"
    for row in found["redirects"]:
        yield f"redirected  {_socket(row)}{row['count']:>12}"
    for row in found["redirect_errors"]:
        yield f"ERROR       {_socket(row)}{row['count']:>12}  {row['error']}: {row['reason']}"
    for row in found["exceptions"]:
        yield (
            f"EXCEPTION   {row['program']} (id {row['program_id']}) on interface {row['ifindex']}:"
            f" {row['action']}{row['count']:>12}"
        )
    if not (found["redirects"] or found["redirect_errors"] or found["exceptions"]):
        yield "XDP redirected nothing"
    for process in found["processes"]:
        yield ""
        yield f"process {process['pid']}: {process['turns']} turns  ({process['command']})"
        for figure in FIGURES:
            yield from _histogram(_TITLES[figure], process[figure])


def _socket(row: Mapping[str, Any]) -> str:
    if "queue" in row:
        target = f"queue {row['queue']} worker {row['worker']}"
    else:
        target = f"map index {row['map_index']}"
    return f"{row['program']} (id {row['program_id']}) on interface {row['ifindex']}, {target}:"


def _histogram(title: str, figure: Mapping[str, Any]) -> Iterator[str]:
    rows = figure["histogram"]
    yield f"  {title}: {figure['sum']} in all"
    most = max((row["count"] for row in rows), default=1)
    for row in rows:
        span = f"{row['from']}" if row["from"] == row["to"] else f"{row['from']} to {row['to']}"
        bar = "#" * max(1, row["count"] * _BAR // most)
        yield f"    {span:>24} {row['count']:>10} {bar}"
