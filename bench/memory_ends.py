"""Idle connections and streams of two stacks in one process, and what each adds to it.

The last line of output is JSON: bytes by what is measured, half of what the process grows by.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

import hoststack
from bench.ends import resident_bytes
from hoststack import Connection, QuicConfig, TlsConfig
from hoststack.link.memory import MemoryNetwork

CONNECTION: Final = "an idle connection"
STREAM: Final = "an idle stream"
FULL: Final = "a stream with a byte in it"
_FEW: Final = 50
_MANY: Final = 1000
_SERVER: Final = "10.0.0.1"
_CLIENT: Final = "10.0.0.2"
_URI: Final = f"quic://{_SERVER}:4433"
_CONFIG: Final = QuicConfig(idle_timeout_s=0, max_streams_bidi=2 * (_FEW + _MANY))


async def _growth(step: Callable[[], Awaitable[None]]) -> float:
    """How much a step adds at each end, after a few."""
    for _ in range(_FEW):
        await step()
    before = resident_bytes(os.getpid())
    for _ in range(_MANY):
        await step()
    return (resident_bytes(os.getpid()) - before) / _MANY / 2


async def _exchange(
    connected: Connection, accepted: Connection, kept: list[Any], *, reads: bool
) -> None:
    """One more stream, on which a byte goes each way."""
    stream: Any = await connected.open_stream()
    await stream.send_all(b"x")
    theirs: Any = await anext(accepted.streams())
    if reads:
        await theirs.receive_some()
    await theirs.send_all(b"x")
    if reads:
        await stream.receive_some()
    kept += [stream, theirs]


async def _measure(engine: Any) -> dict[str, float]:
    network = MemoryNetwork()
    kept: list[Any] = []
    tls, client_tls = TlsConfig.self_signed([_SERVER]), TlsConfig(verify=False)
    async with (
        hoststack.open_stack(link=network.link(_SERVER), config=_CONFIG, engine=engine) as server,
        hoststack.open_stack(link=network.link(_CLIENT), config=_CONFIG, engine=engine) as client,
        await server.listen(_URI, tls=tls, alpn=["test"]) as listener,
    ):

        async def connect() -> None:
            kept.append(await client.open_connection(_URI, tls=client_tls, alpn=["test"]))
            kept.append(await listener.accept())

        await connect()
        connected, accepted = kept
        return {
            STREAM: await _growth(partial(_exchange, connected, accepted, kept, reads=True)),
            FULL: await _growth(partial(_exchange, connected, accepted, kept, reads=False)),
            CONNECTION: await _growth(connect),
        }


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, sys.argv[1])))
