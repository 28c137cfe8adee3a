"""What an application of a daemon may have, and how it hears that it may have no more."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import trio

import hoststack
from hoststack import TlsConfig
from hoststack.boundary.arena import SEGMENT_BYTES
from tests.daemon.conftest import PATIENCE_S, Daemon, MakeDaemon
from tests.daemon.echoing import ask

URI = "quic://127.0.0.1:7790"
TRUSTING = TlsConfig(verify=False)
MEMORY_BYTES = 3 * SEGMENT_BYTES


def segments(daemon: Daemon, name: str) -> int:
    """Of an application, in the worker's process; a memfd is a file that is deleted."""
    maps = Path(f"/proc/{daemon.worker_pid(0)}/maps").read_text()
    return len(re.findall(rf"^\S+ rw-s .*/memfd:hoststack-{name}-\d+ ", maps, re.MULTILINE))


def test_memory_grows_as_it_is_needed_up_to_the_limit(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--fifo-memory-bytes", str(MEMORY_BYTES))
    daemon.ctl(f"test echo server uri {URI}")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, name="hungry") as hungry,
                hoststack.attach(daemon.api, name="modest") as modest,
                hungry.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection,
                modest.connect(URI, tls=TRUSTING, alpn=["echo"]) as other,
            ):
                assert segments(daemon, "hungry") == 0
                opened: list[hoststack.Stream] = []
                counts = []
                while True:
                    try:
                        stream = await connection.open_stream()
                    except OSError as error:
                        refusal = error
                        break
                    opened.append(stream)
                    counts.append(segments(daemon, "hungry"))
                assert refusal.errno == errno.ENOMEM
                assert "raise fifo-memory-bytes" in str(refusal)
                assert counts == sorted(counts)
                # What is left of a segment when a block does not fit is not used.
                assert set(counts) == {1, 2, 3, 4}
                # Two FIFOs of 1 MiB each, and a page for each of their headers; of what is left
                # at the end the smallest ones are made.
                most, least = 2 * ((1 << 20) + 4096), (32 << 10) + (16 << 10) + 2 * 4096
                assert len(opened) == MEMORY_BYTES // most + MEMORY_BYTES % most // least
                # Others have memory of their own, and a stream that is forgotten makes room.
                assert await ask(other, b"hello") == b"hello"
                await end(opened.pop())
                del stream
                await try_until_there_is_room(connection)
                assert segments(daemon, "hungry") == 4

    trio.run(main)
    assert "Traceback" not in daemon.log


async def end(stream: hoststack.Stream) -> None:
    await stream.send_eof()
    assert await stream.receive_some() == b""
    await stream.aclose()


async def try_until_there_is_room(connection: hoststack.Connection) -> None:
    """The worker hears of it a little later."""
    while True:
        try:
            assert await ask(connection, b"again") == b"again"
        except OSError:
            await trio.lowlevel.checkpoint()
        else:
            return


def test_sessions(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--max-sessions", "5")
    daemon.ctl(f"test echo server uri {URI}")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, name="hungry") as hungry,
                hoststack.attach(daemon.api, name="modest") as modest,
                hungry.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection,
            ):
                for _ in range(4):
                    await connection.open_stream()
                with pytest.raises(OSError, match="raise max-sessions") as caught:
                    await connection.open_stream()
                assert caught.value.errno == errno.EMFILE
                with pytest.raises(hoststack.ConnectError, match="raise max-sessions"):
                    async with hungry.connect(URI, tls=TRUSTING, alpn=["echo"]):
                        raise AssertionError
                async with modest.connect(URI, tls=TRUSTING, alpn=["echo"]) as other:
                    assert await ask(other, b"hello") == b"hello"

    trio.run(main)
    assert re.search(r"2 +session +refused_max_sessions +error", daemon.ctl("show errors"))
