"""Notices about a live connection: changes of its path and datagram size, and statistics.

A peer can cause such changes at any rate. The application gets one notice of each kind, and the
next only after it has read the last (EventCode.NOTED).
"""

from __future__ import annotations

import errno

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.session.session import ConnectionSession


def tell_news(session: ConnectionSession, *, at_once: bool = False) -> None:
    """Notify the application of changes, unless it has not read the last notice yet.

    `at_once` is for an application that has just read it, or that asked for the change.
    """
    if session.is_unnoted and not at_once:
        return
    context, limit_bytes = session.context, session.new_datagram_limit
    session.is_unnoted = False
    if session.has_new_path:
        session.has_new_path, session.is_unnoted = False, True
        session.application.notify(m.PathChanged(session.handle, context.local, context.remote))
    if limit_bytes is not None and context.rx is not None and context.tx is not None:
        session.new_datagram_limit, session.is_unnoted = None, True
        context.tx.arm_read()
        session.application.notify(
            m.DatagramsReady(session.handle, context.rx, context.tx, limit_bytes)
        )


def tell_statistics(
    application: Application, session: ConnectionSession | None, request: m.GetStatistics
) -> None:
    """Answer a request for a connection's statistics."""
    if session is None:
        application.notify(m.Failed(request.token, errno.ENOTCONN, "the connection is closed"))
    else:
        application.notify(m.Statistics(request.token, session.context.statistics()))
