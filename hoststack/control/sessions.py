"""`show session`, in one worker: sessions as JSON, with the layers below each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import trio

from hoststack.boundary.handle import make_handle
from hoststack.control.grammar import Command, CommandError
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import ConnectionContext
from hoststack.session.session import (
    AnySession,
    ConnectionSession,
    ListenerSession,
    StreamSession,
    chain,
)
from hoststack.transport.local.cut_through import CutConnection, CutListener

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
        data["states"][session.state.value] = data["states"].get(session.state.value, 0) + 1
    if "index" in arguments:
        return {**data, "sessions": _one(side, int(arguments["index"]))}
    if verbose:
        limit = int(arguments.get("limit", DEFAULT_LIMIT))
        chosen = list(side.sessions)[:limit]
        data["sessions"] = []
        for place, session in enumerate(chosen):
            if place % _SESSIONS_AT_ONCE == _SESSIONS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            data["sessions"].append(_describe(side, session, verbose))
        data["more"] = len(side.sessions) - len(chosen)
    return data


def _counts(side: WorkerSide) -> dict[str, int]:
    counts = {"listener": 0, "connection": 0, "stream": 0}
    for session in side.sessions:
        counts[_type(session)] += 1
    return counts


def _one(side: WorkerSide, index: int) -> list[Described]:
    """Describe a session and all layers below it."""
    session = side.sessions.get(make_handle(side.index, index))
    if session is None:
        raise CommandError(f"there is no session with index {index}")
    return [_describe(side, each, 2) for each in chain(session)]


def _type(session: AnySession) -> str:
    if isinstance(session, ListenerSession):
        return "listener"
    return "connection" if isinstance(session, ConnectionSession) else "stream"


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
    elif isinstance(session, ConnectionSession):
        described |= _connection(session, verbose)
    else:
        described |= _stream(session)
    if verbose >= 2:
        described["chain"] = list(_chain(session, side))
    return described


def _connection(session: ConnectionSession, verbose: int) -> Described:
    context = session.context
    described = {
        **describe_path(context),
        "listener": session.listener.handle if session.listener is not None else None,
        "streams": len(session.streams),
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
            "congestion_control": context.config.congestion_control,
            "statistics": context.statistics(),
        }
    return described


def _stream(session: StreamSession) -> Described:
    context = session.context
    # RFC 9000 section 2.1: the least significant bit tells the initiator, the second least
    # significant bit whether the stream is unidirectional.
    stream_id = context.stream_id
    return {
        "connection": session.connection.handle,
        "stream_id": stream_id,
        "initiator": "server" if stream_id & 1 else "client",
        "direction": "unidirectional" if stream_id & 2 else "bidirectional",
        "rx": None if context.rx is None else _fifo(context.rx),
        "tx": None if context.tx is None else _fifo(context.tx),
    }


def _fifo(fifo: Fifo) -> Described:
    """Describe a FIFO; the bytes below `head` of a tx FIFO were acknowledged."""
    head, tail = fifo.positions
    if not 0 <= tail - head <= fifo.size:
        # The application has written invalid indices.
        return {"size": fifo.size, "head": None, "tail": None, "used": None, "eof": None}
    return {
        "size": fifo.size,
        "head": head,
        "tail": tail,
        "used": tail - head,
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
