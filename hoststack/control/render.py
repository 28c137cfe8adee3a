"""Answers as text, in the manner of VPP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from hoststack.control.grammar import Command
from hoststack.control.render_sessions import endpoint_text, path_text, render_sessions
from hoststack.control.render_sessions import statistics_lines as _statistics_lines
from hoststack.control.worker_side import Data
from hoststack.text import printable

#: Most characters of a line: some list all workers, or many flags.
_MOST_CHARACTERS: Final = 16384

Renderer = Callable[[Command, Data], Iterator[str]]


def render(command: Command, data: Data) -> str:
    """Return a merged answer as text, without a newline at the end; it may be empty."""
    return "\n".join(
        printable(line, _MOST_CHARACTERS) for line in _RENDERERS[command.name](command, data)
    )


def _help(command: Command, data: Data) -> Iterator[str]:
    commands = data["commands"]
    if len(commands) == 1:
        yield commands[0]["usage"]
        yield f"  {commands[0]['help']}"
        return
    for each in commands:
        yield f"{each['name']:22}{each['help']}"


def _echo_server(command: Command, data: Data) -> Iterator[str]:
    if "stopped" in data:
        for uri in data["stopped"]:
            yield f"echo server on {uri} stopped"
        if not data["stopped"]:
            yield "no echo server was running"
        return
    echo = "" if data["echo"] else ", without echo"
    workers = len(data["workers"])
    on = "" if workers == 1 else f", on {workers} workers"
    yield f"echo server listens on {endpoint_text(data['local'])}{echo}{on}"


def _echo_clients(command: Command, data: Data) -> Iterator[str]:
    rate = data["handshakes_per_second"]
    yield (
        f"{data['handshakes']} three-way handshakes in {data['handshake_seconds']:.2f} seconds"
        + (f" {rate:.2f}/s" if rate is not None else "")
    )
    yield f"Test started at {data['started']:.6f}"
    yield f"Test finished at {data['finished']:.6f}"
    moved = data["bytes"]
    yield (
        f"{moved} bytes ({moved >> 20} mbytes, {moved >> 30} gbytes) in "
        f"{data['seconds']:.2f} seconds"
    )
    if data["seconds"]:
        duplex = f"{data['duplex']}-duplex"
        yield f"{data['bytes_per_second']:.2f} bytes/second {duplex}"
        yield f"{data['gbit_per_second']:.4f} gbit/second {duplex}"


def _asked(command: Command, data: Data) -> Iterator[str]:
    asked, behind = (", ".join(map(str, data[key])) for key in ("asked", "behind"))
    yield f"asked to read their certificates again: {asked or 'none, no application is attached'}"
    if behind:
        yield f"not asked, since they do not read what they are told: {behind}"


def _quic(command: Command, data: Data) -> Iterator[str]:
    default = data["default"]
    yield (
        f"QUIC engine {data['engine']}, default cc {default['congestion_control']}, "
        f"fifo-size rx {default['rx_fifo_bytes']} tx {default['tx_fifo_bytes']}"
    )
    columns = [data["total"], *(worker["counters"] for worker in data["workers"])]
    titles = ["Total", *(f"Thread {worker['worker']}" for worker in data["workers"])]
    if len(columns) == 2:
        # One worker: its counts are the total.
        del columns[1], titles[1]
    yield f"  {'':24}" + "".join(f"{title:>14}" for title in titles)
    for name in data["total"]:
        yield from _counter_lines(name, [column.get(name, 0) for column in columns])
    for worker in data["workers"]:
        for connection in worker.get("connections", ()):
            index = connection["handle"] & 0xFFFF_FFFF
            yield f"[{worker['worker']}:{index}][Q] {path_text(connection)}"
            yield from _statistics_lines(connection["statistics"])


def _counter_lines(name: str, values: list[Any]) -> Iterator[str]:
    """Yield a count, a table of counts or a row of counts, beside those of other workers."""
    first = values[0]
    if isinstance(first, dict):
        for key in first:
            yield from _counter_lines(
                f"{name} {key}", [value.get(key, 0) if value else 0 for value in values]
            )
    elif isinstance(first, list | tuple):
        for place, _ in enumerate(first):
            counts = [value[place] if value else 0 for value in values]
            if any(counts):
                yield from _counter_lines(f"{name} {_bucket(place)}", counts)
    else:
        yield f"  {name:24}" + "".join(f"{value:>14}" for value in values)


def _bucket(place: int) -> str:
    """Return a label of EngineCounters.rx_in_turns: 0, 1, 2 to 3, 4 to 7, ..., 64 or more."""
    least = 0 if not place else 1 << place - 1
    if least <= 1:
        return str(least)
    return f"{least}+" if least >= 64 else f"{least}-{2 * least - 1}"


def _xdp(command: Command, data: Data) -> Iterator[str]:
    links = sorted({worker["link"] for worker in data["workers"]})
    if "af_xdp" not in links:
        yield f"no XDP here: the link is {', '.join(links)}"
        return
    troubles = [data.get("trouble"), *(each.get("trouble") for each in data["workers"])]
    for trouble in dict.fromkeys(filter(None, troubles)):
        yield f"out of service: {trouble}"
    if "interface" not in data:
        return
    yield f"{data['interface']}: program id {data['program_id']}, {data['mode']} mode"
    yield f"  ports {', '.join(map(endpoint_text, data['ports'])) or 'none'}"
    yield "  verdicts"
    for name, count in data["verdicts"].items():
        yield f"    {name:26}{count:>14}"
    for queue, frames in enumerate(data.get("fill_levels", [])):
        yield f"  FILL ring of queue {queue}: {frames} frames"
    for worker in data["workers"]:
        yield f"  AF_XDP sockets of thread {worker['worker']}"
        for name, count in worker.get("sockets", {}).items():
            yield f"    {name:26}{count:>14}"


def _applications(command: Command, data: Data) -> Iterator[str]:
    if "namespaces" in data:
        yield from data["namespaces"]
        return
    yield (
        f"{'Index':8}{'Name':28}{'Namespace':16}{'Scopes':14}{'Threads':10}{'Listeners':>10}"
        f"{'Connections':>13}{'Streams':>9}"
    )
    for index, each in enumerate(data["applications"]):
        threads = ",".join(map(str, each["workers"]))
        yield (
            f"{index:<8}{each['name']:28}{each['namespace']:16}{','.join(each['scopes']):14}"
            f"{threads:10}{each['listeners']:>10}{each['connections']:>13}{each['streams']:>9}"
        )


def _errors(command: Command, data: Data) -> Iterator[str]:
    yield f"{'Count':>10}  {'Node':24}{'Reason':32}Severity"
    for error in data["errors"]:
        yield (f"{error['count']:>10}  {error['node']:24}{error['reason']:32}{error['severity']}")


def _workers(command: Command, data: Data) -> Iterator[str]:
    yield (
        f"{'ID':4}{'PID':>8}  {'Link':8}{'Engine':9}{'Sessions':>9}{'Connections':>13}{'Turns':>12}"
        f"{'Rx datagrams':>14}{'Tx datagrams':>14}{'CPU s':>9}"
    )
    for each in data["workers"]:
        yield (
            f"{each['worker']:<4}{each['pid']:>8}  {each['link']:8}{each['engine']:9}"
            f"{each['sessions']:>9}{each['connections']:>13}{each['turns']:>12}"
            f"{each['rx_datagrams']:>14}{each['tx_datagrams']:>14}{each['cpu_seconds']:>9.2f}"
            + ("" if each["enabled"] else "  sessions disabled")
            + (f"  out of service: {each['trouble']}" if each["trouble"] else "")
        )


def _udp(command: Command, data: Data) -> Iterator[str]:
    for worker in data["workers"]:
        yield f"Thread {worker['worker']}: link {worker['link']}"
        for port in worker["ports"]:
            holders = port["holders"] - (port["use"] == "listener")
            count = "" if port["use"] == "client" else f", {holders} connections"
            yield f"  [U] {endpoint_text(port['local']):44}{port['use']}{count}"
        for name, count in worker["counters"].items():
            yield f"    {name:26}{count:>14}"


def _rules(command: Command, data: Data) -> Iterator[str]:
    yield from data["rules"] or ["no session rules: everything is allowed"]


def _done(what: str) -> Renderer:
    """Return a renderer for commands that only report success."""

    def lines(command: Command, data: Data) -> Iterator[str]:
        yield what.format(**data)

    return lines


_RENDERERS: Final[dict[str, Renderer]] = {
    "help": _help,
    "tls reload": _asked,
    "session enable": _done("session layer enabled"),
    "session disable": _done("session layer disabled: existing sessions continue"),
    "test echo server": _echo_server,
    "test echo clients": _echo_clients,
    "show session": render_sessions,
    "show quic": _quic,
    "show xdp": _xdp,
    "show app": _applications,
    "show errors": _errors,
    "show workers": _workers,
    "show udp": _udp,
    "clear errors": _done("error counts start from zero"),
    "quic set cc": _done("new connections use {cc}"),
    "session rule add": _done("session rule added"),
    "session rule del": _done("session rule deleted"),
    "session rule show": _rules,
    "app ns add": _done("namespace {id} added"),
    "quic set fifo-size": _done("new connections have FIFOs of {fifo_bytes} bytes"),
}
