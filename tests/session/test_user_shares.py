"""What a daemon has a limited number of is shared by users, and by a user's processes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from hoststack.boundary import attaching
from hoststack.boundary import messages as m
from hoststack.boundary.application import TimeAccount
from hoststack.boundary.off_loop import Threads
from hoststack.boundary.protocols import Protocol
from hoststack.boundary.user_shares import Process, UserShares
from hoststack.control.unix_listener import unix_listener
from hoststack.daemon import attach_server
from hoststack.daemon.attach_server import AttachServer
from hoststack.daemon.config import DaemonConfig
from hoststack.link.base import LinkError
from hoststack.link.udp.link import UdpLink
from hoststack.quic.tls import TlsConfig
from hoststack.session import kernel_sockets, session
from hoststack.session.namespaces import Namespaces
from hoststack.transport.local.ports import LocalPorts
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker
from tests.session.test_kernel_sockets import HOST, Recorder

TLS = TlsConfig.self_signed([HOST])


def fill(shares: UserShares, process: Process, total: int) -> int:
    """Take as many as there are for a process; how many."""
    count = 0
    while shares.refusal(process, total - len(shares)) is None:
        shares.add(process)
        count += 1
    return count


def test_each_user_and_each_process_leaves_something() -> None:
    shares = UserShares("ports")
    assert [fill(shares, (0, pid), 256) for pid in range(4)] == [144, 36, 9, 3]
    assert [fill(shares, (0, pid), 256) for pid in range(4)] == [0] * 4  # the user has 192
    assert [fill(shares, (1, pid), 256) for pid in range(4)] == [36, 9, 3, 0]
    assert [fill(shares, (uid, 9), 256) > 0 for uid in range(2, 5)] == [True] * 3
    assert len(shares) <= 256


@pytest.mark.parametrize("total", range(12))
def test_few_are_not_held_back(total: int) -> None:
    shares = UserShares("ports")
    assert fill(shares, (0, 0), total) >= min(total, 3)
    assert fill(shares, (0, 1), total) or len(shares) >= total - total // 4


def test_what_is_given_back_is_counted_no_more() -> None:
    shares = UserShares("ports")
    taken = [shares.add(who) for who in [(0, 1), (0, 2), None]]
    for release in taken * 2:
        release()
    assert len(shares) == 0
    assert not shares._users
    assert not shares._processes
    assert shares.refusal(None, 0) is None


# --- a worker's ports, sockets, connections -----------------------------------------------------

Script = Callable[[Worker, list[Recorder]], Awaitable[None]]
#: Two attachments of a process, another process of its user, another user.
OWNERS = [(1, 1), (1, 1), (1, 2), (2, 3)]


def play(script: Script) -> None:
    async def main() -> None:
        with trio.fail_after(60), closing(UdpLink()) as link:
            worker = Worker(link, engine_maker("auto", link))
            accounts = {owner: TimeAccount(*owner) for owner in OWNERS}
            applications = [Recorder() for _ in OWNERS]
            for owner, application in zip(OWNERS, applications, strict=True):
                worker.attach(application)
                application.is_remote = True
                application.account = accounts[owner]
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                await script(worker, applications)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def take_all(application: Recorder, request: Callable[[int], m.Request]) -> list[m.Notice]:
    """Ask again and again until it is refused."""
    taken: list[m.Notice] = []
    while True:
        application.request(request(len(taken)))
        notice = await application.hears(m.Notice)  # type: ignore[arg-type]
        if isinstance(notice, m.Failed):
            assert notice.errno == errno.EMFILE
            assert "are for others: close some" in notice.text
            return taken
        if isinstance(notice, m.Listening | m.Connected):
            taken.append(notice)


def listen(protocol: Protocol) -> Callable[[int], m.Request]:
    tls, alpn = (TLS, ("x",)) if protocol == "quic" else (TlsConfig(verify=False), ())
    return lambda token: m.Listen(token, (HOST, 0), tls, alpn, None, protocol=protocol)


@pytest.mark.parametrize("protocol", ["quic", "tcp", "udp"])
def test_ports(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(worker: Worker, applications: list[Recorder]) -> None:
        worker.layer.ports.most = 32
        first, same, process, user = applications
        taken = await take_all(first, listen(protocol))
        counts = [len(await take_all(each, listen(protocol))) for each in (same, process, user)]
        assert [len(taken), *counts] == [18, 0, 5, 6]
        for each in taken:
            assert isinstance(each, m.Listening)
            first.request(m.Unlisten(each.handle))
        first.request(m.GetStatistics(99, 1))
        await first.hears(m.Failed)  # it has read them all
        assert len(await take_all(same, listen(protocol))) > 5

    monkeypatch.setattr(kernel_sockets, "_MOST_SOCKETS", 32)
    play(script)


def test_connected_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_sockets, "_MOST_SOCKETS", 32)

    async def script(worker: Worker, applications: list[Recorder]) -> None:
        with socket.create_server((HOST, 0), backlog=64) as server:
            remote = server.getsockname()

            def connect(token: int) -> m.Request:
                return m.Connect(token, remote, "", TLS, (), None, protocol="tcp")

            counts = []
            for each in applications:
                counts.append(len(await take_all(each, connect)))
            assert counts == [18, 0, 5, 6]
            # Those of an application that leaves are there again, though some have no stream yet.
            worker.detach(applications[0])
            await trio.testing.wait_all_tasks_blocked()
            assert len(await take_all(applications[1], connect)) > 10

    play(script)


def test_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_CONNECTIONS", 32)

    async def script(worker: Worker, applications: list[Recorder]) -> None:
        counts = [len(await take_all(each, listen("udp"))) for each in applications]
        assert counts == [18, 0, 5, 6]
        worker.detach(applications[0])
        assert len(await take_all(applications[1], listen("udp"))) > 10

    play(script)


def test_dynamic_ports_of_a_namespace() -> None:
    ports = LocalPorts()
    taken = []
    while len(taken) < 16384 * 9 // 16:
        taken.append(ports.take("default", (1, 1)))
    with pytest.raises(LinkError, match="dynamic ports") as caught:
        ports.take("default", (1, 1))
    assert caught.value.errno == errno.EMFILE
    assert ports.take("default", (2, 2)) not in taken
    ports.take("another", (1, 1))
    ports.give_back("default", taken[0])
    ports.give_back("default", taken[0])
    ports.take("default", (1, 1))


# --- threads --------------------------------------------------------------------------------------


def test_keys_of_a_user_do_not_keep_those_of_another_waiting() -> None:
    async def main() -> None:
        threads, gate = Threads(most=2), trio.Event()
        running: list[Process] = []
        token = trio.lowlevel.current_trio_token()

        def work(process: Process) -> None:
            running.append(process)
            trio.from_thread.run(gate.wait, trio_token=token)

        async with trio.open_nursery() as nursery:
            for process in [(1, 1)] * 20 + [(1, 2), (2, 3)]:
                nursery.start_soon(threads.share_of(process), lambda who=process: work(who))
            while len(running) < 2:
                await trio.lowlevel.checkpoint()
            assert (2, 3) in running  # one that was the first, or the second
            gate.set()
            while len(running) < 4:
                await trio.lowlevel.checkpoint()
            assert (1, 2) in running[:4]
            nursery.cancel_scope.cancel()
        await threads.wait_ended()

    trio.run(main)


# --- attachments ----------------------------------------------------------------------------------


def test_attachments_and_silent_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "api.sock")
    who: list[Process] = [(1, 1)]
    monkeypatch.setattr(attach_server, "_UCRED", Credentials(who))
    hello = attaching.encode(attaching.Attach(version=attaching.PROTOCOL_VERSION, name="x"))

    async def connect(server: Any, process: Process, data: bytes) -> trio.socket.SocketType:
        who[:] = [process]
        end = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await end.connect(path)
        if data:
            await end.send(data)
        await trio.testing.wait_all_tasks_blocked()
        return end

    async def main() -> None:
        config = DaemonConfig(max_applications=16, group=group())
        server = AttachServer(config, attaching.Attached(0, "udp", "", "native"), Namespaces())
        ends: list[trio.socket.SocketType] = []
        with unix_listener(path, socket.SOCK_SEQPACKET, None) as listener, trio.fail_after(60):
            listener.setblocking(False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, listener)
                # Silent ones of one process, which keep no other out and stay few.
                for number in range(100):
                    ends.append(await connect(server, (1, number % 3), b""))
                assert len(server._greeting) <= 49
                counts = []
                for process in [(1, 1), (1, 2), (2, 3)]:
                    counts.append(0)
                    while True:
                        ends.append(await connect(server, process, hello))
                        answer = attaching.decode_answer(await ends[-1].recv(65536))
                        if isinstance(answer, attaching.Refused):
                            assert answer.errno == errno.EUSERS
                            assert "close some, or raise max-applications" in answer.text
                            break
                        counts[-1] += 1
                assert counts == [9, 3, 3]
                nursery.cancel_scope.cancel()
        for end in ends:
            end.close()
        assert not len(server._attached)
        assert not len(server._greetings)

    trio.run(main)


class Credentials:
    """In place of struct ucred: what the test says."""

    size = attach_server._UCRED.size

    def __init__(self, who: list[Process]) -> None:
        self._who = who

    def unpack(self, _: bytes) -> tuple[int, int, int]:
        uid, pid = self._who[0]
        return pid, uid, 0


def group() -> str:
    """One that there is; any will do."""
    import grp

    return grp.getgrgid(os.getgid()).gr_name
