"""The fuzz target of messages between processes: some seconds of it, and that it can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hoststack.api.in_trio import TrioRouter
from hoststack.boundary import attaching, codec
from hoststack.boundary.attached_workers import AttachedWorkers
from hoststack.daemon.attach_server import AttachServer
from hoststack.session.migrator import Migrator
from tests.fuzz.messages import FoundError, fuzz

SEED, ROUNDS = 20261130, 30


def test_nothing_is_found() -> None:
    done = fuzz(SEED, ROUNDS)
    # How often depends on the machine's load; that each came about is what matters.
    assert all(done[what] for what in ("thrown out", "given up", "0 answers", "2 answers")), done


def _break_decoder(patch: pytest.MonkeyPatch) -> None:
    """As it was: what msgspec foresees is caught, and nothing else."""

    def decode(decoder: Any, data: bytes) -> Any:
        try:
            return decoder.decode(data)
        except ValueError as error:
            raise attaching.GreetingError(str(error)) from None

    patch.setattr(attaching, "_decode", decode)


def _break_request(patch: pytest.MonkeyPatch) -> None:
    def cancel(self: Migrator, application: Any, request: Any) -> None:
        raise KeyError(request.token)

    patch.setattr(Migrator, "cancel", cancel)


def _break_attaching(patch: pytest.MonkeyPatch) -> None:
    def refuse(self: AttachServer, hello: attaching.Attach) -> None:
        hello.scopes[0]  # type: ignore[index]

    patch.setattr(AttachServer, "_refusal", refuse)


def _break_application(patch: pytest.MonkeyPatch) -> None:
    def stumble(self: AttachedWorkers, notice: Any, error: Exception) -> None:
        raise error

    patch.setattr(AttachedWorkers, "on_bad_notice", stumble)
    patch.setattr(TrioRouter, "_on_closed", lambda self, notice: self._connections[notice.handle])


def _break_notices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "fault_text", lambda error: error.args[3])


@pytest.mark.parametrize(
    "plant",
    [_break_decoder, _break_request, _break_attaching, _break_application, _break_notices],
    ids=lambda plant: plant.__name__,
)
def test_a_fault_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((FoundError, ExceptionGroup, KeyError)):
        fuzz(SEED, ROUNDS)
