"""A worker process: an engine, a session layer, and the applications that it serves.

The supervisor starts it with one descriptor and sends everything else over that. It drops its
privileges before it reads the first packet.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

import trio

from hoststack.api.errors import LinkError
from hoststack.boundary.application import TimeAccount
from hoststack.boundary.channel import Channel, ChannelClosedError
from hoststack.boundary.off_loop import Threads
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.resumption import TicketSeal
from hoststack.control.worker_side import WorkerSide
from hoststack.daemon import orders
from hoststack.daemon.commands import Commands
from hoststack.daemon.heap import trim_heap
from hoststack.daemon.loaded import load_everything
from hoststack.daemon.log import log_to_stderr
from hoststack.daemon.ports import PortClient
from hoststack.daemon.privileges import (
    OrphanedError,
    PrivilegeError,
    become,
    close_others,
    die_with_maker,
)
from hoststack.link.base import Link
from hoststack.link.udp.link import UdpLink
from hoststack.link.xdp.link import AfXdpLink
from hoststack.quic.seam import CidConfig
from hoststack.session.slow_lane import charging
from hoststack.transport.kernel.open_files import most_ports, raise_open_files
from hoststack.worker.engines import engine_maker
from hoststack.worker.worker import Worker

logger = logging.getLogger("hoststack.worker")

#: Exit statuses, for the log.
EXIT_ORPHANED: Final = 3
EXIT_IMPOSSIBLE: Final = 4

#: Descriptors that come with an application: its channel, the rings, two wake-up sockets.
_ENDS: Final = 4
#: A handle is distinct from those of as many sessions of earlier workers of this index.
_GENERATION_SHIFT: Final = 20
_GENERATIONS: Final = 1 << 11


@dataclass(slots=True)
class _Applications:
    """The applications that this worker serves, in order of attachment."""

    worker: Worker
    channel: Channel
    nursery: trio.Nursery
    seal: TicketSeal
    threads: Threads
    accounts: WeakValueDictionary[tuple[int, int], TimeAccount] = field(
        default_factory=WeakValueDictionary
    )
    """By user and process, for as long as one of its applications is served."""

    def serve(self, order: orders.Serve, fds: list[int]) -> None:
        account = TimeAccount(order.uid, order.pid)
        account = self.accounts.setdefault((order.uid, order.pid), account)
        with charging(account):
            application = self._make(order, fds)
        if application is None:
            self._let_go(order)
            return
        application.account = account
        application.namespace = order.namespace
        application.scopes = order.scopes
        application.group = order.group
        self.nursery.start_soon(self._run, application, order)

    def _let_go(self, order: orders.Serve) -> None:
        with contextlib.suppress(ChannelClosedError):
            self.channel.send(orders.encode(orders.LetGo(order.number)))

    def _make(self, order: orders.Serve, fds: list[int]) -> RemoteApplication | None:
        if len(fds) != _ENDS:
            # The kernel discards descriptors that exceed the limit (unix(7)).
            logger.error("too many open files: %s can't be served", order.name)
            for fd in fds:
                os.close(fd)
            return None
        channel, rings, wake_worker, wake_application = fds
        ends = Ends(socket.socket(fileno=channel), rings, wake_worker, wake_application)
        limits = Limits(order.fifo_bytes, order.sessions)
        off_loop = self.threads.share_of((order.uid, order.pid))
        try:
            return RemoteApplication(order.name, ends, limits, self.seal, off_loop)
        except (OSError, ValueError) as error:
            # For example no memory to map its rings. The application sees its channel closed.
            logger.error("%s can't be served: %s", order.name, error)
            return None

    async def _run(self, application: RemoteApplication, order: orders.Serve) -> None:
        with charging(application.account):
            self.worker.attach(application)
        logger.info("%s attached", application.name)
        try:
            await application.run()
        finally:
            logger.info("%s left: %s", application.name, application.gone)
            with charging(application.account):
                self.worker.detach(application)
            self._let_go(order)


async def _serve(
    channel: Channel, worker: Worker, ready: orders.Ready, start: orders.Start
) -> None:
    """Carry out the supervisor's orders until it says to end, or is gone."""
    threads = Threads()
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        nursery.start_soon(channel.run)
        nursery.start_soon(trim_heap)
        async with trio.open_nursery() as served:
            side = WorkerSide(worker, served, index=start.index, workers=start.workers)
            applications = _Applications(worker, channel, served, TicketSeal(start.secret), threads)
            channel.send(orders.encode(ready))
            commands = Commands(channel, side, served)
            drain = await _obey(channel, applications, commands)
            served.start_soon(_obey, channel, applications, commands)
            await _drain(worker, drain.seconds)
            worker.close(0, "the server ends")
            served.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    await threads.wait_ended()


async def _obey(channel: Channel, applications: _Applications, commands: Commands) -> orders.Drain:
    """Carry out orders; raises ChannelClosedError when the supervisor is gone."""
    while True:
        # One at a time: each may bring descriptors, and those of dead applications are closed
        # in between.
        data, fds = await channel.receive_one()
        match orders.decode_order(data):
            case orders.Serve() as order:
                applications.serve(order, fds)
            case orders.Ping(number=number):
                applications.nursery.start_soon(_answer, channel, applications.worker, number)
            case orders.Relink() as order:
                _relink(applications.worker.link, order, fds)
            case orders.Drain() as order:
                return order
            case orders.Command() as order:
                commands.start(order)
            case orders.CancelCommand() as order:
                commands.cancel(order)
            case orders.Start():
                raise AssertionError("a worker is started once")


async def _answer(channel: Channel, worker: Worker, number: int) -> None:
    await worker.wait_turn()
    with contextlib.suppress(ChannelClosedError):  # without its supervisor this process ends anyway
        channel.send(orders.encode(orders.Pong(number)))


def _relink(link: Link, order: orders.Relink, fds: list[int]) -> None:
    assert isinstance(link, AfXdpLink)
    try:
        link.adopt_again(order.description, fds)
    except LinkError as error:
        # It has disappeared again: another order follows when it is back.
        logger.warning("the interface can't be used again yet: %s", error.strerror)


async def _drain(worker: Worker, seconds: float) -> None:
    """Accept no more connections, and wait until the open ones end."""
    worker.layer.stop_listening()
    with trio.move_on_after(seconds):
        await worker.wait_idle()


def _make_link(start: orders.Start, fds: list[int], ports: PortClient) -> Link:
    if start.link == "af_xdp":
        return AfXdpLink.adopt(start.description, fds, ports)
    return UdpLink(ports=ports)


async def run_worker(fd: int, on_unprivileged: Callable[[], None]) -> None:
    """Run a worker, without privileges from `on_unprivileged` on; raises ChannelClosedError or
    OrphanedError when the supervisor is gone."""
    end = socket.socket(fileno=fd)
    channel = Channel(end, takes_fds=True)
    data, fds = await channel.receive_one()
    start = orders.decode_order(data)
    assert isinstance(start, orders.Start)
    try:
        die_with_maker(end)
        link, worker = _set_up(start, fds)
        die_with_maker(end)
    except (LinkError, ValueError, PrivilegeError) as error:
        logger.error("%s", error)
        sys.exit(EXIT_IMPOSSIBLE)
    on_unprivileged()
    try:
        ready = orders.Ready(link.name, "", worker.layer.engine.name)
        await _serve(channel, worker, ready, start)
    finally:
        link.close()


def _set_up(start: orders.Start, fds: list[int]) -> tuple[Link, Worker]:
    """Make the link and the worker; raises LinkError and ValueError if that is not possible."""
    ports_fd, *link_fds = fds
    ports = PortClient(socket.socket(fileno=ports_fd))
    link = _make_link(start, link_fds, ports)
    become(start.user)
    cid = CidConfig(host=start.host, worker=start.index, rotation=start.rotation)
    make_engine = engine_maker(start.engine, link, cid, start.secret)
    worker = Worker(
        link,
        make_engine,
        start.index,
        spin_us=start.busy_poll_us,
        first_session=(start.generation % _GENERATIONS) << _GENERATION_SHIFT,
    )
    used = worker.layer.ports
    used.most = min(used.most, most_ports(start.workers if start.link == "udp" else 1))
    for id, secret in start.namespaces.items():
        worker.layer.namespaces.add(id, secret)
    return link, worker


def main() -> None:
    """Run `python -m hoststack.daemon.worker_main FD STACKS`, as the supervisor starts it."""
    fd, stacks = map(int, sys.argv[1:])
    close_others({fd, stacks})
    # The supervisor reads from here what this process was doing when it crashed or was aborted.
    faulthandler.enable(file=stacks)
    # SIGINT of a terminal goes to all of its processes, but the supervisor decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log_to_stderr() as log:
        raise_open_files()
        # While it may still read the files: later it runs as another user.
        load_everything()
        logging.getLogger("quic").setLevel(logging.WARNING)  # aioquic logs a line per handshake
        try:
            trio.run(run_worker, fd, log.start)
        except* (ChannelClosedError, OrphanedError):
            sys.exit(EXIT_ORPHANED)


if __name__ == "__main__":
    main()
