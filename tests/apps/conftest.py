"""quic_echo on each engine, and in applications of a daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps import echo_process
from tests.daemon.conftest import Daemon, run_daemon


@pytest.fixture
def on_each_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with each engine, in all processes that do not name one."""
    monkeypatch.setattr(echo_process, "stack_words", ["engine", engine])


@pytest.fixture(scope="package")
def daemon() -> Iterator[Daemon]:
    """A daemon with two workers, over udp."""
    with run_daemon("--workers", "2") as running:
        yield running


@pytest.fixture(params=["native", "aioquic", "daemon"])
def on_each_stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with each engine in the processes themselves, and attached to a daemon."""
    if request.param == "daemon":
        words = ["socket-name", request.getfixturevalue("daemon").api]
    else:
        words = ["engine", request.param]
    monkeypatch.setattr(echo_process, "stack_words", words)
    return str(request.param)
