"""Clients of the control socket that take a place and give nothing for it."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hoststack.control.control_client import ControlClient
from hoststack.control.control_socket import IDLE_S, serve_commands
from tests.control.test_control_socket import ask, echo_line, wait_dropped
from tests.support.exceptions import exceptions

PATIENCE_S = 600
PLACES = 64


@asynccontextmanager
async def serving(
    path: Path, run_line: Callable[[str, bool], Awaitable[str]] = echo_line
) -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve_commands, str(path), run_line))
            yield
            nursery.cancel_scope.cancel()


async def connected(path: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(str(path))


def test_idle_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path):
            idle = [await connected(path) for _ in range(3 * PLACES)]
            async with await connected(path) as honest:
                assert await ask(honest, {"line": "x"}) == {"text": "x"}
                # The first ones had to make room.
                await wait_dropped(idle[0])
                assert await ask(idle[-1], {"line": "y"}) == {"text": "y"}
            for stream in idle:
                await stream.aclose()

    trio.run(main)


def test_those_who_work_keep_their_places(tmp_path: Path) -> None:
    began = trio.lowlevel.ParkingLot()
    running = 0

    async def run_line(line: str, as_json: bool) -> str:
        nonlocal running
        running += 1
        began.unpark_all()
        await trio.sleep_forever()
        raise AssertionError

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, run_line):
            busy = [await connected(path) for _ in range(PLACES)]
            for stream in busy:
                await stream.send_all(b'{"line": "x"}\n')
            while running < PLACES:
                await began.park()
            async with await connected(path) as one_more:
                answer = json.loads(await one_more.receive_some())
                assert answer == {"error": "too many clients"}
            for stream in busy:
                await stream.aclose()

    trio.run(main)


@pytest.mark.parametrize("dribbles", [False, True], ids=["silent", "dribbling"])
def test_who_asks_nothing_is_let_go_of(tmp_path: Path, dribbles: bool) -> None:
    async def dribble(stream: trio.SocketStream) -> None:
        while True:
            try:
                await stream.send_all(b" ")
            except trio.BrokenResourceError:
                return
            await trio.sleep(5)

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with (
            serving(path),
            await connected(path) as stream,
            trio.open_nursery() as nursery,
        ):
            assert await ask(stream, {"line": "x"}) == {"text": "x"}
            began = trio.current_time()
            if dribbles:
                nursery.start_soon(dribble, stream)
            await wait_dropped(stream)
            assert trio.current_time() - began == pytest.approx(IDLE_S, abs=1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_who_does_not_read_its_answer_is_let_go_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run_line(line: str, as_json: bool) -> str:
        return "x" * (4 << 20)

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, run_line), await connected(path) as stream:
            await stream.send_all(b'{"line": "x"}\n')
            await trio.sleep(2 * IDLE_S)
            assert "did not read its answer" in caplog.text
            await wait_dropped(stream)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_prompt_that_was_let_go_of_comes_back(tmp_path: Path) -> None:
    """A person thinks for longer than IDLE_S."""

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path):
            client = await trio.to_thread.run_sync(ControlClient, str(path))
            assert await trio.to_thread.run_sync(client.run, "one") == "one"
            for _ in range(PLACES):  # all at once: the first one has to go
                await connected(path)
            await trio.testing.wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(client.run, "two") == "two"
            client.close()

    trio.run(main)


def test_no_exception_of_a_command_ends_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    raised = exceptions()

    async def run_line(line: str, as_json: bool) -> str:
        if line == "well":
            return line
        raise next(raised)

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, run_line):
            for _ in exceptions():
                stream = await connected(path)
                await stream.send_all(b'{"line": "x"}\n')
                assert b"error" in await stream.receive_some()
                await stream.aclose()
            async with await connected(path) as stream:
                assert await ask(stream, {"line": "well"}) == {"text": "well"}

    trio.run(main)


def test_a_failure_beside_a_cancellation_ends_one_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves while its command fails: what comes out is a group of both."""
    began = trio.Event()

    async def run_line(line: str, as_json: bool) -> str:
        if line == "well":
            return line

        async def fail() -> None:
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                raise RuntimeError("at the end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError

    async def main() -> None:
        path = tmp_path / "cli.sock"
        async with serving(path, run_line):
            async with await connected(path) as stream:
                await stream.send_all(b'{"line": "x"}\n')
                await began.wait()
            async with await connected(path) as stream:
                assert await ask(stream, {"line": "well"}) == {"text": "well"}

    trio.run(main)
    assert "at the end" in caplog.text
