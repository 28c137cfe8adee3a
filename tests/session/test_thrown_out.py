"""An application that a worker serves no more hears of it, though the worker lives."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Connection, TlsConfig
from hoststack.api.daemon_client import THROWN_OUT
from hoststack.boundary import attaching
from hoststack.boundary.channel import Channel
from hoststack.boundary.remote_application import Ends, Limits, RemoteApplication
from hoststack.boundary.rings import shared_ends
from hoststack.link.memory import MemoryNetwork
from tests.support.attached import SEAL, inline

HOST = "10.0.0.1"
URI = f"quic://{HOST}:4433"
TLS = TlsConfig.self_signed([HOST])


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_listener_is_lost_unless_the_worker_is(tmp_path: Path, *, is_lost: bool) -> None:
    """A worker that died has a successor, which the daemon offers; one that hung up has none."""

    async def main() -> None:
        path = tmp_path / "api"
        async with (
            hoststack.open_stack(link=MemoryNetwork().link(HOST)) as embedded,
            trio.open_nursery() as nursery,
        ):
            listening = await nursery.start(admit, path, embedded)
            async with hoststack.attach(path) as stack:
                daemon, first = await listening.receive()
                listener = await stack.listen(URI, tls=TLS, alpn=["test"])
                accepting: list[Any] = []
                nursery.start_soon(accept, listener, accepting)
                await trio.sleep(1)
                first.leave("a fault of ours")
                if not is_lost:
                    await trio.sleep(100)
                    assert not accepting  # the daemon may be slow to say which of the two it is
                    daemon.send(attaching.encode(attaching.WorkerLeft(0)))
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


Told = tuple[Channel, RemoteApplication]


async def admit(
    path: Path,
    stack: hoststack.EmbeddedStack,
    *,
    task_status: trio.TaskStatus[trio.MemoryReceiveChannel[Told]],
) -> None:
    """Be a daemon of one worker, for one application; says what it has of that."""
    told, hears = trio.open_memory_channel[Told](1)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        await listening.bind(str(path))
        listening.listen()
        task_status.started(hears)
        accepted, _ = await listening.accept()
    daemon = Channel(socket.socket(fileno=accepted.detach()))
    await daemon.receive_one()
    daemon.send(attaching.encode(attaching.Attached(1, "memory", "", stack.engine_name)))
    application = offer(daemon)
    await told.send((daemon, application))
    await serve(stack, application)


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
