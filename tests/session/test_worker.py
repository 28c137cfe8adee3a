"""When a worker has a turn: its own task, and an application that sends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

import hoststack
from hoststack.boundary.application import LAZY_S, Application
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.link.memory import MemoryNetwork
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker
from tests.support.attached import SEAL, both_ends, follow, inline

pytestmark = pytest.mark.usefixtures("engine")

#: A handle that nobody has: a signal about it brings about a turn, and nothing else.
NOBODY = 1 << 20


def play(script: Callable[[Worker, Application], Awaitable[None]]) -> None:
    """Run `script` beside a worker that sleeps, on a clock that jumps."""

    async def main() -> None:
        link = MemoryNetwork().link("10.0.0.1")
        worker, application = Worker(link, engine_maker("auto", link)), Application("test")
        worker.attach(application)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.testing.wait_all_tasks_blocked()
            await script(worker, application)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def turns(worker: Worker) -> int:
    return worker.layer.engine.counters.turns


def test_who_sends_has_a_turn_at_once_and_the_next_ones_share_one() -> None:
    async def script(worker: Worker, application: Application) -> None:
        before = turns(worker)
        application.signal_sent(NOBODY)
        assert turns(worker) == before + 1
        for _ in range(10):
            application.signal_sent(NOBODY)
        assert turns(worker) == before + 1
        await trio.testing.wait_all_tasks_blocked()
        assert turns(worker) == before + 2
        application.signal_sent(NOBODY)
        assert turns(worker) == before + 3

    play(script)


def test_an_application_elsewhere_is_heard_each_time_while_the_worker_sleeps() -> None:
    async def script(worker: Worker, _: Application) -> None:
        ends, elsewhere = both_ends("elsewhere")
        remote = RemoteApplication("elsewhere", ends, Limits(), SEAL, inline)
        worker.attach(remote)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.run)
            nursery.start_soon(follow, elsewhere)
            # As by its first request: then it falls asleep listening to the ring, too.
            worker.wake()
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                before = turns(worker)
                elsewhere.signal_sent(NOBODY)
                await trio.testing.wait_all_tasks_blocked()
                assert turns(worker) > before
                assert remote.take_commands() == ([], False)
            before = turns(worker)
            elsewhere.settle()
            await trio.testing.wait_all_tasks_blocked()
            assert turns(worker) == before, "woken for nothing"
            nursery.cancel_scope.cancel()

    play(script)


def test_who_reads_a_little_wakes_nobody_for_a_while() -> None:
    async def script(worker: Worker, application: Application) -> None:
        before, start = turns(worker), trio.current_time()
        for _ in range(10):
            application.signal_consumed(NOBODY, is_urgent=False)
        await trio.testing.wait_all_tasks_blocked()
        assert turns(worker) == before
        await trio.sleep(2 * LAZY_S)
        assert turns(worker) == before + 1
        assert trio.current_time() == start + 2 * LAZY_S
        application.signal_consumed(NOBODY)
        await trio.testing.wait_all_tasks_blocked()
        assert turns(worker) == before + 2

    play(script)


def test_who_always_wants_something_keeps_no_other_task_waiting() -> None:
    class Busy(Application):
        turns_left = 1000

        def arm(self) -> bool:
            self.turns_left -= 1
            return self.turns_left > 0

    async def script(worker: Worker, application: Application) -> None:
        busy = Busy("busy")
        worker.attach(busy)
        worker.wake()
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert busy.turns_left > 800

    play(script)


def test_what_is_due_waits_for_a_link_that_is_blocked() -> None:
    async def never() -> None:
        await trio.sleep_forever()

    async def main() -> None:
        network = MemoryNetwork()
        tls = hoststack.TlsConfig.self_signed(["10.0.0.1"])
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1")) as server,
            hoststack.open_stack(link=network.link("10.0.0.2")) as client,
            await server.listen("quic://10.0.0.1:1", tls=tls, alpn=["test"]),
            client.connect(
                "quic://10.0.0.1:1", tls=hoststack.TlsConfig(verify=False), alpn=["test"]
            ) as connection,
        ):
            link, send = client.link, client.link.send
            link.send = lambda burst: 0  # type: ignore[method-assign]
            link.wait_writable = never  # type: ignore[method-assign]
            stream = await connection.open_stream()
            await stream.send_all(bytes(100_000))
            before = turns(client._worker)
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
            assert turns(client._worker) < before + 100
            await trio.sleep(1)
            assert turns(client._worker) < before + 300
            link.send = send  # type: ignore[method-assign]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_turn_that_fails_ends_the_worker_and_not_who_sends() -> None:
    async def script(worker: Worker, application: Application) -> None:
        def fail(now: float, spin_s: float = 0.0) -> None:
            raise RuntimeError("broken engine")

        worker.layer.engine.turn = fail  # type: ignore[method-assign, assignment]
        application.signal_sent(NOBODY)
        await trio.sleep_forever()

    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="broken engine"), flatten_subgroups=True
    ):
        play(script)


def test_nobody_has_a_turn_once_the_worker_is_gone() -> None:
    async def script(_: Worker, __: Application) -> None:
        link = MemoryNetwork().link("10.0.0.1")
        worker, application = Worker(link, engine_maker("auto", link)), Application("test")
        worker.attach(application)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        before = turns(worker)
        application.signal_sent(NOBODY)
        assert turns(worker) == before

    play(script)
