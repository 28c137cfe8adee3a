"""Merging the answers of several workers into one, which `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from hoststack.control.commands import help_about
from hoststack.control.grammar import Command, CommandError
from hoststack.control.worker_side import Data

Merger = Callable[[Command, Sequence[Data]], Data]


def merge(command: Command, answers: Sequence[Data]) -> Data:
    """Merge the answers of the workers, which come in any order; raises CommandError."""
    merger = _MERGERS.get(command.name, _same)
    return merger(command, sorted(answers, key=lambda answer: int(answer["worker"])))


def _same(command: Command, answers: Sequence[Data]) -> Data:
    """Merge answers of workers that all did the same."""
    first = dict(answers[0])
    del first["worker"]
    return first | {"workers": [answer["worker"] for answer in answers]}


def _side_by_side(command: Command, answers: Sequence[Data]) -> Data:
    return {"workers": list(answers)}


def _help(command: Command, answers: Sequence[Data]) -> Data:
    """Answer `help`, which no worker runs."""
    found = help_about(str(command.arguments.get("about", "")))
    return {
        "commands": [{"name": each.name, "usage": each.usage, "help": each.help} for each in found]
    }


def _echo_server(command: Command, answers: Sequence[Data]) -> Data:
    """Merge answers about echo servers; a worker that started later may have missed some."""
    if "stopped" not in answers[0]:
        listening = [answer for answer in answers if not answer.get("left_out")]
        if not listening:
            raise CommandError("worker 0 has to listen, but is not running now: try again")
        return _same(command, listening)
    stopped = sorted({uri for answer in answers for uri in answer["stopped"]})
    if not stopped and "uri" in command.arguments:
        running = sorted({uri for answer in answers for uri in answer["running"]})
        raise CommandError(
            f"there is no echo server on {command.arguments['uri']}: there is "
            f"{', '.join(running) or 'none at all'}"
        )
    return {"stopped": stopped, "workers": [answer["worker"] for answer in answers]}


def _sessions(command: Command, answers: Sequence[Data]) -> Data:
    kept = [answer for answer in answers if not answer.get("left_out")]
    if not kept:
        numbers = ", ".join(str(answer["worker"]) for answer in answers)
        raise CommandError(
            f"there is no worker {command.arguments.get('worker', 0)}: there is {numbers}"
        )
    return {"workers": kept}


def _quic(command: Command, answers: Sequence[Data]) -> Data:
    first = answers[0]
    total = first["counters"]
    for answer in answers[1:]:
        total = _sum(total, answer["counters"])
    return {
        "engine": first["engine"],
        "default": first["default"],
        "total": total,
        "workers": list(answers),
    }


def _sum(left: Any, right: Any) -> Any:
    """Add counts, tables of counts and rows of counts."""
    if isinstance(left, dict):
        names = [*left, *(name for name in right if name not in left)]
        return {name: _sum(left.get(name, 0), right.get(name, 0)) for name in names}
    if isinstance(left, list | tuple):
        return [_sum(one, other) for one, other in zip(left, right, strict=True)]
    return left + right


def _xdp(command: Command, answers: Sequence[Data]) -> Data:
    """Merge answers about XDP: the program is the interface's, the same in every worker."""
    merged: Data = {"workers": []}
    for answer in answers:
        own = {key: answer[key] for key in ("worker", "link", "sockets") if key in answer}
        merged["workers"].append(own)
        merged |= {key: value for key, value in answer.items() if key not in own}
    return merged


def _applications(command: Command, answers: Sequence[Data]) -> Data:
    """Merge applications, each of which is attached to every worker that it uses."""
    if "namespaces" in answers[0]:
        return _same(command, answers)
    by_name: dict[tuple[str, str], Data] = {}
    for answer in answers:
        for each in answer["applications"]:
            about = by_name.setdefault(
                (each["namespace"], each["name"]), {"name": each["name"], "workers": []}
            )
            if answer["worker"] not in about["workers"]:
                about["workers"].append(answer["worker"])
            for key, value in each.items():
                if isinstance(value, int):
                    about[key] = about.get(key, 0) + value
                elif key != "name":
                    about[key] = value
    return {"applications": list(by_name.values())}


def _asked(command: Command, answers: Sequence[Data]) -> Data:
    """Merge the applications that were asked: one of several workers is enough."""
    asked = {name for answer in answers for name in answer["asked"]}
    behind = {name for answer in answers for name in answer["behind"]} - asked
    return {"asked": sorted(asked), "behind": sorted(behind)}


def _errors(command: Command, answers: Sequence[Data]) -> Data:
    found: dict[tuple[str, str], Data] = {}
    for answer in answers:
        for error in answer["errors"]:
            key = error["node"], error["reason"]
            if key in found:
                found[key]["count"] += error["count"]
            else:
                found[key] = dict(error)
    return {"errors": [found[key] for key in sorted(found)]}


def _echo_clients(command: Command, answers: Sequence[Data]) -> Data:
    busy = [answer for answer in answers if answer["handshakes"]]
    wanted = int(command.arguments.get("clients", 1))
    missing = wanted - sum(answer["handshakes"] for answer in busy)
    if missing > 0:
        raise CommandError(
            f"{missing} of {wanted} clients had no worker: one of them is being replaced; try again"
        )
    started = min(answer["started"] for answer in busy)
    finished = max(answer["finished"] for answer in busy)
    seconds = finished - started
    handshakes = sum(answer["handshakes"] for answer in busy)
    handshake_seconds = max(answer["handshake_seconds"] for answer in busy)
    tx_bytes, rx_bytes = (sum(answer[key] for answer in busy) for key in ("tx_bytes", "rx_bytes"))
    # Count as VPP does: bytes that came back, or bytes sent one way.
    moved = rx_bytes if busy[0]["duplex"] == "full" else tx_bytes
    return {
        "uri": busy[0]["uri"],
        "handshakes": handshakes,
        "handshake_seconds": handshake_seconds,
        "handshakes_per_second": handshakes / handshake_seconds if handshake_seconds else None,
        "streams": sum(answer["streams"] for answer in busy),
        "started": started,
        "finished": finished,
        "seconds": seconds,
        "tx_bytes": tx_bytes,
        "rx_bytes": rx_bytes,
        "bytes": moved,
        "bytes_per_second": moved / seconds if seconds else None,
        "gbit_per_second": moved * 8 / seconds / 1e9 if seconds else None,
        "duplex": busy[0]["duplex"],
        "workers": list(answers),
    }


_MERGERS: Final[dict[str, Merger]] = {
    "help": _help,
    "test echo server": _echo_server,
    "show session": _sessions,
    "show quic": _quic,
    "show xdp": _xdp,
    "show app": _applications,
    "show errors": _errors,
    "tls reload": _asked,
    "show workers": _side_by_side,
    "show udp": _side_by_side,
    "test echo clients": _echo_clients,
}
