"""`show session`, in one worker: sessions as JSON, with the layers below each of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import trio

from hoststack.boundary.handle import is_stream, make_handle
from hoststack.control.grammar import Command, CommandError
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.quic.seam import ConnectionContext
from hoststack.session.about_stream import AboutStream, FifoState
from hoststack.session.session import (
    AnySession,
    ConnectionSession,
    ListenerSession,
    SessionState,
    chain,
)
from hoststack.transport.local.cut_through import CutConnection, CutListener

_READY: Final = SessionState.READY.value
#: The default limit of a list's length.
DEFAULT_LIMIT: Final = 50

#: Sessions to describe before the engine runs again.
_SESSIONS_AT_ONCE: Final = 50

Described = dict[str, Any]


async def show_session(command: Command, side: WorkerSide) -> Data:
    arguments = command.arguments
    verbose = int(arguments.get("verbose", 0))
    data: Data = {
        "counts": _counts(side),
        "states": {},
    }
    if "worker" in arguments and arguments["worker"] != side.index:
        return {**data, "left_out": True}
    for session in side.sessions:
        _count_state(data["states"], session.state.value)
    if len(side.streams):
        data["states"][_READY] = data["states"].get(_READY, 0) + len(side.streams)
    if "index" in arguments:
        return {**data, "sessions": _one(side, int(arguments["index"]))}
    if verbose:
        limit = int(arguments.get("limit", DEFAULT_LIMIT))
        data["sessions"] = []
        for place, each in enumerate(islice(chain_all(side), limit)):
            if place % _SESSIONS_AT_ONCE == _SESSIONS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            described = _described(side, each, verbose)
            if described is not None:
                data["sessions"].append(described)
        data["more"] = max(0, len(side.sessions) + len(side.streams) - limit)
    return data


def chain_all(side: WorkerSide) -> Iterator[AnySession | AboutStream]:
    """Yield listeners and connections, then streams."""
    yield from side.sessions
    yield from side.streams


def _count_state(states: dict[str, int], state: str) -> None:
    states[state] = states.get(state, 0) + 1


def _counts(side: WorkerSide) -> dict[str, int]:
    counts = {"listener": 0, "connection": 0, "stream": len(side.streams)}
    for session in side.sessions:
        counts[_type(session)] += 1
    return counts


def _one(side: WorkerSide, index: int) -> list[Described]:
    """Describe a session and all layers below it."""
    handle = make_handle(side.index, index)
    found: list[Described | None] = []
    connection = side.sessions.get(handle)
    if is_stream(handle):
        stream = side.streams.find(handle)
        if stream is not None:
            found.append(_described(side, stream, 2))
            connection = side.sessions.get(stream.connection)
    if connection is not None:
        found += [_described(side, each, 2) for each in chain(connection)]
    described = [each for each in found if each is not None]
    if not described:
        raise CommandError(f"there is no session with index {index}")
    return described


def _described(
    side: WorkerSide, session: AnySession | AboutStream, verbose: int
) -> Described | None:
    """Describe a session; None for a stream whose connection has ended meanwhile."""
    if isinstance(session, AboutStream):
        return _stream(side, session, verbose)
    return _describe(side, session, verbose)


def _type(session: AnySession) -> str:
    return "listener" if isinstance(session, ListenerSession) else "connection"


def _describe(side: WorkerSide, session: AnySession, verbose: int) -> Described:
    """Describe one session, from verbosity 2 on with its transport's context."""
    described: Described = {
        "handle": session.handle,
        "type": _type(session),
        "state": session.state.value,
        "application": session.application.name,
    }
    if isinstance(session, ListenerSession):
        described["local"] = list(session.context.local)
    else:
        described |= _connection(side, session, verbose)
    if verbose >= 2:
        described["chain"] = list(_chain(session, side))
    return described


def _connection(side: WorkerSide, session: ConnectionSession, verbose: int) -> Described:
    context = session.context
    described = {
        **describe_path(context),
        "listener": session.listener.handle if session.listener is not None else None,
        "streams": side.streams.count_of(context),
    }
    if verbose >= 2:
        ids = context.connection_ids()
        described |= {
            "local_cids": [cid.hex() for cid in ids.local],
            "remote_cid": ids.remote.hex(),
            "alpn": context.alpn,
            "cipher": context.handshake.cipher,
            "early_data": context.handshake.early_data,
            "is_resumed": context.handshake.is_resumed,
            "congestion_control": getattr(context.config, "congestion_control", None),
            "statistics": context.statistics(),
        }
    return described


def _stream(side: WorkerSide, stream: AboutStream, verbose: int) -> Described | None:
    connection = side.sessions.get(stream.connection)
    if not isinstance(connection, ConnectionSession):
        return None
    # RFC 9000 section 2.1: the least significant bit tells the initiator, the second least
    # significant bit whether the stream is unidirectional.
    stream_id = stream.stream_id
    described: Described = {
        "handle": stream.handle,
        "type": "stream",
        "state": _READY,
        "application": connection.application.name,
        "connection": stream.connection,
        "stream_id": stream_id,
        "initiator": "server" if stream_id & 1 else "client",
        "direction": "unidirectional" if stream_id & 2 else "bidirectional",
        "rx": None if stream.rx is None else _fifo(stream.rx),
        "tx": None if stream.tx is None else _fifo(stream.tx),
    }
    if verbose >= 2:
        described["chain"] = [
            {"type": "stream", "handle": stream.handle},
            *_chain(connection, side),
        ]
    return described


def _fifo(fifo: FifoState) -> Described:
    """Describe a FIFO; the bytes below `head` of a tx FIFO were acknowledged."""
    used = fifo.tail - fifo.head
    if not 0 <= used <= fifo.size_bytes:
        # The application has written invalid indices.
        return {"size": fifo.size_bytes, "head": None, "tail": None, "used": None, "eof": None}
    return {
        "size": fifo.size_bytes,
        "head": fifo.head,
        "tail": fifo.tail,
        "used": used,
        "eof": fifo.eof,
    }


def _chain(session: AnySession, side: WorkerSide) -> Iterator[Described]:
    """Yield the layers of a session, from itself down to the datagrams, or to shared FIFOs."""
    path: Described = {}
    is_cut = False
    for each in chain(session):
        yield {"type": _type(each), "handle": each.handle}
        if isinstance(each, ConnectionSession):
            path = describe_path(each.context)
        elif isinstance(each, ListenerSession) and not path:
            path = {"local": list(each.context.local), "remote": None}
        is_cut = isinstance(each.context, CutConnection | CutListener)
    if is_cut:
        yield {"type": "cut-through", **path}
    else:
        yield {"type": "udp", "link": side.worker.link.name, **path}


def describe_path(context: ConnectionContext) -> Described:
    return {"local": list(context.local), "remote": list(context.remote)}
