"""Fuzz what processes of a daemon read from each other: `python -m tests.fuzz.messages`.

The bytes with which an application attaches, the messages on its channel to a worker, and those
that a worker sends to it. They are made from the annotations of the messages, with fields that
can't be, and bytes are changed, cut off and added. Everything that reads them is the product's own.
A finding is an exception that leaves its handler, one that was not foreseen (an error in the log),
and a well-behaved application that is not served any more.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import socket
import sys
import tempfile
import time
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import trio
import trio.testing

import hoststack
from hoststack.api.in_trio import TrioRouter
from hoststack.boundary import attaching, codec
from hoststack.boundary import messages as m
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import ChannelClosedError
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.rings import RING_ENTRIES, shared_ends
from hoststack.daemon import orders
from hoststack.daemon.attach_server import AttachServer
from hoststack.daemon.config import DaemonConfig
from hoststack.daemon.leaving import OnLetGo
from hoststack.link.memory import MemoryNetwork
from hoststack.native.memory.fifo import Fifo
from hoststack.native.session._session import lib
from hoststack.quic.tls import TlsConfig
from hoststack.session.namespaces import Namespaces
from tests.support.attached import SEAL, inline
from tests.support.event_ring import EventRing

HOST: Final = "10.0.0.1"
TLS: Final = TlsConfig.self_signed([HOST])
PATIENCE_S: Final = 60.0
_REQUESTS: Final = typing.get_args(codec.ToWorker)
_NOTICES: Final = typing.get_args(codec.ToApplication)
_TAGS: Final = {kind.class_: kind.tag for kind in codec._KINDS}


class FoundError(AssertionError):
    """What must not be; the message says what was sent."""


# --- values and bytes ---------------------------------------------------------------------------


class Maker:
    """Makes messages by a generator of numbers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.handles = [0, 1, 2, 3, 1 << 32]

    def strange(self) -> bytes:
        """A value in msgpack that no field has, or few have."""
        rng, encode = self.rng, msgspec.msgpack.encode
        return rng.choice(
            [
                lambda: b"\x91" * rng.choice([5, 500, 3000, 60_000]) + b"\x01",
                lambda: b"\x81\xa1x" * rng.choice([5, 500, 20_000]) + b"\x01",
                lambda: rng.choice([b"\xdd", b"\xdf", b"\xdb", b"\xc6"]) + b"\xff\xff\xff\xff",
                lambda: encode(rng.choice([0, -1, 1 << 31, 1 << 62, (1 << 64) - 1, -(1 << 63)])),
                lambda: encode(rng.choice([float("nan"), float("inf"), -0.0, 1e308, 5e-324])),
                lambda: encode(
                    rng.choice(["", "\0", "\x1b[31m\r\n", "x" * 5000, "é\u202e", "::1"])
                ),
                lambda: rng.choice([b"\xa3\xed\xa0\x80", b"\xa1\xff", b"\xc1", b"\xc0", b"\xc3"]),
                lambda: encode(msgspec.msgpack.Ext(rng.randrange(-128, 128), rng.randbytes(9))),
                lambda: b"\x82\xa1x\x01\xa1x\x02",
                lambda: encode(rng.randbytes(rng.randrange(20))),
                lambda: b"",
            ]
        )()

    def value(self, annotation: Any) -> bytes:
        """A value of a type, now and then of another."""
        rng, encode = self.rng, msgspec.msgpack.encode
        if rng.random() < 0.04:
            return self.strange()
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if annotation is TlsConfig:
            form = codec._tls_form(rng.choice([TLS, TlsConfig(verify=False)]))
            return encode(form) if rng.random() < 0.9 else self.value(codec._TlsForm)
        if annotation is Fifo:
            annotation = BlockName
        if annotation is int:
            return encode(rng.choice([*self.handles, rng.randrange(20), rng.randrange(1 << 62)]))
        if annotation is float:
            return encode(rng.choice([0.0, 0.1, 30.0, -1.0, float("nan"), float("inf")]))
        if annotation is bool:
            return encode(rng.random() < 0.5)
        if annotation is str:
            return encode(rng.choice([HOST, "10.0.0.2", "x", "", "cubic", "127.0.0.1:1", "\0"]))
        if annotation is bytes:
            return encode(rng.randbytes(rng.randrange(30)))
        if annotation is type(None):
            return b"\xc0"
        if origin is Literal:
            return encode(rng.choice(arguments))
        if origin in (types.UnionType, typing.Union):
            return self.value(rng.choice(arguments))
        if origin is typing.Annotated:
            return self.value(arguments[0])
        if origin is tuple and arguments[-1] is Ellipsis:
            return self.array([arguments[0]] * rng.choice([0, 1, 1, 2, 14]))
        if origin is tuple:
            return self.array(list(arguments))
        if origin in (frozenset, set, list):
            return self.array([arguments[0]] * rng.choice([0, 1, 2]))
        if origin is dict:
            return self.map([(self.value(arguments[0]), self.value(arguments[1]))])
        hints = typing.get_type_hints(annotation)
        if issubclass(annotation, tuple):
            return self.array(list(hints.values()))
        names = [name for name in hints if rng.random() < 0.2]
        if names and rng.random() < 0.05:
            names.append(rng.choice(names))
        return self.map([(encode(name), self.value(hints[name])) for name in names])

    def array(self, annotations: list[Any]) -> bytes:
        count = len(annotations) + self.rng.choice([0] * 30 + [1, -1])
        head = bytes([0x90 | count]) if 0 <= count < 16 else b"\xdc" + (count % 65536).to_bytes(2)
        return head + b"".join(map(self.value, annotations))

    def map(self, items: list[tuple[bytes, bytes]]) -> bytes:
        count = len(items)
        head = bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2)
        return head + b"".join(key + value for key, value in items)

    def mutated(self, data: bytes) -> bytes:
        """The bytes, most often as they are."""
        rng = self.rng
        if rng.random() < 0.8:
            return data
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        return rng.choice(
            [
                bytes(changed),
                data[: rng.randrange(len(data) + 1)],
                data + self.strange(),
                rng.randbytes(rng.choice([0, 1, 30, 70_000])),
            ]
        )

    def message(self, kinds: tuple[type, ...]) -> bytes:
        """A message of a channel."""
        kind = self.rng.choice(kinds)
        hints = typing.get_type_hints(kind)
        return self.mutated(_TAGS[kind] + self.array([hints[field.name] for field in fields(kind)]))

    def greeting(self) -> bytes:
        """What an application says first, or a daemon answers."""
        kind = self.rng.choice([attaching.Attach] * 8 + list(typing.get_args(attaching.Answer)))
        encode = msgspec.msgpack.encode
        items = [(encode("type"), encode(kind.__name__))]
        for name, annotation in typing.get_type_hints(kind).items():
            if self.rng.random() < 0.9:
                right = {"version": 1, "name": "x", "namespace": "default", "secret": ""}.get(name)
                is_right = right is not None and self.rng.random() < 0.8
                items.append((encode(name), encode(right) if is_right else self.value(annotation)))
        if self.rng.random() < 0.1:
            items.append((encode("more"), self.strange()))
        self.rng.shuffle(items)
        return self.mutated(self.map(items))


# --- who reads them -----------------------------------------------------------------------------


class _Errors(logging.Handler):
    """Errors in the log: what was contained, though nobody foresaw it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _watching(sent: Callable[[], object]) -> Iterator[None]:
    errors, root = _Errors(), logging.getLogger("hoststack")
    root.addHandler(errors)
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
        for record in errors.records:
            raise FoundError(f"{logging.Formatter().format(record)}\nafter {sent()!r}")
    finally:
        root.removeHandler(errors)
        root.setLevel(level)


def decoders(maker: Maker) -> Counter[str]:
    """Bytes into the decoders; they return a message, or raise what they promise."""
    done: Counter[str] = Counter()
    for decode, data, promised in (
        (attaching.decode_attach, maker.greeting(), attaching.GreetingError),
        (attaching.decode_answer, maker.greeting(), attaching.GreetingError),
        (codec.decode_request, maker.message(_REQUESTS), codec.CodecError),
        (lambda d: codec.decode_notice(d, _no_fifo), maker.message(_NOTICES), codec.CodecError),
    ):
        try:
            done[type(decode(data)).__name__] += 1
        except promised:
            done["refused"] += 1
        except Exception as error:
            raise FoundError(f"{error!r} of {data!r}") from error
    return done


def _no_fifo(name: BlockName) -> Fifo:
    if name.segment:
        raise ValueError("no such segment")
    return Fifo(4096)


class _NoWorker:
    on_let_go: OnLetGo

    def serve(self, order: orders.Serve, fds: list[int]) -> None:
        self.on_let_go(order.number)

    async def wait_for_room(self) -> None: ...


async def attaching_rounds(maker: Maker, rounds: int, folder: Path) -> Counter[str]:
    """Processes that say such things where applications attach."""
    done: Counter[str] = Counter()
    about = attaching.Attached(1, "udp", "", "native")
    server = AttachServer(DaemonConfig(), about, Namespaces())
    server.add_worker(0, _NoWorker())
    right = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="x"))
    said: list[bytes] = []

    async def say(messages: list[bytes], fds: int) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end, _null(fds) as more:
            end.connect(str(folder / "api"))
            end.setblocking(False)
            for data in messages:
                with suppress(OSError):
                    socket.send_fds(end, [data], more)
            if not messages:
                return 0
            answers = 0
            with suppress(ConnectionResetError):
                while True:
                    await trio.lowlevel.wait_readable(end)
                    if not (answer := end.recv(65536)):
                        break
                    answers += 1
                    if messages == [right] and answers == 2:
                        break
                    assert answer
        return answers

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "api"))
        listener.listen(64)
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            for _ in range(rounds):
                said[:] = [maker.greeting() for _ in range(maker.rng.choice([0, 1, 1, 3]))]
                with _watching(lambda: said), trio.move_on_after(PATIENCE_S) as patience:
                    # With an empty one at the end the server hangs up.
                    answers = await say([*said, b""], maker.rng.choice([0, 0, 0, 1, 200]))
                    done[f"{min(answers, 2)} answers"] += 1
                    if await say([right], 0) < 2:
                        raise FoundError(f"nobody can attach after {said!r}")
                if patience.cancelled_caught:
                    raise FoundError(f"nothing moves after {said!r}")
            nursery.cancel_scope.cancel()
    return done


@contextmanager
def _null(count: int) -> Iterator[list[int]]:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        yield [fd] * count
    finally:
        os.close(fd)


def _ends() -> tuple[Ends, list[int]]:
    """What a worker takes over, and what an application does."""
    with ExitStack() as made:
        ours, theirs = shared_ends("fuzz", made)
        channel, *others = map(os.dup, ours)
        return Ends(socket.socket(fileno=channel), *others), list(map(os.dup, theirs))


async def worker_rounds(maker: Maker, rounds: int) -> Counter[str]:
    """Applications that send such things to a worker."""
    done: Counter[str] = Counter()
    async with (
        hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack,
        trio.open_nursery() as nursery,
    ):
        for _ in range(rounds):
            sent = [maker.message(_REQUESTS) for _ in range(maker.rng.choice([1, 1, 3, 20]))]
            with _watching(lambda sent=sent: sent):  # type: ignore[misc]
                done += await _one_application(maker, stack, nursery, sent)
                probe = m.GetStatistics(7, 1 << 40)
                await _one_application(maker, stack, nursery, [codec.encode(probe)], is_well=True)
    return done


async def _one_application(
    maker: Maker,
    stack: hoststack.EmbeddedStack,
    nursery: trio.Nursery,
    sent: list[bytes],
    is_well: bool = False,
) -> Counter[str]:
    done: Counter[str] = Counter()
    ends, (channel, *others) = _ends()
    limits = Limits(fifo_bytes=1 << 22, sessions=64)
    application = RemoteApplication("fuzz", ends, limits, SEAL, inline)
    other = AttachedWorker("fuzz", socket.socket(fileno=channel), *others)
    over = trio.Event()

    async def serve() -> None:
        stack._worker.attach(application)
        await application.run()
        stack._worker.detach(application)
        over.set()

    nursery.start_soon(serve)
    with suppress(OSError, ChannelClosedError):
        for data in sent:
            other.channel._socket.send(data)
            if not is_well and maker.rng.random() < 0.3:
                other.signal_sent(maker.rng.choice(maker.handles))
    await trio.testing.wait_all_tasks_blocked()
    with suppress(ChannelClosedError):
        while received := other.channel.receive_now():
            other.take_messages(received)
    for notice in other.take_notices():
        done[type(notice).__name__] += 1
        maker.handles = [*maker.handles[-15:], getattr(notice, "handle", 0)]
    if is_well and not done["Failed"]:
        raise FoundError(f"no answer: {application.gone}")
    if application.gone is not None:
        done["thrown out"] += 1
    other.close()
    await over.wait()
    return done


async def application_rounds(maker: Maker, rounds: int) -> Counter[str]:
    """Workers that send such things to a program that is attached."""
    done: Counter[str] = Counter()
    for _ in range(rounds):
        ends, (channel, *others) = _ends()
        worker = AttachedWorker("fuzz", socket.socket(fileno=channel), *others)
        workers = AttachedWorkers("native")
        workers.add(0, worker)
        router = TrioRouter(workers)
        rings = worker.rings
        news = EventRing(RING_ENTRIES, rings.memory, rings.block_bytes)
        sent = [maker.message(_NOTICES) for _ in range(maker.rng.choice([1, 3, 20]))]
        logging.getLogger(
            "hoststack.boundary.attached_worker"
        ).disabled = True  # it says what was wrong
        try:
            with _null(1) as fds, suppress(ChannelClosedError):
                for data in sent:
                    with suppress(OSError):
                        more = fds * maker.rng.choice([0, 0, 1, 3])
                        socket.send_fds(ends.channel, [data], more)
                news.push(0, lib.HS_NEWS_MESSAGES, len(sent))
                worker.take_messages(worker.channel.receive_now())
            router._collect()
            done["given up" if worker.is_given_up else "put up with"] += 1
        except Exception as error:
            raise FoundError(f"{error!r} of {sent!r}") from error
        finally:
            logging.getLogger("hoststack.boundary.attached_worker").disabled = False
            workers.remove(0)
            worker.close()
            ends.channel.close()
            for fd in (ends.rings_fd, ends.wake_worker_fd, ends.wake_application_fd):
                os.close(fd)
        await trio.lowlevel.checkpoint()
    return done


def fuzz(seed: int, rounds: int) -> Counter[str]:
    """So many rounds of each kind; what was done. Raises FoundError."""
    maker = Maker(random.Random(seed))
    done: Counter[str] = Counter()
    for _ in range(20 * rounds):
        done += decoders(maker)

    async def main() -> None:
        nonlocal done
        with tempfile.TemporaryDirectory() as folder:
            done += await attaching_rounds(maker, rounds, Path(folder))
        done += await worker_rounds(maker, rounds)
        done += await application_rounds(maker, 4 * rounds)

    trio.run(main)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    end, seed, done = time.monotonic() + options.seconds, options.seed, Counter[str]()
    while time.monotonic() < end:
        try:
            done += fuzz(seed, 50)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))


if __name__ == "__main__":
    main()
