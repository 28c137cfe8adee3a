"""Tickets that go to another process and back: sealed."""

from __future__ import annotations

from typing import Any

import pytest

from hoststack.boundary import messages as m
from hoststack.boundary.resumption import RelayedSessions, TicketSeal
from hoststack.quic.session_cache import Ticket

TICKET = Ticket(b"session", b"parameters", "h3", 2e9)


def test_what_was_sealed_is_opened_by_whoever_has_the_secret() -> None:
    sealed = TicketSeal(b"secret").close(TICKET)
    assert sealed.session != TICKET.session
    assert TicketSeal(b"secret").open(sealed) == TICKET
    assert TicketSeal(b"another").open(sealed) is None


@pytest.mark.parametrize(
    "change",
    [
        {"session": b""},
        {"session": bytes(32) + b"session"},
        {"parameters": b"parameterz"},
        {"parameters": b""},
        {"alpn": None},
        {"alpn": "h4"},
    ],
)
def test_a_ticket_that_was_changed_is_none(change: dict[str, Any]) -> None:
    seal = TicketSeal(b"secret")
    assert seal.open(seal.close(TICKET)._replace(**change)) is None


def test_what_a_connection_learns_is_told_in_a_form_that_can_be_used_again() -> None:
    told: list[m.Known] = []
    seal = TicketSeal(b"secret")
    sessions = RelayedSessions(m.Known(None, b""), seal, told.append)
    assert sessions.take() is None
    assert sessions.take_token() == b""
    sessions.keep(b"session", b"", None, 60)
    sessions.keep_token(b"token")
    (ticket, _), (none, token) = told
    assert (none, token) == (None, b"token")
    again = RelayedSessions(m.Known(ticket, token), seal, told.append)
    found = again.take()
    assert found is not None
    assert (found.session, found.parameters) == (b"session", b"")
    assert again.take() is None
    assert again.take_token() == b"token"


def test_a_ticket_too_large_for_a_message_is_not_told() -> None:
    told: list[m.Known] = []
    RelayedSessions(m.Known(None, b""), TicketSeal(b"s"), told.append).keep(
        bytes(1 << 16), b"", None, 60
    )
    assert told == []
