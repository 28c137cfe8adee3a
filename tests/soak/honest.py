"""Well-behaved programs that no attack may harm: each a process, ended by a line on its stdin.

`python -m tests.soak.honest server API HOST QUIC_PORT UDP_PORT CALLED` is an application of a
daemon: echo over QUIC and UDP, and a client of CALLED. `... clients HOST QUIC_PORT` are clients of
it on UDP sockets, and `... called HOST PORT` is an echo server that the application calls. Each
says "ready" when it is, and at its end a line that counts what it did. It exits with 1, and says
why, when a connection was lost, a byte wrong or an answer late.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

import hoststack
from hoststack import Connection, QuicConfig, Stack, TlsConfig, UdpConfig

#: What is abandoned leaves soon.
CONFIG: Final = QuicConfig(idle_timeout_s=10, keep_alive_s=2)
UDP_CONFIG: Final = UdpConfig(idle_timeout_s=10)
#: Longest round trip, and longest handshake with one, in seconds.
LATE_S: Final = 8.0
PERSISTENT: Final = 4
_TRUSTING: Final = TlsConfig(verify=False)


class Counts:
    """What was done, and the longest that each kind took."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.longest_s: dict[str, float] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count one."""
        self.done[kind] += 1
        self.longest_s[kind] = max(seconds, self.longest_s.get(kind, 0.0))

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {kind} (longest {self.longest_s.get(kind, 0.0):.2f} s)"
            for kind, count in sorted(self.done.items())
        )


async def _echo(stream: hoststack.Stream | hoststack.ReceiveStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                if isinstance(stream, hoststack.Stream):
                    await stream.send_all(data)


async def _echo_connection(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(_echo, stream)


async def _echo_datagrams(connection: Connection) -> None:
    with suppress(trio.BrokenResourceError, OSError):
        async for data in connection.datagrams():
            await connection.send_datagram(data)


async def _ask(connection: Connection, data: bytes) -> None:
    """Send `data` on a stream of its own and check what comes back."""
    stream = await connection.open_stream()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        back = b"".join([part async for part in stream])
        assert back == data, f"{len(back)} of {len(data)} bytes came back"


async def _stay(stack: Stack, uri: str, counts: Counts) -> None:
    """One connection for the whole time."""
    data = os.urandom(100_000)
    async with stack.connect(uri, tls=_TRUSTING, alpn=["test"], config=CONFIG) as connection:
        while True:
            began = trio.current_time()
            with trio.fail_after(LATE_S):
                await _ask(connection, data[: 1 + int.from_bytes(os.urandom(3)) % len(data)])
            counts.add("requests", trio.current_time() - began)
            await trio.sleep(0.2)


async def _come_and_go(stack: Stack, uri: str, counts: Counts) -> None:
    """A new connection each second."""
    while True:
        began = trio.current_time()
        with trio.fail_after(LATE_S):
            async with stack.connect(
                uri, tls=_TRUSTING, alpn=["test"], config=CONFIG
            ) as connection:
                await _ask(connection, b"hello")
                counts.add("visits", trio.current_time() - began)
        await trio.sleep(1)


async def clients(counts: Counts, host: str, port: str) -> None:
    """Clients on UDP sockets."""
    uri = f"quic://{host}:{port}"
    async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:
        for _ in range(PERSISTENT):
            nursery.start_soon(_stay, stack, uri, counts)
        nursery.start_soon(_come_and_go, stack, uri, counts)
        print("ready", flush=True)


async def _collect_garbage() -> None:
    """Keep no FIFO in reference cycles: what is counted is what the daemon keeps."""
    while True:
        await trio.sleep(2)
        gc.collect()


async def server(
    counts: Counts, api: str, host: str, quic_port: str, udp_port: str, called: str
) -> None:
    """An application of a daemon."""
    tls = TlsConfig.self_signed([host])
    async with hoststack.attach(api, name="honest") as stack, trio.open_nursery() as nursery:

        async def serve_udp(*, task_status: trio.TaskStatus[hoststack.Listener]) -> None:
            uri = f"udp://{host}:{udp_port}"
            await stack.serve(uri, _echo_datagrams, config=UDP_CONFIG, task_status=task_status)

        async def serve_quic(*, task_status: trio.TaskStatus[hoststack.Listener]) -> None:
            uri = f"quic://{host}:{quic_port}"
            await stack.serve(
                uri,
                _echo_connection,
                tls=tls,
                alpn=["test"],
                config=CONFIG,
                task_status=task_status,
            )

        nursery.start_soon(_collect_garbage)
        await nursery.start(serve_udp)
        await nursery.start(serve_quic)
        nursery.start_soon(_stay, stack, called, counts)
        print("ready", flush=True)


async def called(counts: Counts, host: str, port: str) -> None:
    """An echo server on a UDP socket."""
    tls = TlsConfig.self_signed([host])
    async with hoststack.open_stack(link="udp") as stack, trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[hoststack.Listener]) -> None:
            await stack.serve(
                f"quic://{host}:{port}",
                _echo_connection,
                tls=tls,
                alpn=["test"],
                task_status=task_status,
            )

        await nursery.start(serve)
        print("ready", flush=True)


ROLES: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "server": server,
    "clients": clients,
    "called": called,
}


async def _run(role: str, *words: str) -> None:
    counts = Counts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ROLES[role], counts, *words)
        await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
    print(f"{role}: {counts}", flush=True)


if __name__ == "__main__":
    trio.run(_run, *sys.argv[1:])
