"""The application's side of the boundary: sends requests, and dispatches notices and events."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Any

import trio

from hoststack.api.connection import Connection
from hoststack.api.errors import ConnectionClosedError
from hoststack.api.listener import Listener
from hoststack.api.stream import ReceiveStream, SendStream, Stream, StreamBase
from hoststack.boundary import messages as m
from hoststack.boundary.application import ApplicationSide

Reply = m.Failed | m.Statistics | m.Migrated | Listener | Connection | Stream | SendStream


class _Call:
    """A request that waits for its reply."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply: Reply | None = None


class Router:
    """The objects of one application by handle, and its pending calls by token."""

    def __init__(self, application: ApplicationSide) -> None:
        self._application = application
        self._tokens = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._listeners: dict[int, Listener] = {}
        self._connections: dict[int, Connection] = {}
        self._streams: dict[int, SendStream | ReceiveStream] = {}
        self._early_datagrams: dict[int, m.DatagramsReady] = {}
        """For connections whose own notice has not arrived yet."""
        self._notices: dict[type, Callable[[Any], None]] = {
            m.Failed: self._on_failed,
            m.Statistics: self._on_statistics,
            m.Listening: self._on_listening,
            m.Connected: self._on_connected,
            m.StreamReady: self._on_stream_ready,
            m.Accepted: self._on_accepted,
            m.ListenerLost: self._on_listener_lost,
            m.HandshakeDone: self._on_handshake_done,
            m.StreamAccepted: self._on_stream_accepted,
            m.DatagramsReady: self._on_datagrams_ready,
            m.PathChanged: self._on_path_changed,
            m.Migrated: self._on_migrated,
            m.Closed: self._on_closed,
            m.StreamReset: self._on_stream_reset,
            m.StreamStopped: self._on_stream_stopped,
            m.SendFinished: self._on_send_finished,
        }
        application.wake_application = self._collect

    # --- out ---

    async def call(self, make_request: Callable[[int], m.Request]) -> Reply:
        """Send a request and wait for its reply; if cancelled, cancel the request."""
        token = next(self._tokens)
        call = self._calls[token] = _Call()
        self._application.request(make_request(token))
        try:
            await call.done.wait()
        except trio.Cancelled:
            self._application.request(m.Cancel(token))
            self._give_up(call.reply)
            raise
        finally:
            del self._calls[token]
        assert call.reply is not None
        return call.reply

    def post(self, request: m.Request) -> None:
        """Send a request that has no reply."""
        self._application.request(request)

    def signal_sent(self, handle: int) -> None:
        """Signal the worker that a tx FIFO has data."""
        self._application.signal_sent(handle)

    def signal_consumed(self, handle: int, is_urgent: bool) -> None:
        """Signal the worker that an rx FIFO has more room; urgent if a peer may wait for that."""
        self._application.signal_consumed(handle, is_urgent)

    def signal_taken(self, handle: int) -> None:
        """Signal the worker that the program accepted a connection or stream of a peer."""
        self._application.signal_taken(handle)

    def forget_listener(self, handle: int) -> None:
        self._listeners.pop(handle, None)

    def close_listeners(self) -> None:
        """Close all listeners before the stack ends, so that callers in `accept` return."""
        for listener in list(self._listeners.values()):
            listener.close()

    def forget_stream(self, stream: StreamBase) -> None:
        """Stop dispatching events to a stream."""
        # A later stream may have the handle of one that ended long ago.
        if self._streams.get(stream.handle) is stream:
            del self._streams[stream.handle]
        stream.connection._streams.pop(stream.handle, None)

    # --- in ---

    def _collect(self) -> None:
        for notice in self._application.take_notices():
            try:
                self._notices[type(notice)](notice)
            except Exception as error:
                self._application.on_bad_notice(notice, error)
        for handle, code, _ in self._application.take_events():
            stream = self._streams.get(handle)
            if stream is not None:
                stream._on_event(code)
            elif handle in self._connections:
                self._connections[handle]._datagrams.on_event(code)

    def _reply(self, token: int, reply: Reply) -> None:
        call = self._calls.get(token)
        if call is None:
            # Its caller was cancelled while the reply was on its way.
            self._give_up(reply)
        else:
            call.reply = reply
            call.done.set()

    def _give_up(self, reply: Reply | None) -> None:
        """Close the result of a call whose caller was cancelled."""
        if isinstance(reply, Listener):
            reply.close()
        elif isinstance(reply, Connection):
            reply.close_now()
        elif isinstance(reply, SendStream):
            reply.reset()
            if isinstance(reply, Stream):
                reply.stop_sending()

    def _on_failed(self, notice: m.Failed) -> None:
        self._reply(notice.token, notice)

    def _on_statistics(self, notice: m.Statistics) -> None:
        self._reply(notice.token, notice)

    def _on_migrated(self, notice: m.Migrated) -> None:
        self._reply(notice.token, notice)

    def _on_listening(self, notice: m.Listening) -> None:
        listener = Listener(self, notice.handle, notice.local)
        self._listeners[notice.handle] = listener
        self._reply(notice.token, listener)

    def _on_connected(self, notice: m.Connected) -> None:
        self._reply(notice.token, self._add_connection(notice))

    def _on_accepted(self, notice: m.Accepted) -> None:
        connection = self._add_connection(notice)
        listener = self._listeners.get(notice.listener)
        if listener is None:
            connection._take()
            connection.close_now()
        else:
            listener._on_accepted(connection)

    def _on_listener_lost(self, notice: m.ListenerLost) -> None:
        listener = self._listeners.pop(notice.handle, None)
        if listener is not None:
            listener._on_lost(notice.text)

    def _on_handshake_done(self, notice: m.HandshakeDone) -> None:
        connection = self._connections.get(notice.handle)
        if connection is not None:
            connection._on_handshake_done(notice)

    def _add_connection(self, notice: m.Connected | m.Accepted) -> Connection:
        connection = Connection(self, notice)
        self._connections[notice.handle] = connection
        early = self._early_datagrams.pop(notice.handle, None)
        if early is not None:
            connection._datagrams.on_ready(early)
        return connection

    def _on_stream_ready(self, notice: m.StreamReady) -> None:
        connection = self._connections.get(notice.connection)
        if connection is None:
            text = "the worker reported a stream of an unknown connection"
            self._reply(notice.token, m.Failed(notice.token, errno.EPROTO, text))
            return
        stream: Stream | SendStream
        if notice.rx is None:
            stream = SendStream(self, connection, notice)
        else:
            stream = Stream(self, connection, notice)
        self._add_stream(connection, stream)
        self._reply(notice.token, stream)

    def _on_stream_accepted(self, notice: m.StreamAccepted) -> None:
        connection = self._connections.get(notice.connection)
        if connection is None:
            return
        stream: Stream | ReceiveStream
        if notice.tx is None:
            stream = ReceiveStream(self, connection, notice)
        else:
            stream = Stream(self, connection, notice)
        self._add_stream(connection, stream)
        connection._on_stream_accepted(stream)

    def _add_stream(self, connection: Connection, stream: SendStream | ReceiveStream) -> None:
        self._streams[stream.handle] = stream
        connection._streams[stream.handle] = stream

    def _on_datagrams_ready(self, notice: m.DatagramsReady) -> None:
        connection = self._connections.get(notice.handle)
        if connection is None:
            self._early_datagrams[notice.handle] = notice
        else:
            connection._datagrams.on_ready(notice)
        self._application.signal_noted(notice.handle)

    def _on_path_changed(self, notice: m.PathChanged) -> None:
        connection = self._connections.get(notice.handle)
        if connection is not None:
            connection._on_path_changed(notice)
        self._application.signal_noted(notice.handle)

    def _on_closed(self, notice: m.Closed) -> None:
        self._early_datagrams.pop(notice.handle, None)
        connection = self._connections.pop(notice.handle, None)
        if connection is None:
            return
        for stream in list(connection._streams.values()):
            self.forget_stream(stream)
            stream._on_broken(ConnectionClosedError(notice.info))
        connection._on_closed(notice.info)

    def _on_stream_reset(self, notice: m.StreamReset) -> None:
        stream = self._streams.get(notice.handle)
        if isinstance(stream, ReceiveStream):
            stream._on_reset(notice.code)

    def _on_stream_stopped(self, notice: m.StreamStopped) -> None:
        stream = self._streams.get(notice.handle)
        if isinstance(stream, SendStream):
            stream._on_stopped(notice.code)

    def _on_send_finished(self, notice: m.SendFinished) -> None:
        stream = self._streams.get(notice.handle)
        if isinstance(stream, SendStream):
            stream._on_send_finished()
            stream.connection._on_send_finished()
