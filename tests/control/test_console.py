"""The debug CLI over several workers: what is undone, what is remembered."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from hoststack.control import run
from hoststack.control.console import Console
from hoststack.control.grammar import FAULT, Command, CommandError, WorkerGoneError
from hoststack.control.run import read_answer, run_line
from hoststack.control.worker_side import Data

URI = "quic://10.0.0.1:1234"


def recorder(index: int, told: list[str], fails: str = "") -> Callable[[str], Awaitable[Data]]:
    """A worker that notes what it is told, and fails one line."""

    async def run_in_worker(line: str) -> Data:
        await trio.lowlevel.checkpoint()
        if line == fails:
            raise CommandError("not here")
        told.append(line)
        answer = {"local": ["10.0.0.1", 1234], "echo": True, "cc": "reno", "fifo_bytes": 1, "id": 1}
        return {"worker": index, **answer}

    return run_in_worker


def test_a_new_worker_gets_what_was_set() -> None:
    async def main() -> None:
        console = Console({0: recorder(0, [])})
        rule = "proto quic 10.0.0.0/8 0 10.0.0.0/8 0"
        for line in (
            "session disable",
            "quic set cc bbr",
            "q s cc reno",
            "quic set fifo-size 64k",
            "app ns add id blue secret one",
            f"session rule add {rule} action deny",
            f"session rule add {rule} action allow tag again",
            "session rule add proto quic 10.1.0.0/16 0 10.0.0.0/8 0 action deny",
            "session rule del proto quic 10.1.0.0/16 0 10.0.0.0/8 0",
            f"test echo server uri {URI}",
            "test echo server uri quic://10.0.0.1:77 no-echo",
            "test echo server uri quic://10.0.0.1:88",
            "app ns add id blue secret two",
        ):
            await console.run_line(line)
        told: list[str] = []
        await console.prepare(recorder(1, told))
        assert told == [
            "q s cc reno",
            "quic set fifo-size 64k",
            "app ns add id blue secret two",
            f"session rule add {rule} action allow tag again",
            f"test echo server uri {URI}",
            "test echo server uri quic://10.0.0.1:77 no-echo",
            "test echo server uri quic://10.0.0.1:88",
            "session disable",
        ]

    trio.run(main)


async def stopped(line: str) -> Data:
    """A worker whose echo servers are stopped."""
    await trio.lowlevel.checkpoint()
    return {"worker": 0, "stopped": ["x"], "running": []}


def test_what_was_stopped_is_not_started_again() -> None:
    async def main() -> None:
        workers = {0: recorder(0, [])}
        console = Console(workers)
        for port in (1, 2, 3):
            await console.run_line(f"test echo server uri quic://10.0.0.1:{port}")
        workers[0] = stopped
        await console.run_line("test echo server stop uri quic://10.0.0.1:2")
        told: list[str] = []
        await console.prepare(recorder(1, told))
        assert [line[-1] for line in told] == ["1", "3"]
        await console.run_line("test echo server stop")
        told.clear()
        await console.prepare(recorder(1, told))
        assert told == []

    trio.run(main)


@pytest.mark.parametrize("line", ["app ns add id blue secret hush", "ap n ad se hush i blue"])
def test_a_new_worker_that_refuses_something(caplog: pytest.LogCaptureFixture, line: str) -> None:
    async def main() -> None:
        console = Console({0: recorder(0, [])})
        await console.run_line(line)
        await console.run_line("quic set cc reno")
        told: list[str] = []
        await console.prepare(recorder(1, told, fails=line))
        assert told == ["quic set cc reno"]

    caplog.set_level(logging.WARNING)
    trio.run(main)
    assert "'app ns add' {'id': 'blue'}: not here" in caplog.text
    assert "hush" not in caplog.text


def test_what_one_worker_refuses_is_undone_and_not_remembered() -> None:
    async def main() -> None:
        told: list[str] = []
        line = f"test echo server uri {URI}"

        async def late(line: str) -> Data:
            await trio.sleep(0.01)
            raise CommandError("not here")

        console = Console({0: recorder(0, told), 1: late})
        with pytest.raises(CommandError, match="worker 1: not here"):
            await console.run_line(line)
        assert told == [line, f"test echo server stop uri {URI}"]
        told.clear()
        await console.prepare(recorder(2, told))
        assert told == []

    trio.run(main)


def test_what_the_daemon_hears_of() -> None:
    async def main() -> None:
        told: list[str] = []
        heard: list[Command] = []

        def refuse(command: Command) -> Data:
            raise CommandError("not now")

        def hear(command: Command) -> Data:
            heard.append(command)
            return {"more": 1}

        console = Console({0: recorder(0, told)}, {"app ns add": hear, "quic set cc": refuse})
        answer = await console.run_line("app ns add id a secret b", as_json=True)
        assert json.loads(answer)["more"] == 1
        assert heard == [Command("app ns add", {"id": "a", "secret": "b"})]
        with pytest.raises(CommandError, match="not now"):
            await console.run_line("quic set cc reno")
        assert told == ["app ns add id a secret b"]

    trio.run(main)


def test_no_worker() -> None:
    async def main() -> None:
        console = Console({})
        assert "show session" in await console.run_line("help")
        with pytest.raises(CommandError, match="no worker runs now"):
            await console.run_line("show app")

    trio.run(main)


async def died(line: str) -> Data:
    await trio.lowlevel.checkpoint()
    raise WorkerGoneError("it died")


@pytest.mark.parametrize(
    "line", ["show workers", "clear errors", "quic set cc reno", "app ns add id a secret b"]
)
def test_a_worker_that_dies_meanwhile_is_left_out(line: str) -> None:
    """As it is a moment later, when the daemon knows."""

    async def main() -> None:
        told: list[str] = []
        await Console({0: died, 1: recorder(1, told)}).run_line(line, as_json=True)
        assert told == [line]
        with pytest.raises(CommandError, match="no worker runs now"):
            await Console({0: died, 1: died}).run_line(line)

    trio.run(main)


def test_a_worker_that_dies_with_its_share_of_the_work() -> None:
    async def main() -> None:
        with pytest.raises(CommandError, match="worker 0: it died"):
            await Console({0: died, 1: recorder(1, [])}).run_line(f"test echo client uri {URI}")

    trio.run(main)


def test_a_worker_that_starts_during_a_change_misses_nothing() -> None:
    async def main() -> None:
        told: list[str] = []

        async def slow(line: str) -> Data:
            await trio.sleep(1)
            return {"worker": 0, "cc": "reno", "fifo_bytes": 1}

        workers = {0: slow}
        console = Console(workers)

        async def start() -> None:
            await console.prepare(recorder(1, told))
            workers[1] = recorder(1, told)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.run_line, "quic set cc reno")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(start)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(console.run_line, "quic set fifo-size 64k")
        assert told == ["quic set cc reno", "quic set fifo-size 64k"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_fault_of_a_command_stays_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(command: Command, side: object) -> Data:
        raise RuntimeError("a bug")

    monkeypatch.setitem(run._HANDLERS, "show app", broken)

    async def main() -> None:
        raw = await run_line("show app", None)  # type: ignore[arg-type]
        with pytest.raises(CommandError, match=FAULT):
            read_answer(raw)
        raw = await run_line("shwo app", None)  # type: ignore[arg-type]
        with pytest.raises(CommandError, match="unknown word 'shwo'"):
            read_answer(raw)

    trio.run(main)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"data": 1}', b'{"error": 1}', b"\xff"])
def test_an_answer_that_is_none(raw: bytes) -> None:
    with pytest.raises(CommandError, match="an invalid answer"):
        read_answer(raw)
