"""Workers that say what they like: the supervisor does not raise, wait, or lose descriptors.

The supervisor is the real one, over udp. Its workers are processes that sleep; what they would say
on their socket pairs is said here, by a seed: reports and requests that are right, mutated,
nonsense, of the wrong kind or at the wrong time, with descriptors, or nothing at all; and they do
not read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import trio
import trio.testing

from hoststack.boundary import attaching
from hoststack.control.grammar import CommandError
from hoststack.daemon import orders, supervisor
from hoststack.daemon.config import DaemonConfig
from hoststack.daemon.link_parts import UdpPart
from hoststack.daemon.supervisor import Supervisor
from hoststack.daemon.worker_process import WorkerProcess

#: Watchdog, pauses and patience pass so much faster.
RATE: Final = 20.0
#: Of the supervisor's clock: an honest client is answered by then, whatever the workers do.
PATIENCE_S: Final = 60 * RATE
WORKERS: Final = 2
MOST_BYTES: Final = 1 << 16
#: Of one supervisor's life.
STEPS: Final = 1500
HELLO: Final = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="honest"))
LINES: Final = (
    *("show workers", "show session", "show quic", "show errors", "show app", "show udp"),
    *("clear errors", "quic set cc cubic", "session enable", "show xdp"),
)
HOSTS: Final = (
    *(
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "127.0.0.2",
        "10.255.255.1",
        "fe80::1",
        "255.255.255.255",
    ),
    *("", "localhost", "fe80::1%lo", "127.1", "\0", "é" * 300, "1" * 4000, "::ffff:127.0.0.1"),
)


class Told:
    """The other end of one worker: what the supervisor told it, and what is said in its name."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.ports: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.pings: list[int] = [0]
        self.commands: list[int] = [0]
        self.served: list[int] = [0]
        self.is_started = False
        self.is_ready = False
        self.is_deaf = False
        self.steps_left = 0

    def listen(self) -> None:
        """Read what was told."""
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self.end, MOST_BYTES, 16)
                if not data:
                    return
                self._take(orders.decode_order(data), fds)

    def _take(self, order: orders.Order, fds: list[int]) -> None:
        if isinstance(order, orders.Start):
            self.is_started = True
            self.ports = socket.socket(fileno=fds.pop(0))
            self.ports.setblocking(False)
        elif isinstance(order, orders.Ping):
            self.pings = [*self.pings[-3:], order.number]
        elif isinstance(order, orders.Command):
            self.commands = [*self.commands[-3:], order.number]
        elif isinstance(order, orders.Serve):
            self.served = [*self.served[-3:], order.number]
        for fd in fds:
            os.close(fd)

    def say(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        self._send(self.end, data, fds)

    def ask(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        if self.ports is not None:
            self._send(self.ports, data, fds)

    @staticmethod
    def _send(end: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(end, [data], fds)

    def ready(self) -> None:
        self.say(orders.encode(orders.Ready("udp", "", "native")))
        self.is_ready = True

    def close(self) -> None:
        self.end.close()
        if self.ports is not None:
            self.ports.close()


class Workers:
    """Those that live, and what they do by a generator of numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.told: list[Told] = []
        self.done: Counter[str] = Counter()
        self.started = 0

    def make_class(self) -> type[WorkerProcess]:
        """What the supervisor starts in place of worker processes."""
        told = self.told
        begin = self._begin

        class Sleeping(WorkerProcess):
            @staticmethod
            def _spawn(fd: int, stacks: int) -> subprocess.Popen[bytes]:
                del stacks
                process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
                told.append(begin(fd, process))
                return process

        return Sleeping

    def _begin(self, fd: int, process: subprocess.Popen[bytes]) -> Told:
        made = Told(socket.socket(fileno=os.dup(fd)))
        made.process = process
        made.steps_left = self.rng.randrange(20, 200)
        self.started += 1
        return made

    def behave(self) -> None:
        """All of them, as workers do."""
        for each in self.living():
            each.listen()
            if each.is_started and not each.is_ready:
                each.ready()
            each.say(orders.encode(orders.Pong(each.pings[-1])))

    def living(self) -> list[Told]:
        for each in list(self.told):
            if each.process is None or each.process.returncode is not None:
                each.close()
                self.told.remove(each)
        return list(self.told)

    def act(self) -> bool:
        """One of them does something; False where none is started."""
        for each in self.living():
            if not each.is_started:
                each.listen()
        # The one in reserve is left alone: what it says is read when it is started.
        started = [each for each in self.living() if each.is_started]
        if not started:
            return False
        told = self.rng.choice(started)
        told.steps_left -= 1
        if told.steps_left <= 0:
            self._end(told)
            return True
        if not told.is_deaf:
            told.listen()
        if told.is_started and not told.is_ready and self.rng.random() < 0.7:
            told.ready()
            return True
        acts: dict[Callable[[Told], None], int] = {
            self._pong: 30,
            self._answer: 20,
            self._request: 30,
            self._crowd: 2,
            self._mutated: 3,
            self._wrong_way: 2,
            self._noise: 1,
            self._deaf: 1,
            self._die: 1,
            self._shut: 1,
        }
        (act,) = self.rng.choices(list(acts), list(acts.values()))
        act(told)
        self.done[act.__name__.strip("_")] += 1
        return True

    @staticmethod
    def _end(told: Told) -> None:
        assert told.process is not None
        told.process.kill()
        told.steps_left = 1 << 30  # the supervisor is to notice

    # --- what they do -----------------------------------------------------------------------

    def _any_text(self) -> str:
        return self.rng.choice(["", "native", "udp", "\x1b[31m\r\n", "x" * 1025, "\0", "é" * 900])

    def _any_json(self, depth: int = 0) -> Any:
        match self.rng.randrange(8 if depth < 4 else 5):
            case 0:
                return self.rng.choice([None, True, -1, 0, 1 << 63, 1e308, float("nan")])
            case 1:
                return self._any_text()
            case 2:
                return []
            case 3:
                return {}
            case 4:
                return self.rng.randrange(1 << 40)
            case 5:
                return [self._any_json(depth + 1) for _ in range(self.rng.randrange(4))]
            case _:
                names = ["worker", "sessions", "applications", "counters", "errors", "name", "rx"]
                return {self.rng.choice(names): self._any_json(depth + 1) for _ in range(3)}

    def _any_answer(self) -> bytes:
        match self.rng.randrange(5):
            case 0:
                return b"[" * 50_000
            case 1:
                return self.rng.randbytes(20)
            case 2:
                return json.dumps({"error": self._any_json()}).encode()
            case _:
                return json.dumps(
                    {"data": {"worker": self._any_json(), "x": self._any_json()}}
                ).encode()

    def _any_report(self, told: Told) -> orders.Report:
        match self.rng.randrange(4):
            case 3:
                return orders.LetGo(self.rng.choice([*told.served, -1, 1 << 62]))
            case 0:
                return orders.Pong(self.rng.choice([told.pings[-1], 0, -1, 1 << 62]))
            case 1:
                number = self.rng.choice([*told.commands, -1])
                return orders.Answer(number, self._any_answer(), self.rng.random() < 0.8)
            case _:
                return orders.Ready(self._any_text(), self._any_text(), self._any_text())

    def _any_request(self) -> orders.PortRequest:
        host = self.rng.choice(HOSTS[:4]) if self.rng.random() < 0.7 else self.rng.choice(HOSTS)
        port = self.rng.choice([0, 0, 0, 1, 65535, 65536, -1, 1 << 62, 20_000])
        match self.rng.randrange(7):
            case 0 | 1:
                return orders.OpenPort(host, port)
            case 2:
                return orders.ClosePort(host, port)
            case 3 | 4:
                return orders.OpenSocket(self.rng.choice(["tcp", "udp"]), host, port)
            case 5:
                return orders.CloseSocket(self.rng.choice(["tcp", "udp"]), host, port)
            case _:
                return orders.UseNeighbour(host)

    def _pong(self, told: Told) -> None:
        told.say(orders.encode(orders.Pong(told.pings[-1])))

    def _answer(self, told: Told) -> None:
        number = self.rng.choice(told.commands)
        told.say(orders.encode(orders.Answer(number, self._any_answer(), self.rng.random() < 0.9)))

    def _request(self, told: Told) -> None:
        told.ask(orders.encode(self._any_request()))
        if told.ports is not None and self.rng.random() < 0.9:
            with contextlib.suppress(OSError):
                while True:
                    _, fds, _, _ = socket.recv_fds(told.ports, MOST_BYTES, 4)
                    for fd in fds:
                        os.close(fd)
                    if not _:
                        break

    def _crowd(self, told: Told) -> None:
        """Many at once, and it reads no answer."""
        for _ in range(self.rng.choice([10, 300])):
            told.ask(orders.encode(orders.OpenSocket("udp", "127.0.0.1", 0)))

    def _mutated(self, told: Told) -> None:
        if self.rng.random() < 0.5:
            data = bytearray(orders.encode(self._any_report(told)))
        else:
            data = bytearray(orders.encode(self._any_request()))
        for _ in range(self.rng.randrange(1, 4)):
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        self.rng.choice([told.say, told.ask])(bytes(data[: self.rng.randrange(1, len(data) + 1)]))

    def _wrong_way(self, told: Told) -> None:
        """Orders as reports, reports as requests, a report too early, too long, too often."""
        start = orders.Start(
            *(0, 1, 0, "udp", {"x": self._any_json()}, "native", 0, 0, b"", None, 0, {})
        )
        deep = b"\x91" * 3000 + b"\xc0"
        request = orders.encode(self._any_request())
        report = orders.encode(self._any_report(told))
        if self.rng.random() < 0.5:
            told.say(self.rng.choice([orders.encode(start), _extended("Pong", deep), request]))
        else:
            told.ask(self.rng.choice([report, _extended("OpenPort", deep)]))

    def _noise(self, told: Told) -> None:
        data = self.rng.randbytes(self.rng.choice([0, 1, 100, 60_000]))
        fds = (told.end.fileno(),) * self.rng.choice([0, 1, 200])
        self.rng.choice([told.say, told.ask])(data, fds)

    def _deaf(self, told: Told) -> None:
        told.is_deaf = True

    def _die(self, told: Told) -> None:
        assert told.process is not None
        numbers = [signal.SIGTERM, signal.SIGSTOP, signal.SIGSEGV, signal.SIGRTMIN + 3]
        os.kill(told.process.pid, self.rng.choice(numbers))

    def _shut(self, told: Told) -> None:
        with contextlib.suppress(OSError):
            end = self.rng.choice([told.end, told.ports or told.end])
            end.shutdown(self.rng.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))

    def close(self) -> None:
        for each in self.told:
            each.close()


def _extended(kind: str, value: bytes) -> bytes:
    """A message with a field that it has not."""
    return b"\x82\xa4type" + bytes([0xA0 + len(kind)]) + kind.encode() + b"\xa1x" + value


class _Faults(logging.Handler):
    """Exceptions that were contained: nothing a worker says should get as far."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record)


async def _attach(path: str) -> None:
    """An honest client, which is answered in any case."""
    with trio.fail_after(PATIENCE_S):
        end = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            await end.connect(path)
            await end.send(HELLO)
            data = await end.recv(MOST_BYTES)
            answer = attaching.decode_answer(data)
            assert isinstance(answer, attaching.Attached | attaching.Refused), answer


async def _command(daemon: Supervisor, line: str) -> None:
    with trio.move_on_after(5 * RATE), contextlib.suppress(CommandError):
        await daemon._console.run_line(line)


async def _play(workers: Workers, folder: str, steps: int) -> None:
    config = DaemonConfig(
        link="udp",
        workers=WORKERS,
        socket=f"{folder}/api.sock",
        cli_socket=f"{folder}/cli.sock",
        watchdog_seconds=10,
        drain_seconds=0,
    )
    part = UdpPart(WORKERS)
    daemon = Supervisor(config, part, "", "native")
    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                is_serving = trio.Event()

                async def start() -> None:
                    await nursery.start(daemon.run)
                    is_serving.set()

                starting.start_soon(start)
                while not is_serving.is_set():
                    workers.behave()
                    with trio.move_on_after(0.01 * RATE):
                        await is_serving.wait()
            for step in range(1, steps + 1):
                if workers.act():
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.sleep(0.01 * RATE)
                if step % 40 == 0:
                    nursery.start_soon(_command, daemon, workers.rng.choice(LINES))
                    await trio.sleep(0.002 * RATE)
                if step % 100 == 0:
                    await _attach(config.socket)
            nursery.cancel_scope.cancel()
    finally:
        part.close()


@contextlib.contextmanager
def _quiet() -> Iterator[_Faults]:
    faults = _Faults()
    logger = logging.getLogger("hoststack")
    was = logger.propagate
    logger.propagate = False
    logger.addHandler(faults)
    try:
        yield faults
    finally:
        logger.removeHandler(faults)
        logger.propagate = was


def descriptors() -> int:
    gc.collect()  # other tests of this process may have left some to it
    return len(os.listdir("/proc/self/fd"))


def fuzz(seed: int, steps: int = STEPS) -> str:
    """Returns what was done; raises what the supervisor raised."""
    workers = Workers(seed)
    before = descriptors()
    with (
        tempfile.TemporaryDirectory(prefix="hs-orders-") as folder,
        mock.patch.object(supervisor, "WorkerProcess", workers.make_class()),
        mock.patch.object(supervisor, "_LONGEST_PAUSE_S", 0.1),
        _quiet() as faults,
    ):
        trio.run(_play, workers, folder, steps, clock=trio.testing.MockClock(rate=RATE))
        workers.close()
    assert not faults.found, [logging.Formatter().format(each) for each in faults.found]
    assert descriptors() <= before, "descriptors were lost"
    done = ", ".join(f"{name} {count}" for name, count in workers.done.most_common())
    return f"seed {seed}: {workers.started} workers; {done}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.orders", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() >> 20, help="the first one")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    seed = options.seed
    while time.monotonic() < until:
        print(f"seed {seed}", flush=True)
        print(fuzz(seed), flush=True)
        seed += 1


if __name__ == "__main__":
    main()
