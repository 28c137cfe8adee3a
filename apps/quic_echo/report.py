"""The report at the end, as text in VPP's format or as JSON with VPP's keys."""

from __future__ import annotations

import json
from typing import Any

from apps.quic_echo.record import Count, Record


def text_report(record: Record) -> str:
    """Return the report for people; stderr has the reasons of failures already."""
    options, counts = record.options, record.counts
    seconds = record.timing.between_s(options.start_event, options.end_event)
    lines = [f"Timing {options.start_event}:{options.end_event}"]
    for event, word in ((options.start_event, "Start"), (options.end_event, "End")):
        if event not in record.timing.at_s:
            lines.append(f"Missing {word} Timing Event ({event})!")
    for title, count in (("TX", record.tx_bytes), ("RX", record.rx_bytes)):
        lines.append(f"-------- {title} --------")
        lines.append(
            f"{count} bytes ({count >> 20} mbytes, {count >> 30} gbytes) in {seconds:.6f} seconds"
        )
        if seconds > 0:
            lines.append(f"{count * 8 / seconds / 1e9:.4f} Gbit/second")
    rule = "--------------------"
    lines += [
        rule,
        _count_line("Received close on", counts.closed),
        _count_line("Received reset on", counts.reset),
        _count_line("Sent close on    ", counts.active),
        _count_line("Discarded        ", counts.clean),
        rule,
        _count_line("Got accept on    ", counts.accepted),
        _count_line("Got connected on ", counts.connected),
    ]
    if record.exit_status:
        lines += ["", f"Failure Return Status: {record.exit_status}"]
    return "\n".join(lines)


def json_report(record: Record) -> str:
    """Return the report for programs: one JSON object, whatever happened."""
    options, timing, counts = record.options, record.timing, record.counts
    seconds = timing.between_s(options.start_event, options.end_event)
    report: dict[str, Any] = {
        "role": options.role,
        "link": record.link_name,
        "engine": record.engine_name,
        "time": round(seconds, 9),
        "start_evt": options.start_event,
        "start_evt_missing": options.start_event not in timing.at_s,
        "end_evt": options.end_event,
        "end_evt_missing": options.end_event not in timing.at_s,
        "events": {event: round(at, 9) for event, at in timing.since_start_s().items()},
        "rx_data": record.rx_bytes,
        "tx_data": record.tx_bytes,
        "rx_bits_per_second": round(record.rx_bytes * 8 / seconds, 1) if seconds > 0 else 0.0,
        "tx_bits_per_second": round(record.tx_bytes * 8 / seconds, 1) if seconds > 0 else 0.0,
        "wrong_bytes": record.wrong_bytes,
        "closing": {
            "reset": vars(counts.reset),
            "recv evt": vars(counts.closed),
            "send evt": vars(counts.active),
            "clean": vars(counts.clean),
            "accepted": vars(counts.accepted),
            "connected": vars(counts.connected),
        },
        "engine_counters": record.engine_counters,
        "link_statistics": record.link_statistics,
        "results": {
            "has_failed": record.exit_status,
            "fail_descr": "; ".join(_failures(record)),
        },
    }
    return json.dumps(report, indent=2)


def json_failure(status: int, text: str) -> str:
    """Return the JSON object of a run that did not even start."""
    return json.dumps({"results": {"has_failed": status, "fail_descr": text}}, indent=2)


def _count_line(words: str, count: Count) -> str:
    return f"{words} {count.s} streams (and {count.q} Quic conn)"


def _failures(record: Record) -> list[str]:
    untold = record.failure_count - len(record.failures)
    return record.failures + ([f"and {untold} more"] if untold else [])
