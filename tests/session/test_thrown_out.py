"""An application that a worker serves no more hears of it, though the worker lives."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, TlsConfig
from hoststack.api.attach import _Daemon
from hoststack.api.daemon_client import THROWN_OUT
from hoststack.api.in_trio import TrioRouter
from hoststack.api.stack import Stack
from hoststack.boundary import attaching
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.boundary.channel import Channel
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.rings import shared_ends
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import SEAL, inline

HOST = "10.0.0.1"
URI = f"quic://{HOST}:4433"
TLS = TlsConfig.self_signed([HOST])


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_listener_is_lost_unless_the_worker_is(*, is_lost: bool) -> None:
    """A worker that died has a successor, which the daemon offers; one that hung up has none."""

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon = Channel(theirs)
        async with (
            hoststack.open_stack(link=MemoryNetwork().link(HOST)) as embedded,
            trio.open_nursery() as nursery,
        ):
            first = offer(daemon)
            nursery.start_soon(serve, embedded, first)
            workers = AttachedWorkers(embedded.engine_name)
            attached = _Daemon(Channel(ours, takes_fds=True), nursery, workers, "test")
            await nursery.start(attached.run, 1)
            stack = Stack(
                TrioRouter(workers), None, link_name="", link_reason="", engine_name="native"
            )
            listener = await stack.listen(URI, tls=TLS, alpn=["test"])
            accepting: list[Any] = []
            nursery.start_soon(accept, listener, accepting)
            await trio.sleep(1)
            first.leave("a fault of ours")
            if is_lost:
                await trio.sleep(1)
                daemon.send(attaching.encode(attaching.WorkerLost(0)))
                nursery.start_soon(serve, embedded, offer(daemon))
                await trio.sleep(100)
                assert not accepting
                async with embedded.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]):
                    await trio.sleep(1)
                    assert isinstance(accepting[0], Connection)
            else:
                await trio.sleep(100)
                assert isinstance(accepting[0], trio.BrokenResourceError)
                assert THROWN_OUT in str(accepting[0])
            daemon.close()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def offer(daemon: Channel) -> RemoteApplication:
    """A worker, as a daemon's supervisor offers it."""
    with ExitStack() as made:
        the_workers, the_applications = shared_ends("test", made)
        daemon.send(attaching.encode(attaching.WorkerOffered(0)), the_applications)
        channel, *others = (os.dup(fd) for fd in the_workers)
    ends = Ends(socket.socket(fileno=channel), *others)
    return RemoteApplication("test", ends, Limits(), SEAL, inline)


async def serve(stack: hoststack.EmbeddedStack, application: RemoteApplication) -> None:
    stack._worker.attach(application)
    try:
        await application.run()
    finally:
        stack._worker.detach(application)


async def accept(listener: hoststack.Listener, accepting: list[Any]) -> None:
    try:
        accepting.append(await listener.accept())
    except trio.BrokenResourceError as error:
        accepting.append(error)
