"""Attachments of processes, and the time of a worker that they share."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import ExitStack

import trio
import trio.testing

import hoststack
from hoststack.boundary.channel import Channel
from hoststack.boundary.off_loop import Threads
from hoststack.boundary.rings import shared_ends
from hoststack.daemon import orders
from hoststack.daemon.leaving import MOST_LEAVING, Attachments
from hoststack.daemon.worker_main import _Applications
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import SEAL


def serve(number: int, pid: int, uid: int = 0) -> orders.Serve:
    scopes = frozenset({"global"})
    return orders.Serve(number, f"x-{pid}", uid, pid, 1 << 30, 100, "default", scopes, None)


def test_a_worker_has_one_account_for_all_attachments_of_a_process() -> None:
    async def main() -> None:
        ours, theirs = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        async with hoststack.open_stack(link=MemoryNetwork().link("10.0.0.1")) as stack:
            worker = stack._worker
            with ExitStack() as made:
                made.callback(theirs.close)
                made.callback(ours.close)
                async with trio.open_nursery() as nursery:
                    applications = _Applications(worker, theirs, nursery, SEAL, Threads())
                    for number, (pid, uid) in enumerate([(7, 0), (7, 0), (8, 0), (7, 1)]):
                        fds, _ = shared_ends("x", made)
                        applications.serve(serve(number, pid, uid), [os.dup(fd) for fd in fds])
                    applications.serve(serve(4, 9), [])  # its descriptors got lost
                    await trio.testing.wait_all_tasks_blocked()
                    assert let_go(ours) == [4]
                    accounts = [applications.accounts[key] for key in ((0, 7), (0, 8), (1, 7))]
                    counts = Counter(each.account for each in worker.layer.applications[1:])
                    assert [counts[account] for account in accounts] == [2, 1, 1]
                    assert [account.uid for account in accounts] == [0, 0, 1]
                    assert all(account.left_s < 0 for account in accounts), "attaching costs"
                    nursery.cancel_scope.cancel()
                assert sorted(let_go(ours)) == [0, 1, 2, 3]

    trio.run(main)


def let_go(channel: Channel) -> list[int]:
    """The numbers that a worker has reported."""
    reports = [orders.decode_report(data) for data, _ in channel.receive_now()]
    return [report.number for report in reports if isinstance(report, orders.LetGo)]


def test_a_process_waits_only_for_what_it_has_left_itself() -> None:
    async def main() -> None:
        attachments = Attachments()
        numbers = [attachments.add((0, 7)) for _ in range(MOST_LEAVING + 5)]
        for number in numbers:
            attachments.served(number, 0)
            attachments.served(number, 1)
        await attachments.wait_for_room((0, 7))  # many that stay are no reason
        for number in numbers[:MOST_LEAVING]:
            attachments.left(number)
        await attachments.wait_for_room((0, 8))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attachments.wait_for_room, (0, 7))
            await trio.testing.wait_all_tasks_blocked()
            attachments.let_go(numbers[0], 0)
            attachments.let_go(numbers[-1], 0)
            attachments.let_go(1 << 70, 0)  # no such one
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            attachments.let_go(numbers[0], 1)
        attachments.worker_died(0)
        attachments.worker_died(1)
        assert len(attachments) == 5
        for number in numbers[MOST_LEAVING:]:
            attachments.left(number)
        assert not len(attachments)

    trio.run(main)
