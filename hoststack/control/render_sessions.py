"""`show session` as text: VPP's columns, with the layers below each session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from hoststack.boundary.handle import index_of, worker_of
from hoststack.control.grammar import Command
from hoststack.control.worker_side import Data

#: States, named as in VPP.
_STATES: Final = {
    "listening": "LISTEN",
    "connecting": "CONNECTING",
    "ready": "ESTABLISHED",
    "closing": "CLOSING",
    "closed": "CLOSED",
}
_ID_COLUMN: Final = 60
_STATE_COLUMN: Final = 15


def render_sessions(command: Command, data: Data) -> Iterator[str]:
    for worker in data["workers"]:
        thread = f"Thread {worker['worker']}:"
        total = sum(worker["counts"].values())
        if not total:
            yield f"{thread} no sessions"
        elif "sessions" not in worker:
            kinds = ", ".join(f"{kind}s {n}" for kind, n in worker["counts"].items())
            yield f"{thread} {total} sessions: {kinds}"
        else:
            yield f"{'Connection':{_ID_COLUMN}}{'State':{_STATE_COLUMN}}{'Rx-f':10}Tx-f"
            for session in worker["sessions"]:
                yield from _session(session)
            if worker.get("more"):
                yield f"{thread} {worker['more']} more are not shown: `limit N` shows more"
            yield f"{thread} active sessions {total}"


def _session(session: dict[str, Any]) -> Iterator[str]:
    line = f"{_title(session):{_ID_COLUMN - 1}} {_STATES[session['state']]:{_STATE_COLUMN}}"
    if session["type"] == "stream":
        line += f"{_used(session['rx']):10}{_used(session['tx'])}"
    yield line.rstrip()
    if "chain" in session:
        yield f"    app {session['application']}"
    if "statistics" in session:
        yield from _connection_lines(session)
    if "chain" in session and session["type"] == "stream":
        for name in ("rx", "tx"):
            if session[name] is not None:
                yield f"    {name.capitalize()} fifo: {_fifo(session[name])}"
    if len(session.get("chain", ())) > 1:
        yield f"    chain {' -> '.join(map(_link, session['chain']))}"


def _title(session: dict[str, Any]) -> str:
    title = f"{_handle(session['handle'])}[Q] "
    if session["type"] == "listener":
        return f"{title}listener {endpoint_text(session['local'])}"
    if session["type"] == "connection":
        return f"{title}conn {path_text(session)}"
    return (
        f"{title}stream {session['stream_id']} {session['direction']} by the "
        f"{session['initiator']}, conn {_handle(session['connection'])}"
    )


def _connection_lines(session: dict[str, Any]) -> Iterator[str]:
    came = "ours"
    if session["listener"] is not None:
        came = f"came in on {_handle(session['listener'])}"
    yield (
        f"    {came}, alpn {session['alpn']}, cipher {session['cipher']}, "
        f"cc {session['congestion_control']}, {session['streams']} streams"
    )
    if session["local_cids"]:
        yield f"    cids {' '.join(session['local_cids'])}"
        yield f"    the peer's {session['remote_cid']}"
    yield from statistics_lines(session["statistics"])


def statistics_lines(statistics: dict[str, int | float]) -> Iterator[str]:
    """Yield RTT and congestion window, then the engine's other statistics."""
    known = dict(statistics)
    rtt = {
        name: known.pop(f"rtt{key}_s")
        for name, key in (("min", "_min"), ("smoothed", ""), ("variance", "_variance"))
        if f"rtt{key}_s" in known
    }
    latest = known.pop("rtt_latest_s", None)
    if latest is not None:
        rtt["latest"] = latest
    if rtt:
        yield "    RTT: " + ", ".join(f"{name} {value * 1e3:.3f} ms" for name, value in rtt.items())
        cwnd, in_flight = known.pop("cwnd_bytes", 0), known.pop("in_flight_bytes", 0)
        yield f"    cwnd {cwnd}, in flight {in_flight}"
    rest = [f"{name} {value}" for name, value in known.items() if value]
    for start in range(0, len(rest), 4):
        yield f"    {', '.join(rest[start : start + 4])}"


def _used(fifo: dict[str, Any] | None) -> str:
    """Return how full a FIFO is."""
    if fifo is None:
        return "-"
    return "corrupt" if fifo["used"] is None else str(fifo["used"])


def _fifo(fifo: dict[str, Any]) -> str:
    if fifo["used"] is None:
        return f"size {fifo['size']}, corrupt: the application has written invalid indices"
    end = ", the end is set" if fifo.get("eof") else ""
    return (
        f"cursize {fifo['used']} nitems {fifo['size']} head {fifo['head']} tail {fifo['tail']}{end}"
    )


def _link(link: dict[str, Any]) -> str:
    """Return one layer of a chain."""
    if link["type"] == "udp":
        return f"[U] {_where(link)} {link['link']}"
    if link["type"] == "cut-through":
        return f"[CT] {_where(link)}"
    return f"{link['type']} {_handle(link['handle'])}"


def _where(link: dict[str, Any]) -> str:
    return endpoint_text(link["local"]) if link["remote"] is None else path_text(link)


def _handle(handle: int) -> str:
    """Return a handle as VPP prints it: thread and index."""
    return f"[{worker_of(handle)}:{index_of(handle)}]"


def path_text(described: dict[str, Any]) -> str:
    """ "10.0.0.1:4433->10.0.0.2:50000"."""
    return f"{endpoint_text(described['local'])}->{endpoint_text(described['remote'])}"


def endpoint_text(endpoint: Sequence[Any]) -> str:
    """Return an endpoint, with brackets where its address needs them."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
