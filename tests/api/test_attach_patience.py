"""Attaching to a daemon that is slow, stopped, gone or invalid: each is told as what it is."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hoststack.api import daemon_client
from hoststack.api.daemon_client import DaemonClient, hello_of
from hoststack.api.errors import AttachError
from hoststack.boundary import attaching, silence
from hoststack.boundary.scope import DEFAULT_NAMESPACE
from hoststack.boundary.silence import Sample, Silence

HELLO = hello_of("x", DEFAULT_NAMESPACE, "", {"global"}, False)


class Clock:
    """A second passes whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def daemon(tmp_path: Path) -> Callable[..., DaemonClient]:
    """A client of a daemon that answers with these messages, and then stays or closes."""
    held: list[socket.socket] = []

    def connect(*messages: bytes, closes: bool = False) -> DaemonClient:
        path = str(tmp_path / "api")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(path)
        listening.listen()
        client = DaemonClient(path, HELLO, Clock())
        end, _ = listening.accept()
        for message in messages:
            end.send(message)
        held.extend([listening] if closes else [listening, end])
        if closes:
            end.recv(4096)
            end.close()
        return client

    yield connect  # type: ignore[misc]
    for each in held:
        each.close()


def states(monkeypatch: pytest.MonkeyPatch, state: str, ran_s: float = 0.0) -> None:
    """Whatever process: in this state, and so much processor time in each second."""
    count = iter(range(1_000_000))
    monkeypatch.setattr(silence, "sample", lambda pid: Sample(state, next(count) * ran_s, 0.0))


def test_one_that_sleeps_hangs(
    daemon: Callable[..., DaemonClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    states(monkeypatch, "T")
    monkeypatch.setattr(daemon_client, "TICK_S", 0)  # a second by its clock
    client = daemon()
    with pytest.raises(AttachError, match="did not answer in 10 s in which") as caught:
        client.start()
    assert caught.value.errno == errno.ETIMEDOUT
    assert "Restart it, or try again" in str(caught.value)
    client.close()


def test_one_that_gets_no_processor_is_waited_for(
    daemon: Callable[..., DaemonClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    states(monkeypatch, "R")
    client = daemon()
    for _ in range(1000):
        client.check_start()
    client.close()


def test_one_that_waits_for_its_workers_says_so(
    daemon: Callable[..., DaemonClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    states(monkeypatch, "S")
    client = daemon(*[attaching.encode(attaching.Waiting())] * 3)
    for _ in range(9):
        client.check_start()
    client.pump()
    for _ in range(9):
        client.check_start()
    assert not client.has_started
    client.close()


@pytest.mark.parametrize(
    ("messages", "text", "number"),
    [
        ([], "not admitted: the daemon has ended", errno.ECONNRESET),
        ([b"x"], "answer is invalid", errno.EPROTO),
        ([attaching.encode(attaching.Refused(errno.EUSERS, "full"))], "full", errno.EUSERS),
    ],
)
def test_what_happened_is_said(
    daemon: Callable[..., DaemonClient], messages: list[bytes], text: str, number: int
) -> None:
    client = daemon(*messages, closes=True)
    with pytest.raises(AttachError, match=text) as caught:
        client.start()
    assert caught.value.errno == number


def test_a_process_of_another_namespace_is_measured_by_the_clock() -> None:
    measured = Silence(0, Clock())
    for _ in range(3):
        measured.tick()
    assert measured.silent_s == 3


def test_the_peer_is_known() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert silence.peer_pid(ours) == os.getpid()
