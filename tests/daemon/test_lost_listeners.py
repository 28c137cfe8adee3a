"""A port that somebody else takes before a fresh worker can have it again."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest
import trio

import hoststack
from hoststack import vcl
from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with run_daemon() as running:
        yield running


def take_port_of_dead_worker(daemon: Daemon, port: int) -> socket.socket:
    """Kills it, and has the port before another one is up."""
    pidfd = os.pidfd_open(daemon.worker_pid(0))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    taken = socket.socket()
    while True:
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            break
    os.close(pidfd)
    return taken


def test_accept_ends_with_what_the_worker_says(daemon: Daemon) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.attach(daemon.api) as stack:
                listener = await stack.listen("tcp://127.0.0.1:0")
                with take_port_of_dead_worker(daemon, listener.local[1]):
                    with pytest.raises(trio.BrokenResourceError, match=r"gone: .* in use"):
                        await listener.accept()
                    # And again, as for whatever is broken.
                    with pytest.raises(trio.BrokenResourceError):
                        await listener.accept()
                # The application lives on.
                await (await stack.listen("tcp://127.0.0.1:0")).aclose()

    trio.run(main)


def test_vcl_gives_econnreset(daemon: Daemon) -> None:
    config = vcl.VclConfig(api_socket_name=daemon.api, session_timeout_s=PATIENCE_S)
    with vcl.application("test", config), vcl.Session("tcp") as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with take_port_of_dead_worker(daemon, listener.local[1]):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                listener.accept()
            assert caught.value.errno == errno.ECONNRESET
