"""The session table: handles, states, owners, and indices that come back late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hoststack.boundary.application import Application
from hoststack.boundary.handle import index_of, make_handle, worker_of
from hoststack.session.session import (
    TRANSITIONS,
    ConnectionSession,
    ListenerSession,
    Session,
    SessionState,
    SessionTable,
    chain,
)
from hoststack.session.streams import Streams


def context() -> Any:
    return SimpleNamespace(session=-1)


def attached(table: SessionTable, name: str = "a") -> Application:
    """An application whose sessions are counted."""
    application = Application(name)
    Streams(0, 0, table, lambda _: pytest.fail("it has no connection")).attach(application)
    return application


def listener(application: Application) -> ListenerSession:
    return ListenerSession(application, SessionState.LISTENING, context())


def test_a_handle_is_worker_and_index() -> None:
    handle = make_handle(5, 7)
    assert handle == 5 << 32 | 7
    assert (worker_of(handle), index_of(handle)) == (5, 7)


def test_a_session_is_found_by_its_handle_alone() -> None:
    table = SessionTable(worker=3)
    session = table.add(listener(attached(table)))
    assert worker_of(session.handle) == 3
    assert session.context.session == session.handle
    assert table.get(session.handle) is session
    for other in (-1, session.handle + 1, make_handle(2, index_of(session.handle)), 1 << 70):
        assert table.get(other) is None
    table.remove(session)
    assert table.get(session.handle) is None
    assert session.context.session == -1
    assert not len(table)


def test_only_its_owner_and_its_kind_find_it() -> None:
    table = SessionTable(0)
    owner = attached(table, "owner")
    session = table.add(listener(owner))
    assert table.owned(owner, session.handle, ListenerSession) is session
    assert table.owned(Application("other"), session.handle, ListenerSession) is None
    assert table.owned(owner, session.handle, ConnectionSession) is None


def test_an_index_comes_back_late() -> None:
    table = SessionTable(0)
    application = attached(table)
    first = table.add(listener(application)).handle
    table.remove(table._by_index[index_of(first)])
    seen = set()
    for _ in range(SessionTable.REUSE_DISTANCE):
        session = table.add(listener(application))
        seen.add(session.handle)
        table.remove(session)
    assert first not in seen
    assert table.add(listener(application)).handle == first


def test_the_chain_of_a_connection() -> None:
    table = SessionTable(0)
    application = attached(table)
    bottom = table.add(listener(application))
    connection = table.add(ConnectionSession(application, SessionState.READY, context(), bottom))
    assert list(chain(connection)) == [connection, bottom]
    assert list(chain(bottom)) == [bottom]
    assert set(table) == {connection, bottom}
    assert application.sessions_in_use == 2
    table.remove(connection)
    assert application.sessions_in_use == 2  # its notice is still there
    table.take(application, connection.handle)
    assert application.sessions_in_use == 1


@pytest.mark.parametrize("before", SessionState)
@pytest.mark.parametrize("after", SessionState)
def test_states_change_as_the_table_says(before: SessionState, after: SessionState) -> None:
    session = Session(Application("a"), before)
    if after in TRANSITIONS[before]:
        session.move_to(after)
        assert session.state is after
    else:
        with pytest.raises(AssertionError):
            session.move_to(after)
