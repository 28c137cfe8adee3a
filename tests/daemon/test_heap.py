"""What a crowd took of a worker's memory is the kernel's again when it has left."""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import trio

import hoststack
from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.daemon.echoing import TRUSTING, echo_server

CROWD = 300
#: Of each connection, at the least; most of it is ngtcp2's and GnuTLS's.
BYTES = 30 << 10


def resident_bytes(daemon: Daemon) -> int:
    total = 0
    for index in (0, 1):
        status = Path(f"/proc/{daemon.worker_pid(index)}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found
        total += int(found[1]) << 10
    return total


async def come_and_go(daemon: Daemon) -> tuple[int, int]:
    """What the workers have before, and with a crowd."""
    async with (
        hoststack.attach(daemon.api) as stack,
        echo_server(stack) as uri,
        hoststack.open_stack(link="udp") as clients,
        AsyncExitStack() as connections,
    ):
        # What the first one loads stays.
        async with clients.connect(uri, tls=TRUSTING, alpn=["test"]):
            before = resident_bytes(daemon)
        for _ in range(CROWD):
            await connections.enter_async_context(clients.connect(uri, tls=TRUSTING, alpn=["test"]))
        return before, resident_bytes(daemon)


def test_memory_after_a_crowd(daemon: Daemon) -> None:
    before, crowded = trio.run(come_and_go, daemon)
    assert crowded > before + CROWD * BYTES
    end = time.monotonic() + PATIENCE_S
    while resident_bytes(daemon) > (before + crowded) / 2:
        assert time.monotonic() < end, "the memory was not given back"
        time.sleep(0.1)
