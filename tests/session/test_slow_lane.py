"""Requests of applications have shares of a worker's time; what takes long is done elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.application import Application, TimeAccount
from hoststack.boundary.attached_worker import AttachedWorker
from hoststack.boundary.off_loop import OffLoop, Threads
from hoststack.boundary.remote_application import Limits, RemoteApplication
from hoststack.link.memory import MemoryNetwork
from hoststack.session import slow_lane, spent_time
from hoststack.session.slow_lane import ALONE_S, MOST_S, PART, SlowLane, charged, charging
from tests.support.attached import SEAL, both_ends, hear
from tests.support.costly import false_rsa_pair, listen_with, rsa_pair

T = TypeVar("T")

HOST = "10.0.0.1"
TLS = TlsConfig.self_signed([HOST])


# --- shares of time ---------------------------------------------------------------------------


class Clock:
    """Time that passes when a request is handled."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Asking(Application):
    """An application with requests that take so long each."""

    def __init__(self, cost_s: float, count: int = 1_000_000_000) -> None:
        super().__init__("asking")
        self.is_remote = True
        self.cost_s = cost_s
        self.left = count
        self.took_s = 0.0
        self.handled = 0

    @property
    def has_requests(self) -> bool:
        return self.left > 0

    def take_request(self) -> m.Request:
        self.left -= 1
        return m.Cancel(0)


def lane() -> tuple[SlowLane, Clock]:
    clock = Clock()

    def handle(application: Application, _: object) -> None:
        assert isinstance(application, Asking)
        clock.now += application.cost_s
        application.took_s += application.cost_s
        application.handled += 1

    return SlowLane(handle, clock), clock


@pytest.mark.parametrize("cost_s", [1e-6, 1e-4, 1e-3, 0.1])
@pytest.mark.parametrize("others_s", [0.0, 50e-6, 200e-6, 0.003, 1.0])
def test_requests_have_a_third_of_what_everything_else_has(cost_s: float, others_s: float) -> None:
    """Whatever each of them costs."""
    requests, clock = lane()
    hostile = Asking(cost_s)
    turns = 200
    for _ in range(turns):
        clock.now += others_s
        requests.run([hostile])
    most_s = turns * min(max(ALONE_S - 2 * others_s, others_s * PART), MOST_S)
    assert most_s * 0.9 - cost_s <= hostile.took_s <= most_s + cost_s + 1e-9


def test_what_is_charged_is_no_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(slow_lane, "spent_s", clock)
    requests, requests_clock = lane()
    hostile = Asking(1e-6)
    with charging(TimeAccount()):
        clock.now += 1.0
    requests_clock.now += 1.0  # the same second
    requests.run([hostile])
    assert hostile.took_s == pytest.approx(ALONE_S, abs=2e-6)


def test_one_that_asks_for_much_delays_itself_alone() -> None:
    requests, _ = lane()
    hostile, honest = Asking(0.01), Asking(20e-6)
    for _ in range(1000):
        requests.run([hostile, honest])
    # Each has the same time, within one request.
    assert honest.took_s == pytest.approx(1000 * ALONE_S / 2, abs=50e-6 * 1000)
    assert hostile.took_s <= 1000 * ALONE_S / 2 + hostile.cost_s
    # And all of it as soon as the other asks for nothing.
    before, hostile.left = honest.handled, 0
    requests.run([hostile, honest])
    assert honest.handled - before >= ALONE_S / honest.cost_s - 1


def test_many_attachments_of_a_process_get_no_more_than_one() -> None:
    requests, _ = lane()
    account, honest = TimeAccount(), Asking(20e-6)
    hostile = [Asking(1e-3 if number == 7 else 20e-6) for number in range(40)]
    for each in hostile:
        each.account = account
    for _ in range(1000):
        requests.run([*hostile, honest])
    assert honest.took_s == pytest.approx(1000 * ALONE_S / 2, abs=20e-6 * 1000)
    assert sum(each.took_s for each in hostile) == pytest.approx(1000 * ALONE_S / 2, abs=0.02)
    assert all(each.handled for each in hostile)


def test_many_processes_of_a_user_get_no_more_than_one() -> None:
    requests, _ = lane()
    hostile, honest = [Asking(20e-6) for _ in range(4)], Asking(20e-6)
    for each in hostile:
        each.account = TimeAccount(uid=1001)
    for _ in range(1000):
        requests.run([*hostile, honest])
    assert honest.took_s == pytest.approx(1000 * ALONE_S / 2, abs=20e-6 * 1000)
    took = [each.took_s for each in hostile]
    assert took == [pytest.approx(1000 * ALONE_S / 8, abs=20e-6 * 1000)] * 4


def test_one_in_this_process_is_not_held_back() -> None:
    requests, _ = lane()
    own = Asking(0.01, count=500)
    own.is_remote = False
    requests.run([own])
    assert own.handled == 500


async def fail_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        raise RuntimeError("then") from None


def test_a_task_that_a_request_starts_is_charged_but_not_its_waits() -> None:
    application = Application("x")

    async def task(result: list[object]) -> None:
        await trio.sleep(100)
        with pytest.raises(RuntimeError, match="then"), trio.move_on_after(1) as scope:
            await fail_when_cancelled()
        sum(range(200_000))
        result.append(scope.cancel_called)

    async def main() -> None:
        result: list[object] = []
        await charged(application, task, result)
        assert result == [True]
        assert -50 < application.account.left_s < 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Clocks:
    """The module `time`, with clocks that stand still."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.cpu


@pytest.mark.parametrize(("waited_s", "counted_s"), [(0.001, 0.001), (0.02, 0.02), (8.0, 0.02)])
def test_an_answer_that_the_thread_blocks_for_is_spent_time(
    waited_s: float, counted_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(spent_time, "time", clocks)
    began = spent_time.spent_s()
    clocks.now += 100  # asleep
    with spent_time.blocked():
        clocks.now += waited_s + 0.003
        clocks.cpu += 0.003
    assert spent_time.spent_s() - began == pytest.approx(counted_s + 0.003)


# --- off the loop -----------------------------------------------------------------------------


class HeldUp:
    """What is to run off the loop waits until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.under_way = 0
        self.go = trio.Event()

    async def __call__(self, function: Callable[[], T], /) -> T:
        self.asked += 1
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        return function()


def beside(
    off_loop: Callable[[], OffLoop],
    main: Callable[[RemoteApplication, AttachedWorker, Any], Awaitable[None]],
) -> None:
    """An application whose long work runs there."""

    async def run() -> None:
        elsewhere = off_loop()
        with trio.fail_after(60):
            async with (
                hoststack.open_stack(link=MemoryNetwork().link(HOST)) as stack,
                trio.open_nursery() as nursery,
            ):
                ends, other = both_ends("it")
                application = RemoteApplication("it", ends, Limits(), SEAL, elsewhere)
                stack._worker.attach(application)
                nursery.start_soon(application.run)
                await main(application, other, elsewhere)
                nursery.cancel_scope.cancel()
                other.close()

    trio.run(run)


async def answers(other: AttachedWorker, count: int = 1) -> list[Any]:
    """The next notices."""
    found: list[Any] = []
    while len(found) < count:
        await hear(other)
        found += other.take_notices()
    return found


def listen(token: int, port: int = 0) -> m.Listen:
    return m.Listen(token, (HOST, port), TLS, ("x",), None)


def test_others_are_served_while_a_key_is_checked() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        for token in (1, 2, 3):
            other.request(listen(token, 5000 + token))
        other.request(m.GetStatistics(9, 7))
        (answer,) = await answers(other)
        assert (type(answer), answer.token) == (m.Failed, 9)
        await trio.testing.wait_all_tasks_blocked()
        assert (held.asked, held.under_way) == (1, 1)  # one at a time
        held.go.set()
        assert [(type(each), each.token) for each in await answers(other, 3)] == [
            (m.Listening, token) for token in (1, 2, 3)
        ]

    beside(HeldUp, main)


def test_what_waits_for_a_key_can_be_cancelled() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        for token in (1, 2, 3):
            other.request(listen(token))
        await trio.testing.wait_all_tasks_blocked()
        assert (held.asked, held.under_way) == (1, 1)
        other.request(m.Cancel(1))
        other.request(m.Cancel(2))
        await trio.testing.wait_all_tasks_blocked()
        assert (held.asked, held.under_way) == (2, 1)
        held.go.set()
        (answer,) = await answers(other)
        assert (type(answer), answer.token) == (m.Listening, 3)
        other.request(m.GetStatistics(9, 7))
        (answer,) = await answers(other)
        assert answer.token == 9

    beside(HeldUp, main)


def test_loading_a_key_is_charged() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        other.request(listen(1))
        await trio.testing.wait_all_tasks_blocked()
        application._loading._costs.append(0.5)  # as if it had taken so long
        before = application.engine.counters.turns
        held.go.set()
        await answers(other)
        assert application.engine.counters.turns - before >= 0.5 / MOST_S

    beside(HeldUp, main)


def test_other_certificates_are_loaded_off_the_loop_and_charged() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        held.go.set()
        other.request(listen(1))
        (listening,) = await answers(other)
        held.go = trio.Event()
        for token in (2, 3):
            other.request(m.ReplaceTls(token, listening.handle, TLS, ("x",)))
        other.request(m.GetStatistics(9, 7))
        (answer,) = await answers(other)
        assert (type(answer), answer.token) == (m.Failed, 9)
        await trio.testing.wait_all_tasks_blocked()
        assert (held.asked, held.under_way) == (2, 1)  # one at a time
        application._loading._costs.append(0.5)  # as if it had taken so long
        before = application.engine.counters.turns
        held.go.set()
        assert await answers(other, 2) == [m.Done(2), m.Done(3)]
        assert application.engine.counters.turns - before >= 0.5 / MOST_S

    beside(HeldUp, main)


def test_few_notices_of_new_udp_peers_are_in_front_of_others() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        del held
        sent = 0
        while not application.is_behind:
            application.notify(m.StreamsAvailable(sent))
            sent += 1
        assert sent < 1000
        application.worker.wake()  # which tells it of their places among its news
        await answers(other, sent)
        assert not application.is_behind

    beside(HeldUp, main)


def test_an_application_that_leaves_leaves_no_key_behind() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        other.request(listen(1))
        await trio.testing.wait_all_tasks_blocked()
        assert held.under_way == 1
        other.close()
        await trio.testing.wait_all_tasks_blocked()
        assert application.gone
        assert held.under_way == 0

    beside(HeldUp, main)


def test_one_that_leaves_is_let_go_though_many_keys_wait() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        for token in range(1, 41):
            other.request(listen(token))
        await trio.testing.wait_all_tasks_blocked()
        other.close()
        await trio.testing.wait_all_tasks_blocked()
        assert application.gone
        assert (held.asked, held.under_way) == (1, 0)

    beside(HeldUp, main)


def test_only_so_many_wait_for_a_key_and_the_rest_in_the_channel() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        for token in range(1, 41):
            other.request(listen(token))
        await trio.testing.wait_all_tasks_blocked()
        assert 1 < len(application._loading._waiting) <= 16
        held.go.set()
        assert [each.token for each in await answers(other, 40)] == list(range(1, 41))

    beside(HeldUp, main)


def test_a_key_that_is_too_large_is_refused_with_a_clear_line() -> None:
    async def main(application: RemoteApplication, other: AttachedWorker, _: object) -> None:
        for token, bits in ((1, 1024), (2, 8192)):
            other._send(listen_with(token, HOST, *false_rsa_pair(bits)))
            (answer,) = await answers(other)
            assert (type(answer), answer.token) == (m.Failed, token)
            assert f"the key has {bits} bits" in answer.text
            assert application.gone is None
        other._send(listen_with(3, HOST, *rsa_pair(2048)))
        (answer,) = await answers(other)
        assert isinstance(answer, m.Listening)

    beside(lambda: Threads().share_of((0, 1)), main)


def test_the_systems_cas_are_loaded_once() -> None:
    """For all applications and protocols: they take some 25 ms."""

    async def main(application: RemoteApplication, other: AttachedWorker, held: HeldUp) -> None:
        held.go.set()
        for token in range(1, 5):
            alpn = (f"h{token}",)
            other.request(m.Connect(token, ("10.0.0.2", 1), "x", TlsConfig(), alpn, None))
            await trio.testing.wait_all_tasks_blocked()
            other.request(m.Cancel(token))
        await answers(other, 0)
        assert held.asked == 1

    beside(HeldUp, main)


def test_threads_are_few_and_their_end_is_awaited() -> None:
    async def main() -> None:
        threads = Threads(most=2)
        running, most_at_once, ended = 0, 0, 0
        gates = [trio.Event() for _ in range(4)]
        token = trio.lowlevel.current_trio_token()

        def work(number: int) -> None:
            nonlocal running, most_at_once, ended
            running += 1
            most_at_once = max(most_at_once, running)
            trio.from_thread.run(gates[number].wait, trio_token=token)
            running -= 1
            ended += 1

        async with trio.open_nursery() as nursery:
            for number in range(4):
                run = threads.share_of((number, number))
                nursery.start_soon(run, lambda number=number: work(number))
            while running < 2:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()  # who asked is gone
        assert (running, ended) == (2, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.wait_ended)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == 0
            for gate in gates:
                gate.set()
        assert (running, ended, most_at_once) == (0, 2, 2)

    trio.run(main)
