"""An application that does what none should: `python -m tests.daemon.fuzz_application`.

It attaches to a daemon and writes rubbish into all that it shares with it, its rings, its FIFOs and
its socket, by a seed; where it is thrown out it attaches again. Meanwhile well-behaved applications
move checked bytes through the same workers. No byte may be wrong, no worker die, nothing stall.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import mmap
import os
import random
import re
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import trio

import hoststack
from hoststack.boundary import attaching
from hoststack.boundary import messages as m
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.codec import (
    CodecError,
    FifosReleased,
    SegmentCame,
    decode_notice,
    encode,
)
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.protocols import PROTOCOLS, Config, Protocol, TcpConfig, UdpConfig
from hoststack.boundary.rings import RING_ENTRIES
from hoststack.native.memory.segment import map_segment
from hoststack.native.session._session import lib
from hoststack.quic.seam import QuicConfig
from hoststack.quic.session_cache import Ticket
from tests.daemon.conftest import Daemon, run_daemon
from tests.daemon.echoing import TLS, TRUSTING, ask, echo_server
from tests.support.event_ring import RingEvent, pop_raw, push_raw, ring_bytes

#: The ring of commands is the first in their segment, that of news the second.
NEWS_AT: Final = ring_bytes(RING_ENTRIES)
#: Indices and flags, where a FIFO or a ring begins.
_HEADER_BYTES: Final = 128
#: And how often a sly one gives each.
_COMMANDS: Final = {
    lib.HS_COMMAND_SENT: 6,
    lib.HS_COMMAND_CONSUMED: 6,
    lib.HS_COMMAND_TAKEN: 2,
    lib.HS_COMMAND_NOTED: 2,
    lib.HS_COMMAND_OPEN: 3,
    lib.HS_COMMAND_RESET: 1,
    lib.HS_COMMAND_STOP: 1,
    lib.HS_COMMAND_RELEASED: 1,
}
_NEWS: Final = {
    lib.HS_NEWS_MESSAGES: "messages",
    lib.HS_NEWS_READABLE: "datagrams",
    lib.HS_NEWS_WRITABLE: "room for datagrams",
    lib.HS_NEWS_OPENED: "stream opened",
    lib.HS_NEWS_REFUSED: "stream refused",
    lib.HS_NEWS_STREAM: "stream news",
}
_TOKENS: Final = 12
_PROTOCOLS: Final = tuple(PROTOCOLS)
#: A round of the well-behaved that takes longer has been held up.
MOST_ROUND_S: Final = 20.0


def _no_fifo(name: BlockName) -> Any:
    """The FIFO of a notice: here its name alone is of use."""
    return name


def block_at(place: int) -> BlockName | None:
    """The block of a FIFO's place (native/session/records.h); 0: none."""
    log = place & (1 << lib.HS_PLACE_LOG_BITS) - 1
    place >>= lib.HS_PLACE_LOG_BITS
    page = place & (1 << lib.HS_PLACE_PAGE_BITS) - 1
    segment = place >> lib.HS_PLACE_PAGE_BITS
    return BlockName(segment, page * lib.HS_PLACE_PAGE_BYTES, 1 << log) if log else None


class Worker:
    """One worker of the daemon, as the evil one reaches it."""

    def __init__(self, fds: list[int]) -> None:
        channel, rings, *self.wake_ups = fds
        self.channel = Channel(socket.socket(fileno=channel), takes_fds=True)
        self.rings = map_segment(rings)
        os.close(rings)
        self.segments: dict[int, mmap.mmap] = {}
        self.heard: Counter[str] = Counter()
        self.handles: list[int] = [0, 1 << 32, (1 << 62) - 1]
        self.blocks: list[BlockName] = []
        self.places: list[tuple[str, int]] = []
        """Where it listens."""

    def close(self) -> None:
        self.channel.close()
        for fd in self.wake_ups:
            os.close(fd)
        self.wake_ups = []

    def command(self, *commands: RingEvent) -> None:
        """Write commands as the library would, as far as there is room, and wake the worker."""
        push_raw(self.rings, 0, RING_ENTRIES, *commands)
        self.wake()

    @property
    def room(self) -> int:
        """How many commands fit."""
        pushed, popped = struct.unpack_from("<Q56xQ", self.rings)
        return int(max(0, RING_ENTRIES - pushed + popped))

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been woken, and not looked yet
            os.write(self.wake_ups[0], b"x")

    def read_news(self) -> list[RingEvent]:
        """What it wrote into the ring since the last call."""
        news = pop_raw(self.rings, NEWS_AT, RING_ENTRIES)
        for each in news:
            self.heard[_NEWS.get(each.kind, "rubbish of its own")] += 1
            if each.kind == lib.HS_NEWS_OPENED:
                self._note(each.handle, *map(block_at, each.words[2:4]))
        return news

    def _note(self, handle: int | None, *blocks: BlockName | None) -> None:
        if handle is not None:
            self.handles = [*self.handles[-63:], handle]
        self.blocks = [*self.blocks[-63:], *(block for block in blocks if block is not None)]

    def read(self) -> None:
        """What the worker says; raises ChannelClosedError."""
        self.read_news()
        for data, fds in self.channel.receive_now():
            with contextlib.suppress(CodecError):
                notice = decode_notice(data, _no_fifo)
                self.heard[type(notice).__name__] += 1
                if isinstance(notice, SegmentCame):
                    self.segments[notice.number] = map_segment(fds[0])
                if isinstance(notice, m.Listening):
                    self.places = [*self.places[-7:], notice.local]
                self._note(*(getattr(notice, name, None) for name in ("handle", "rx", "tx")))
            for fd in fds:
                os.close(fd)


class Evil:
    """One attachment, and what it does by its generator of numbers."""

    def __init__(self, path: str, rng: random.Random, target: tuple[str, int]) -> None:
        self._rng = rng
        self._target = target
        self.workers: list[Worker] = []
        self._is_sly = rng.random() < 0.7
        """Does what a worker could put up with, so that it lives to have streams."""
        self.done: Counter[str] = Counter()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        end.connect(path)
        self._attachment = Channel(end, takes_fds=True)
        hello = attaching.Attach(
            version=attaching.PROTOCOL_VERSION,
            name="evil",
            namespace="default",
            secret="",
            scopes=frozenset(rng.choice([["global"], ["local", "global"]])),
            shares_listeners=rng.random() < 0.5,
        )
        self._attachment.send(attaching.encode(hello))
        about = attaching.decode_answer(self._wait()[0])
        if isinstance(about, attaching.Refused):
            raise ChannelClosedError(about.text)
        assert isinstance(about, attaching.Attached), about
        while len(self.workers) < about.workers:
            data, fds = self._wait()
            if isinstance(attaching.decode_answer(data), attaching.WorkerOffered):
                self.workers.append(Worker(fds))

    def _wait(self) -> tuple[bytes, list[int]]:
        while not (received := self._attachment.receive_now(1)):
            select.select([self._attachment._socket], [], [], 10)
        return received[0]

    def close(self) -> None:
        self._attachment.close()
        for worker in self.workers:
            worker.close()

    # --- what it does ------------------------------------------------------------------------

    def act(self) -> None:
        """One thing; raises ChannelClosedError when it was thrown out."""
        worker = self._rng.choice(self.workers)
        acts = {
            self._read: 30,
            self._request: 40,
            self._command: 60,
            self._wake: 10,
            self._meddle: 4,
            self._scribble_on_fifo: 6,
            self._scribble_anywhere: 2,
            self._scribble_on_rings: 1,
            self._mutated: 2,
            self._noise: 1,
        }
        if self._is_sly:
            for act in (self._scribble_on_rings, self._mutated, self._noise, self._meddle):
                del acts[act]
        (act,) = self._rng.choices(list(acts), list(acts.values()))
        act(worker)
        self.done[act.__name__] += 1

    def _read(self, worker: Worker) -> None:
        worker.read()

    def _wake(self, worker: Worker) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(worker.wake_ups[0], bytes(self._rng.choice([1, 1, 1, 5000])))
        if self._rng.random() < 0.1:
            with contextlib.suppress(BlockingIOError):
                os.write(worker.wake_ups[1], bytes(8))

    def _meddle(self, worker: Worker) -> None:
        """Changes what belongs to an open file description."""
        rng = self._rng
        with socket.socket(
            fileno=os.dup(rng.choice([worker.channel.fileno(), *worker.wake_ups]))
        ) as end:
            fcntl.fcntl(end, fcntl.F_SETFL, rng.choice([0, os.O_NONBLOCK, fcntl.FASYNC]))
            fcntl.fcntl(end, fcntl.F_SETOWN, rng.choice([os.getpid(), 0]))
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, socket.SO_PASSCRED):
                end.setsockopt(socket.SOL_SOCKET, option, rng.choice([0, 1, 1 << 24]))
            with contextlib.suppress(OSError):
                for _ in range(rng.choice([0, 0, 1000])):
                    end.send(b"x" * (rng.random() < 0.999), socket.MSG_DONTWAIT)
                if rng.random() < 0.05:
                    end.shutdown(rng.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
        # It reads its own end without waiting all the same.
        fcntl.fcntl(worker.channel, fcntl.F_SETFL, os.O_NONBLOCK)
        for fd in worker.wake_ups:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)

    def _request(self, worker: Worker) -> None:
        worker.channel.send(encode(self._any_request(worker)))

    def _mutated(self, worker: Worker) -> None:
        data = bytearray(encode(self._any_request(worker)))
        for _ in range(self._rng.randrange(1, 4)):
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)
        worker.channel.send(bytes(data[: self._rng.randrange(1, len(data) + 1)]))

    def _noise(self, worker: Worker) -> None:
        size = self._rng.choice([0, 1, 5, 100, 60_000, 70_000])
        fds = [worker.wake_ups[0]] * self._rng.choice([0, 0, 1, 5])
        worker.channel.send(self._rng.randbytes(size), fds)

    def _command(self, worker: Worker) -> None:
        """Commands as an application writes them, of any session and kind."""
        count = self._rng.choice([1, 1, 10, 5000])
        worker.command(*(self._any_command(worker) for _ in range(min(count, worker.room))))

    def _any_command(self, worker: Worker) -> RingEvent:
        rng = self._rng
        codes = [0, 7, (1 << 62) - 1]
        if self._is_sly:
            handle = rng.choice(worker.handles)
            (kind,) = rng.choices(list(_COMMANDS), list(_COMMANDS.values()))
        else:
            codes += [*[7] * 100, 1 << 62, (1 << 64) - 1]
            handle, kind = self._any_handle(worker), rng.choice([*_COMMANDS, 0, 9, 2**31])
        is_open = kind == lib.HS_COMMAND_OPEN
        word = rng.randrange(1 << 40) if is_open else rng.choice(codes)
        return RingEvent(handle, kind, rng.choice([0, 0, 1, 2**32 - 1]), (word,))

    def _scribble_on_fifo(self, worker: Worker) -> None:
        if not worker.blocks:
            return
        name = self._rng.choice(worker.blocks)
        memory = worker.segments.get(name.segment)
        if memory is None:
            return
        if self._rng.random() < 0.7:
            # Indices, often such as could be.
            at = name.offset + self._rng.choice([0, 8, 12, 16, 64, 72])
            value = self._rng.choice(
                [0, 1, name.size_bytes, self._rng.randrange(1 << 20), 2**63, 2**64 - 1]
            )
            struct.pack_into("<Q", memory, at, value)
        else:
            size = self._rng.randrange(1, min(5000, name.size_bytes))
            at = name.offset + self._rng.randrange(name.size_bytes - size)
            memory[at : at + size] = self._rng.randbytes(size)

    def _scribble_anywhere(self, worker: Worker) -> None:
        for memory in worker.segments.values():
            size = min(self._rng.randrange(1, 1000), len(memory) - 1)
            at = self._rng.randrange(len(memory) - size)
            memory[at : at + size] = self._rng.randbytes(size)

    def _scribble_on_rings(self, worker: Worker) -> None:
        at = self._rng.choice([0, 64, 72, self._rng.randrange(2 * NEWS_AT - 8)])
        at += self._rng.choice([0, NEWS_AT]) if at < _HEADER_BYTES else 0
        struct.pack_into("<Q", worker.rings, at, self._rng.choice([0, 1, 5000, 2**63, 2**64 - 1]))

    def _any_handle(self, worker: Worker) -> int:
        return self._rng.choice([*worker.handles, self._rng.randrange(5000)])

    def _any_place(self, worker: Worker) -> tuple[str, int]:
        return self._rng.choice(
            [
                *[self._target] * 8,
                *worker.places,
                ("127.0.0.1", 0),
                ("0.0.0.0", 0),
                ("255.255.255.255", 443),
                ("224.0.0.1", 443),
                ("203.0.113.7", 65535),
                ("::", 1),
                ("::1", 443),
                ("fe80::1", 443),
                ("ff02::1", 443),
                ("fe80::1%lo", 443),
                ("fe80::1%\0", 443),
                ("::1%" + "é" * 70, 443),
                ("::ffff:127.0.0.1", 443),
            ]
        )

    def _any_config(self, protocol: Protocol) -> Config | None:
        rng = self._rng
        if rng.random() < 0.02:
            protocol = rng.choice(_PROTOCOLS)
        if protocol == "udp":
            return self._any_udp_config()
        if protocol == "tcp":
            return rng.choice(
                [
                    None,
                    TcpConfig(connect_timeout_s=1),
                    TcpConfig(1, 1, connect_timeout_s=1e-9),
                    TcpConfig(1 << 32, connect_timeout_s=1),
                ]
            )
        return rng.choice(
            [
                None,
                QuicConfig(handshake_timeout_s=1),
                QuicConfig(rx_fifo_bytes=1, tx_fifo_bytes=1, handshake_timeout_s=1),
                QuicConfig(rx_fifo_bytes=1 << 32, handshake_timeout_s=1),
                QuicConfig(max_streams_bidi=0, connection_window_bytes=0, handshake_timeout_s=1),
                QuicConfig(early_data=True, datagram_fifo_bytes=4096, handshake_timeout_s=1),
                QuicConfig(preferred_addresses=("127.0.0.1:1",), version=2, handshake_timeout_s=1),
                QuicConfig(congestion_control="vegas", handshake_timeout_s=1),
            ]
        )

    def _any_udp_config(self) -> UdpConfig | None:
        return self._rng.choice(
            [
                None,
                UdpConfig(1, 1),
                UdpConfig(1 << 26, 1 << 26, idle_timeout_s=1e-9),
                UdpConfig(1 << 32, 4096),
            ]
        )

    def _plausible_request(self, worker: Worker) -> m.Request | FifosReleased:
        rng, handle = self._rng, self._rng.choice(worker.handles)
        token = rng.randrange(1 << 40)
        kind = rng.choices(range(6), (4, 1, 4, 2, 2, 4))[0]
        if kind == 0:
            alpn = ("test",)
            return m.Connect(token, self._target, "127.0.0.1", TRUSTING, alpn, None)
        if kind == 1:
            return m.CloseConnection(handle, 0, "")
        protocol: Protocol = rng.choice(["tcp", "udp"])
        if kind == 2:
            where = rng.choice([self._target, *worker.places])
            return m.Connect(token, where, "", TRUSTING, (), None, protocol=protocol)
        if kind == 3:
            return m.Listen(token, ("127.0.0.1", 0), TRUSTING, (), None, protocol=protocol)
        if kind == 4:
            return m.Bind(token, ("127.0.0.1", 0), self._any_udp_config())
        blocks = [*worker.blocks, BlockName(0, 0, 4096)]
        return FifosReleased((rng.choice(blocks), rng.choice(blocks)))

    def _any_request(self, worker: Worker) -> m.Request | FifosReleased:
        rng = self._rng
        token, handle = rng.randrange(_TOKENS), self._any_handle(worker)
        protocol = rng.choice(_PROTOCOLS)
        code = rng.choice([0, 7, (1 << 62) - 1])
        ticket = Ticket(rng.randbytes(rng.randrange(300)), rng.randbytes(50), "hq", 9e9)
        if self._is_sly and rng.random() < 0.8:
            return self._plausible_request(worker)
        return rng.choice(
            [
                lambda: m.Connect(
                    rng.randrange(1 << 40) if rng.random() < 0.9 else token,
                    self._any_place(worker),
                    rng.choice(["127.0.0.1", "", "\0", "ü", "x" * 4096]),
                    rng.choice([TRUSTING, TRUSTING, TLS]),
                    rng.choice([("test",), (), ("",), ("x" * 300,), ("é",)]),
                    self._any_config(protocol),
                    rng.choice([None, m.Known(ticket, rng.randbytes(40))]),
                    protocol,
                ),
                lambda: m.Bind(
                    rng.randrange(1 << 40), self._any_place(worker), self._any_udp_config()
                ),
                lambda: m.Listen(
                    rng.randrange(1 << 40),
                    rng.choice([("127.0.0.1", 0), self._any_place(worker)]),
                    rng.choice([TLS, TRUSTING]),
                    ("hq",),
                    self._any_config(protocol),
                    protocol,
                ),
                lambda: m.Cancel(token),
                lambda: m.Unlisten(handle),
                lambda: m.ReplaceTls(token, handle, rng.choice([TLS, TRUSTING]), ("hq",)),
                lambda: m.CloseConnection(handle, code, rng.choice(["", "why", "é" * 2000])),
                lambda: m.UpdateKey(handle),
                lambda: m.Migrate(token, handle, rng.choice([None, self._any_place(worker)])),
                lambda: m.GetStatistics(token, handle),
                lambda: FifosReleased(
                    tuple(
                        rng.choice([*worker.blocks, BlockName(0, 0, 4096), BlockName(9, 1, 1)])
                        for _ in range(rng.randrange(5))
                    )
                ),
            ]
        )()


def be_evil(path: str, seed: int, target: tuple[str, int], end: float) -> Counter[str]:
    """Until a moment of time.monotonic(); what was done how often."""
    rng, done = random.Random(seed), Counter[str]()
    while time.monotonic() < end:
        try:
            evil = Evil(path, rng, target)
        except (ChannelClosedError, OSError):  # others that attach took its place
            done["refused"] += 1
            continue
        done["attached"] += 1
        try:
            for _ in range(rng.choice([100, 1000, 10_000])):
                evil.act()
                if time.monotonic() > end:
                    break
        except (ChannelClosedError, OSError):
            done["thrown out"] += 1
        finally:
            done += evil.done
            for worker in evil.workers:
                done += worker.heard
            evil.close()
    return done


def ignore_own_signals() -> None:
    """Ignore SIGIO, which `Evil` may have asked to be sent: it would end this process."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


class Good:
    """Well-behaved applications: how many rounds, and how long the longest took."""

    def __init__(self) -> None:
        self.rounds = 0
        self.longest_s = 0.0
        self._is_round = trio.Event()

    async def wait_for_rounds(self, count: int) -> None:
        for _ in range(count):
            await self._is_round.wait()

    async def move(self, client: hoststack.Stack, uri: str) -> None:
        data = os.urandom(400_000)
        while True:
            async with client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection:
                for _ in range(5):
                    began = trio.current_time()
                    with trio.fail_after(MOST_ROUND_S):
                        assert await ask(connection, data) == data, "a byte is wrong"
                    self.longest_s = max(self.longest_s, trio.current_time() - began)
                    self.rounds += 1
                    self._is_round.set()
                    self._is_round = trio.Event()


async def put_up(connection: hoststack.Connection) -> None:
    """Serves whoever comes: sends back what comes on streams of both directions."""

    async def answer(stream: hoststack.Stream | hoststack.ReceiveStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    if isinstance(stream, hoststack.Stream):
                        await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        async for stream in connection.streams():
            nursery.start_soon(answer, stream)


async def _run(daemon: Daemon, seed: int, seconds: float) -> tuple[Good, Counter[str]]:
    good = Good()
    async with (
        hoststack.attach(daemon.api, name="good") as server,
        hoststack.attach(daemon.api, name="fine") as client,
        hoststack.attach(daemon.api, name="local", scopes=["local", "global"]) as local,
        echo_server(server) as uri,
        trio.open_nursery() as nursery,
    ):
        listener = await nursery.start(
            partial(local.serve, "quic://127.0.0.1:0", put_up, tls=TLS, alpn=["test"])
        )
        for _ in range(2):
            nursery.start_soon(good.move, client, uri)
        done = await trio.to_thread.run_sync(
            be_evil, daemon.api, seed, listener.local, time.monotonic() + seconds
        )
        await good.wait_for_rounds(10)  # all is well afterwards
        nursery.cancel_scope.cancel()
    return good, done


def fuzz(seed: int, seconds: float, engine: str = "auto") -> Iterator[str]:
    """Runs it; what there is to say. Raises AssertionError for what must not be."""
    ignore_own_signals()
    memory = ("--fifo-memory-bytes", str(64 << 20))
    with run_daemon("--workers", "2", *memory, "--engine", engine) as daemon:
        pids = [daemon.worker_pid(index) for index in range(2)]
        try:
            good, done = trio.run(_run, daemon, seed, seconds)
        except BaseException:
            told = [line for line in daemon.log.splitlines() if "evil" not in line]
            print("\n".join([*told, "", daemon.log[-20_000:]]))
            raise
        yield f"seed {seed}: {good.rounds} good rounds, the longest {good.longest_s:.2f} s"
        reasons = Counter(re.findall(r"evil-\d+ left: (.*)", daemon.log))
        yield "left: " + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(30))
        yield ", ".join(f"{name.strip('_')} {count}" for name, count in sorted(done.items()))
        assert pids == [daemon.worker_pid(index) for index in range(2)], daemon.log
        assert "died" not in daemon.log, daemon.log
        # The aioquic engine logs what its library stumbles over.
        assert engine == "aioquic" or "Traceback" not in daemon.log, daemon.log[-20_000:]
        assert daemon.stop() == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    for line in fuzz(options.seed, options.seconds, options.engine):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
