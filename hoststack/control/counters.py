"""`show quic|xdp|app|errors|workers|udp` and `clear errors`, in one worker."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from hoststack.control.grammar import Command
from hoststack.control.sessions import describe_path
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.session.session import ConnectionSession, ListenerSession

if TYPE_CHECKING:
    from hoststack.link.xdp.steering import Steering

#: Counters of a link that are no errors: what it moved, and how;
_TOTALS: Final = frozenset(
    {
        *("rx_datagrams", "rx_bytes", "tx_datagrams", "tx_bytes"),
        *("xsk_rx_frames", "xsk_tx_frames", "xsk_kicks", "xsk_kicks_again"),
        # The kernel found nothing to send, which is the normal end of a burst.
        "xsk_tx_ring_empty_descs",
    }
)
#: and packets that the steering program passed on.
_NO_ERRORS: Final = ("xdp_redirected_", "xdp_passed_")
#: Delayed, not lost.
_INFORMATION: Final = frozenset({"tx_full"})
#: Connections that `show quic verbose` lists.
_LISTED_CONNECTIONS: Final = 50


async def show_quic(command: Command, side: WorkerSide) -> Data:
    layer = side.worker.layer
    config = layer.default_config
    data: Data = {
        "engine": layer.engine.name,
        "default": {
            "congestion_control": config.congestion_control,
            "rx_fifo_bytes": config.rx_fifo_bytes,
            "tx_fifo_bytes": config.tx_fifo_bytes,
        },
        "counters": asdict(layer.engine.counters),
    }
    if command.arguments.get("verbose"):
        connections = [each for each in side.sessions if isinstance(each, ConnectionSession)]
        data["connections"] = [
            {
                "handle": each.handle,
                **describe_path(each.context),
                "statistics": each.context.statistics(),
            }
            for each in connections[:_LISTED_CONNECTIONS]
        ]
    return data


async def show_xdp(command: Command, side: WorkerSide) -> Data:
    link = side.worker.link
    data: Data = {"link": link.name, "trouble": link.trouble}
    statistics = link.statistics()
    sockets = _with_prefix(statistics, "xsk_")
    if sockets:
        data["sockets"] = sockets
    # In a daemon the supervisor owns the program, and a worker only has the sockets.
    steering: Steering | None = getattr(link, "steering", None)
    if steering is not None:
        data |= describe_program(steering)
    return data


def _with_prefix(statistics: dict[str, int], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): count
        for name, count in statistics.items()
        if name.startswith(prefix)
    }


def describe_program(steering: Steering) -> Data:
    """Return the steering program of an interface, its ports and its verdicts."""
    return {
        "interface": steering.interface,
        "mode": steering.mode,
        "program_id": steering.program_id,
        "ports": [list(endpoint) for endpoint in steering.ports()],
        "verdicts": steering.counters(),
    }


async def show_app(command: Command, side: WorkerSide) -> Data:
    if command.arguments.get("namespaces"):
        return {"namespaces": side.worker.layer.namespaces.lines()}
    kinds: dict[type, str] = {ListenerSession: "listeners", ConnectionSession: "connections"}
    counts: Counter[tuple[object, str]] = Counter(
        (session.application, kinds[type(session)]) for session in side.sessions
    )
    for session in side.sessions:
        if isinstance(session, ConnectionSession):
            counts[session.application, "streams"] += side.streams.count_of(session.context)
    return {
        "applications": [
            {
                "name": application.name,
                "namespace": application.namespace,
                "scopes": sorted(application.scopes),
                **{
                    kind: counts[application, kind]
                    for kind in ("listeners", "connections", "streams")
                },
            }
            for application in side.worker.layer.applications
        ]
    }


def _errors(side: WorkerSide) -> dict[tuple[str, str], int]:
    """Return error counts since this worker started, by node and reason."""
    engine, link = side.worker.layer.engine, side.worker.link
    counters = engine.counters
    found = {(f"quic-{engine.name}", reason): n for reason, n in counters.dropped.items()}
    found[f"quic-{engine.name}", "tx_full"] = counters.tx_full
    for reason, count in side.worker.layer.refused.items():
        found["session", f"refused_{reason}" if reason != "faults" else reason] = count
    for name, count in link.statistics().items():
        # The engine's own counter for that is included above.
        if name not in _TOTALS | _INFORMATION and not name.startswith(_NO_ERRORS):
            found[f"link-{link.name}", name] = count
    return found


async def show_errors(command: Command, side: WorkerSide) -> Data:
    counted = {key: count - side.counted_before.get(key, 0) for key, count in _errors(side).items()}
    return {
        "errors": [
            {
                "count": count,
                "node": node,
                "reason": reason,
                "severity": "info" if reason in _INFORMATION else "error",
            }
            for (node, reason), count in sorted(counted.items())
            if count
        ]
    }


async def clear_errors(command: Command, side: WorkerSide) -> Data:
    side.counted_before = _errors(side)
    return {}


async def show_workers(command: Command, side: WorkerSide) -> Data:
    layer, link = side.worker.layer, side.worker.link
    counters = layer.engine.counters
    usage = os.times()
    return {
        "pid": os.getpid(),
        "link": link.name,
        "trouble": link.trouble,
        "engine": layer.engine.name,
        "enabled": layer.is_enabled,
        "applications": len(layer.applications),
        "sessions": len(layer.sessions) + len(layer.streams),
        "connections": counters.connections,
        "turns": counters.turns,
        "rx_datagrams": counters.rx_datagrams,
        "tx_datagrams": counters.tx_datagrams,
        "cpu_seconds": round(usage.user + usage.system, 2),
    }


async def show_udp(command: Command, side: WorkerSide) -> Data:
    link = side.worker.link
    statistics = link.statistics()
    ports: list[dict[str, Any]] = [
        {"local": list(port.local), "use": port.use, "holders": port.holders}
        for port in side.worker.layer.ports.in_use()
    ]
    return {
        "link": link.name,
        "ports": ports,
        "counters": {
            name: count
            for name, count in statistics.items()
            if not name.startswith(("xdp_", "xsk_"))
        },
    }
