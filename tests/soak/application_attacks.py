"""Attacks from applications of a daemon, and from servers that one of them calls.

Each runs until a moment of time.monotonic() and returns what it did; `python -m
tests.soak.application_attacks NAME API CLI HOST PORT HOSTILE_URI SECONDS` runs one in a process of
its own.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

import hoststack
from hoststack.boundary.channel import ChannelClosedError
from tests.daemon.fuzz_application import Evil, be_evil, ignore_own_signals
from tests.support.costly import COMMANDS, KINDS

#: Arrays in arrays, deeper than any decoder that recurses follows.
DEEP: Final = b"\x91" * 3000 + b"\x01"
_MOST_CONSOLES: Final = 80
#: How long messages of one kind are sent.
_COSTLY_S: Final = 0.2


@dataclass(frozen=True)
class Target:
    """A daemon's sockets, an echo server outside of it, and a hostile server."""

    api: str
    cli: str
    place: tuple[str, int]
    hostile_uri: str


def invalid_data(target: Target, end: float) -> Counter[str]:
    """Events, messages and words of shared memory that no application of ours would write."""
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        done += be_evil(target.api, random.randrange(1 << 32), target.place, end)
    return done


def deep_messages(target: Target, end: float) -> Counter[str]:
    """Messages too deep to decode, to the supervisor and to each worker."""
    done: Counter[str] = Counter()
    attach = msgspec.msgpack.encode({"type": "Attach", "version": 1, "name": "deep"})
    deep_attach = bytes([attach[0] + 1]) + attach[1:] + b"\xa2zz" + DEEP[-2000:]
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect(target.api)
            with suppress(OSError):
                client.send(deep_attach)
                client.recv(65536)
            done["attaches"] += 1
        try:
            evil = _attached(target)
        except (ChannelClosedError, OSError):  # others that attach took its place
            done["refused"] += 1
            continue
        for worker in evil.workers:
            with suppress(ChannelClosedError, OSError):
                for kind in range(16):
                    worker.channel.send(bytes([kind]) + b"\x93\x05" + DEEP + b"\x80")
                    done["messages"] += 1
        evil.close()
    return done


def _attached(target: Target) -> Evil:
    return Evil(target.api, random.Random(5), target.place)


def costly_messages(target: Target, end: float) -> Counter[str]:
    """Requests that cost a worker more than the one who asks, as fast as they are read."""
    done: Counter[str] = Counter()
    token = 0
    for kind in itertools.cycle((*KINDS, *COMMANDS)):
        if time.monotonic() > end:
            return done
        try:
            evil = _attached(target)
        except (ChannelClosedError, OSError):  # others that attach took its place
            done["refused"] += 1
            continue
        over = min(end, time.monotonic() + _COSTLY_S)
        try:
            while time.monotonic() < over:
                token += 1
                for worker in evil.workers:
                    if kind in COMMANDS:
                        done[kind] += min(1, worker.room)
                        worker.command(COMMANDS[kind](token))
                    else:
                        with suppress(BlockingIOError):
                            worker.channel._socket.send(KINDS[kind](token), socket.MSG_DONTWAIT)
                            done[kind] += 1
                    worker.read()
        except (ChannelClosedError, OSError):
            done["thrown out"] += 1
        finally:
            evil.close()
    raise AssertionError


def blocking_descriptors(target: Target, end: float) -> Counter[str]:
    """Clears O_NONBLOCK on all that is shared with the workers, fills it, and reads nothing."""
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        try:
            evil = _attached(target)
        except (ChannelClosedError, OSError):  # others that attach took its place
            done["refused"] += 1
            continue
        try:
            for worker in evil.workers:
                fds = [*worker.wake_ups, worker.channel._socket.fileno()]
                for fd in fds:
                    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
                    for _ in range(1000):
                        with suppress(OSError):
                            os.write(fd, (0xFFFFFFFFFFFFFFFE).to_bytes(8, sys.byteorder))
                            continue
                        break
                    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
            for _ in range(50):
                worker = random.choice(evil.workers)
                with suppress(BlockingIOError):
                    worker.channel._socket.send(b"", socket.MSG_DONTWAIT)
            done["applications"] += 1
            time.sleep(0.2)  # how long it stays
        except (ChannelClosedError, OSError):
            done["thrown out"] += 1
        finally:
            evil.close()
    return done


def idle_consoles(target: Target, end: float) -> Counter[str]:
    """Connections to the control socket and the attach socket that say nothing, or half a line."""
    with ExitStack() as stack:
        done: Counter[str] = Counter()
        for number in range(_MOST_CONSOLES):
            for path, kind in (
                (target.cli, socket.SOCK_STREAM),
                (target.api, socket.SOCK_SEQPACKET),
            ):
                client = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                client.setblocking(False)
                with suppress(OSError):
                    client.connect(path)
                    done["connections"] += 1
                    if number % 2:
                        client.send(b"sho")
        time.sleep(max(0.0, end - time.monotonic()))  # how long they stay
        return done


def hostile_servers(target: Target, end: float) -> Counter[str]:
    """An honest application that calls hostile servers: it has to outlive each."""
    try:
        return trio.run(_call_hostile_servers, target, end)
    except hoststack.AttachError:  # others that attach took its place
        return Counter(refused=1)


async def _call_hostile_servers(target: Target, end: float) -> Counter[str]:
    done: Counter[str] = Counter()
    config = hoststack.QuicConfig(idle_timeout_s=3, handshake_timeout_s=3)
    trusting = hoststack.TlsConfig(verify=False)
    async with hoststack.attach(target.api, name="caller") as stack:
        while time.monotonic() < end:
            try:
                async with stack.connect(
                    target.hostile_uri, tls=trusting, alpn=["test"], config=config
                ) as connection:
                    with trio.move_on_after(2):
                        await _take_streams(connection)
                done["connected"] += 1
            except (hoststack.ConnectError, trio.BrokenResourceError):
                done["failed"] += 1
        host, port = target.place
        with trio.fail_after(10):
            async with stack.connect(
                f"quic://{host}:{port}", tls=trusting, alpn=["test"]
            ) as connection:
                stream = await connection.open_stream()
                await stream.send_all(b"well")
                assert await stream.receive_some() == b"well"
    return done


async def _take_streams(connection: hoststack.Connection) -> None:
    """Takes what the server opens, slower than that opens it."""
    async for stream in connection.streams():
        with suppress(trio.BrokenResourceError):
            async with stream:
                if isinstance(stream, hoststack.Stream):
                    await stream.receive_some()
        await trio.sleep(0.01)  # slow work


ATTACKS: Final[dict[str, Callable[[Target, float], Counter[str]]]] = {
    attack.__name__: attack
    for attack in (
        invalid_data,
        deep_messages,
        costly_messages,
        blocking_descriptors,
        idle_consoles,
        hostile_servers,
    )
}


def main() -> None:
    ignore_own_signals()
    name, api, cli, host, port, hostile_uri, seconds = sys.argv[1:]
    target = Target(api, cli, (host, int(port)), hostile_uri)
    done = ATTACKS[name](target, time.monotonic() + float(seconds))
    print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in sorted(done.items())))


if __name__ == "__main__":
    main()
