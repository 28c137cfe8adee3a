"""quic_echo on each engine."""

from __future__ import annotations

import pytest

from tests.apps import echo_process


@pytest.fixture
def on_each_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with each engine, in all processes that do not name one."""
    monkeypatch.setattr(echo_process, "default_engine", engine)
