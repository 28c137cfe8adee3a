"""Two ends on the trio API, each in a process of its own, for what quic_echo has no words for.

`ends.py server` answers all who connect, until it is ended: it sends back what comes on a
bidirectional stream and throws away what comes on a unidirectional one; with --check it looks at
that first, and ends at a wrong byte. The other roles are clients; each prints what it found as one
JSON object. `measure` runs both. The link udp_single is UDP with one datagram in each message.
With --socket an end attaches to the daemon there, which has the link and the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from bench import ALPN
from bench.processes import run_to_json, running
from hoststack import (
    Connection,
    QuicConfig,
    ReceiveStream,
    Stack,
    Stream,
    TlsConfig,
    attach,
    open_stack,
)
from hoststack.control.control_client import ControlClient
from hoststack.link.udp.link import UdpLink
from hoststack.quic.tls import Cipher
from tests.support import netns

PORT: Final = 4433
LINKS: Final = ("af_xdp", "udp", "udp_single")
#: Handshakes under way at once.
AT_ONCE: Final = 64
PING_BYTES: Final = 64
REQUEST_BYTES: Final = 100
#: Round trips that are measured in a row, of one contender, before it is the next one's turn.
SLICE: Final = 300
#: Round trips that are not counted: the first ones also find the way.
_WARM_UP: Final = 100
#: After the last handshake, until what it left to be done is done.
_QUIET_S: Final = 1.0
#: How long nothing happens then; CPU time is counted in hundredths of a second.
_IDLE_S: Final = 4.0
#: What uploads consist of; 251 is prime, so that no missing packet leaves the rest in place.
_CHUNK: Final = bytes(range(251)) * 4096
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_TLS: Final = TlsConfig(verify=False)

Found = dict[str, Any]


@asynccontextmanager
async def _stack(given: argparse.Namespace) -> AsyncIterator[Stack]:
    # Idle connections stay until they are counted.
    config = QuicConfig(idle_timeout_s=120)
    if given.socket is not None:
        made = attach(given.socket, name=f"ends_{given.role}", config=config)
    elif given.link == "udp_single":
        made = open_stack(link=UdpLink(segments=False), engine=given.engine, config=config)
    else:
        interface = given.interface if given.link == "af_xdp" else None
        made = open_stack(
            interface,
            link=given.link,
            engine=given.engine,
            config=config,
            busy_poll_us=given.busy_poll_us,
        )
    async with made as stack:
        yield stack


# --- the server ---


async def _answer(is_checked: bool, connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            if isinstance(stream, Stream):
                nursery.start_soon(_echo, stream)
            else:
                nursery.start_soon(_take, stream, is_checked)


async def _echo(stream: Stream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def _take(stream: ReceiveStream, is_checked: bool) -> None:
    view = memoryview(bytearray(len(_CHUNK)))
    expected = memoryview(_CHUNK * 2)
    count = 0
    async with stream:
        while size := await stream.receive_into(view):
            start = count % len(_CHUNK)
            if is_checked and view[:size] != expected[start : start + size]:
                sys.exit(f"ends: wrong bytes came behind the first {count}")
            count += size


async def _tell(stack: Stack) -> None:
    """Print how many datagrams have come, and the CPU seconds so far, with each SIGUSR1."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            print(stack.counters().rx_datagrams, time.process_time(), flush=True)


async def serve(stack: Stack, given: argparse.Namespace) -> Found:
    tls = TlsConfig.self_signed(["localhost"])
    answer = partial(_answer, given.check)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, stack)
        await nursery.start(partial(stack.serve, given.uri, answer, tls=tls, alpn=[ALPN]))
        print("ready", file=sys.stderr, flush=True)
    return {}


# --- the clients ---


async def handshakes(stack: Stack, given: argparse.Namespace) -> Found:
    """Connections opened and closed, AT_ONCE of them at a time, for so many seconds."""
    count = 0
    end = trio.current_time() + given.seconds

    async def one_after_the_other() -> None:
        nonlocal count
        while trio.current_time() < end:
            async with stack.connect(given.uri, tls=_TLS, alpn=[ALPN]):
                count += 1

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(one_after_the_other)
    return {"count": count, "seconds": trio.current_time() - start}


async def requests(stack: Stack, given: argparse.Namespace) -> Found:
    """REQUEST_BYTES on a stream of their own and as many back, `--at-once` of them at a time."""
    count = 0
    request = os.urandom(REQUEST_BYTES)

    async def one_after_the_other(connection: Connection, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with await connection.open_stream() as stream:
                await stream.send_all(request)
                await stream.send_eof()
                answer = b"".join([part async for part in stream])
            if answer != request:
                sys.exit("ends: other bytes came back")
            count += 1

    async with stack.connect(given.uri, tls=_TLS, alpn=[ALPN]) as connection:
        before = [sum(cpu_seconds(pid)) for pid in (os.getpid(), given.server_pid)]
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(given.at_once):
                nursery.start_soon(one_after_the_other, connection, start + given.seconds)
        seconds = time.perf_counter() - start
        after = [sum(cpu_seconds(pid)) for pid in (os.getpid(), given.server_pid)]
    client_us, server_us = (
        (now - was) / count * 1e6 for now, was in zip(after, before, strict=True)
    )
    return {
        "count": count,
        "seconds": seconds,
        "client_us": client_us,
        "server_us": server_us,
    }


async def streams(stack: Stack, given: argparse.Namespace) -> Found:
    """Streams opened and closed without data, `--at-once` of them at a time."""
    count = 0

    async def one_after_the_other(connection: Connection, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with await connection.open_stream() as stream:
                await stream.send_eof()
                assert not await stream.receive_some()
            count += 1

    async with stack.connect(given.uri, tls=_TLS, alpn=[ALPN]) as connection:
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(given.at_once):
                nursery.start_soon(one_after_the_other, connection, start + given.seconds)
        return {"count": count, "seconds": time.perf_counter() - start}


async def ping_pong(stack: Stack, given: argparse.Namespace) -> Found:
    """PING_BYTES there and back on one stream, one at a time; all that comes back is checked."""
    times_us: list[float] = []
    async with stack.connect(given.uri, tls=_TLS, alpn=[ALPN]) as connection:
        stream = await connection.open_stream()
        end = time.perf_counter() + given.seconds
        while time.perf_counter() < end:
            times_us.append(await _round_trip_us(stream))
        await stream.send_eof()
    cuts = statistics.quantiles(times_us[_WARM_UP:], n=100)
    return {"count": len(times_us) - _WARM_UP, "p50_us": cuts[49], "p99_us": cuts[98]}


async def ping_slices(stack: Stack, given: argparse.Namespace) -> Found:
    """As ping_pong, for a slice of round trips with every line that comes; prints each median."""
    async with stack.connect(given.uri, tls=_TLS, alpn=[ALPN]) as connection:
        stream = await connection.open_stream()
        print("ready", flush=True)
        count = 0
        while await trio.to_thread.run_sync(sys.stdin.readline):
            times_us = [await _round_trip_us(stream) for _ in range(SLICE)]
            print(statistics.median(times_us), flush=True)
            count += SLICE
    return {"count": count}


async def _round_trip_us(stream: Stream) -> float:
    ping = os.urandom(PING_BYTES)
    start = time.perf_counter()
    await stream.send_all(ping)
    pong = b""
    while len(pong) < PING_BYTES:
        pong += await stream.receive_some()
    took_us = (time.perf_counter() - start) * 1e6
    if pong != ping:
        sys.exit("ends: other bytes came back")
    return took_us


async def upload(stack: Stack, given: argparse.Namespace) -> Found:
    """One stream up beside `--idle` idle connections: goodput, memory and CPU time of both ends."""
    pids = {"client": os.getpid(), "server": given.server_pid}
    tls = replace(_TLS, ciphers=tuple(given.ciphers))
    async with _idle_connections(stack, given):
        memory_bytes = {end: resident_bytes(pid) for end, pid in pids.items()}
        async with AsyncExitStack() as others:
            connection = await others.enter_async_context(
                stack.connect(given.uri, tls=tls, alpn=[ALPN])
            )
            while given.worker is not None and connection.handle >> 32 != given.worker:
                connection = await others.enter_async_context(
                    stack.connect(given.uri, tls=tls, alpn=[ALPN])
                )
            if given.waits:
                print("ready", file=sys.stderr, flush=True)
                await trio.to_thread.run_sync(sys.stdin.readline)
            before = {end: cpu_seconds(pid) for end, pid in pids.items()}
            softirq_s = _softirq_seconds()
            count, seconds = await _upload(connection, given.seconds)
            after = {end: cpu_seconds(pid) for end, pid in pids.items()}
            softirq_s = _softirq_seconds() - softirq_s
    return {
        "bytes": count,
        "seconds": seconds,
        "memory_bytes": memory_bytes,
        "user_s": {end: after[end][0] - before[end][0] for end in pids},
        "system_s": {end: after[end][1] - before[end][1] for end in pids},
        "softirq_s": softirq_s,
    }


@asynccontextmanager
async def _idle_connections(stack: Stack, given: argparse.Namespace) -> AsyncIterator[None]:
    limit = trio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as idle:

        async def connect() -> None:
            async with limit:
                await idle.enter_async_context(stack.connect(given.uri, tls=_TLS, alpn=[ALPN]))

        async with trio.open_nursery() as nursery:
            for _ in range(given.idle):
                nursery.start_soon(connect)
        yield


async def beside_idle(stack: Stack, given: argparse.Namespace) -> Found:
    """What `--idle` connections cost a server's processes while nothing happens, and what a round
    trip takes beside them."""
    pids = given.watched
    control = ControlClient(given.cli)

    def turns() -> int:
        told = json.loads(control.run("show quic", as_json=True))
        return int(told["total"]["turns"])

    before = [resident_bytes(pid) for pid in pids]
    async with _idle_connections(stack, given):
        await trio.sleep(_QUIET_S)
        memory_bytes = [resident_bytes(pid) - was for pid, was in zip(pids, before, strict=True)]
        used = [sum(cpu_seconds(pid)) for pid in pids]
        await trio.sleep(_IDLE_S)
        idle_cpu = [
            (sum(cpu_seconds(pid)) - was) / _IDLE_S for pid, was in zip(pids, used, strict=True)
        ]
        count, used_s = turns(), sum(cpu_seconds(pids[0]))
        found = await ping_pong(stack, given)
        count, used_s = turns() - count, sum(cpu_seconds(pids[0])) - used_s
    return found | {
        "memory_bytes": memory_bytes,
        "idle_cpu": idle_cpu,
        "turn_us": used_s / count * 1e6,
    }


async def _upload(connection: Connection, seconds: float) -> tuple[int, float]:
    """Bytes, and the seconds until all of them were acknowledged."""
    count = 0
    start = time.perf_counter()
    async with await connection.open_stream(unidirectional=True) as stream:
        while time.perf_counter() < start + seconds:
            await stream.send_all(_CHUNK)
            count += len(_CHUNK)
        await stream.send_eof()
        await stream.wait_acknowledged()
    return count, time.perf_counter() - start


# --- what the kernel says of a process (proc(5)) ---


def resident_bytes(pid: int) -> int:
    """Of a process, in all."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system, so far."""
    # The name, in parentheses, may have blanks.
    _, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")
    user, system = rest.split()[11:13]
    return int(user) / _TICKS_PER_S, int(system) / _TICKS_PER_S


def _softirq_seconds() -> float:
    """Of the whole machine: in it the kernel receives, on behalf of nobody in particular."""
    total = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return int(total.split()[7]) / _TICKS_PER_S


_ROLES: Final[dict[str, Callable[[Stack, argparse.Namespace], Awaitable[Found]]]] = {
    "server": serve,
    "handshakes": handshakes,
    "ping_pong": ping_pong,
    "requests": requests,
    "streams": streams,
    "ping_slices": ping_slices,
    "upload": upload,
    "beside_idle": beside_idle,
}


def end_command(
    side: netns.Side, role: str, link: str, engine: str, uri: str, *words: str
) -> list[str]:
    """The command line of an end."""
    line = (sys.executable, "-m", "bench.ends", role, link, engine, side.ifname, uri)
    return side.command(*line, *words)


def measure(
    pair: netns.VethPair,
    role: str,
    link: str,
    engine: str,
    seconds: float,
    *,
    idle: int = 0,
    is_checked: bool = False,
    busy_poll_us: int = 0,
    ciphers: Sequence[Cipher] = (),
    attached: Mapping[str, str] | None = None,
    at_once: int = 1,
) -> Found:
    """A client in that role in namespace a, against a new server in b. Raises BenchError.

    `ciphers` are for uploads. `attached` has sockets of daemons, for "client", "server" or both.
    """
    uri = f"quic://{pair.b.ipv4}:{PORT}"
    at = {end: [f"--socket={path}"] for end, path in (attached or {}).items()}

    def command(side: netns.Side, role: str, *words: str) -> list[str]:
        poll = f"--busy-poll-us={busy_poll_us}"
        return end_command(side, role, link, engine, uri, poll, *words)

    server_words = [*at.get("server", []), *(["--check"] if is_checked else [])]
    with running(command(pair.b, "server", *server_words)) as server:
        words = [f"--seconds={seconds}", f"--idle={idle}", f"--server-pid={server.pid}"]
        words.append(f"--at-once={at_once}")
        words += [f"--cipher={cipher}" for cipher in ciphers]
        words += at.get("client", [])
        return run_to_json(command(pair.a, role, *words))[0]


async def _run(given: argparse.Namespace) -> Found:
    async with _stack(given) as stack:
        return await _ROLES[given.role](stack, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=_ROLES)
    parser.add_argument("link", choices=LINKS)
    parser.add_argument("engine", choices=("native", "aioquic"))
    parser.add_argument("interface")
    parser.add_argument("uri")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--server-pid", type=int)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--busy-poll-us", type=int, default=0)
    parser.add_argument("--socket", metavar="PATH", help="attach to the daemon there")
    parser.add_argument("--worker", type=int, help="of the daemon: the one whose connection it is")
    parser.add_argument("--waits", action="store_true", help="for a line, before it uploads")
    parser.add_argument("--cli", metavar="PATH", help="the control socket of the server's daemon")
    parser.add_argument("--watched", metavar="PID", type=int, action="append", default=[])
    parser.add_argument("--cipher", action="append", default=[], dest="ciphers")
    print(json.dumps(trio.run(_run, parser.parse_args())))


if __name__ == "__main__":
    main()
