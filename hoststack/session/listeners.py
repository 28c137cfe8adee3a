"""QUIC listeners: on the network, and within each namespace.

An endpoint has one listening context and one receiver, or several receivers if members of an
application group listen on it together; these get its connections round robin.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from weakref import WeakKeyDictionary, ref

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.link.base import Endpoint, Link, LinkError
from hoststack.link.zones import on_interface
from hoststack.quic.seam import (
    ConnectionContext,
    Credentials,
    Engine,
    ListenerContext,
    QuicConfig,
    check_protocols,
    preferred_endpoints,
)
from hoststack.session.connector import credentials_for, error_text
from hoststack.session.ports import PortTable, check_size
from hoststack.session.session import ListenerSession, SessionState, SessionTable
from hoststack.transport.local.cut_through import CutListener
from hoststack.transport.local.ports import LocalPorts


@dataclass(slots=True, eq=False)
class _Point:
    """A listening endpoint."""

    context: ListenerContext
    application: Application
    """The first application that listened; only others of its group may join."""
    receivers: deque[ListenerSession] = field(default_factory=deque)

    def next_receiver(self) -> ListenerSession:
        """Return the next receiver whose queue is not full; any one if all are full."""
        for _ in self.receivers:
            self.receivers.rotate(-1)
            if not self.receivers[-1].is_full:
                break
        return self.receivers[-1]

    def may_be_joined_by(self, application: Application) -> bool:
        group = self.application.group
        return group is not None and group == application.group


class Listeners:
    """The listeners of one worker."""

    def __init__(
        self,
        link: Link,
        engine: Engine,
        sessions: SessionTable,
        ports: PortTable,
        local_ports: LocalPorts,
    ) -> None:
        self._link = link
        self._engine = engine
        self._sessions = sessions
        self._ports = ports
        self._local_ports = local_ports
        self._network: dict[Endpoint, _Point] = {}
        self._local: dict[tuple[str, Endpoint], _Point] = {}
        self._by_context: dict[ListenerContext, _Point] = {}
        self._by_session: dict[ListenerSession, list[_Point]] = {}
        # Weak in both directions: a connection may outlive the application that listened.
        self._chosen: WeakKeyDictionary[ConnectionContext, ref[ListenerSession]] = (
            WeakKeyDictionary()
        )

    def listen(
        self,
        application: Application,
        request: m.Listen,
        config: QuicConfig,
        credentials: Credentials | None,
    ) -> None:
        """Listen in each scope of the application, or join its group there. Without credentials,
        load them."""
        local = Endpoint(*request.local)
        points: list[_Point] = []
        try:
            if "global" in application.scopes:
                local = Endpoint(on_interface(local.host, self._link.interface_name), local.port)
                points.append(self._network_point(application, request, config, local, credentials))
                # Use the port that was picked for port 0 in local scope as well.
                local = Endpoint(*points[0].context.local)
            if "local" in application.scopes:
                points.append(self._local_point(application, request, config, local))
        except (LinkError, ValueError) as error:
            for point in points:
                self._close_if_unused(point)
            number = error.errno if isinstance(error, LinkError) else errno.EINVAL
            application.notify(m.Failed(request.token, number or 0, error_text(error)))
            return
        session = self._sessions.add(
            ListenerSession(application, SessionState.LISTENING, points[0].context)
        )
        for point in points:
            point.receivers.append(session)
            point.context.session = session.handle
        self._by_session[session] = points
        local = Endpoint(*session.context.local)
        application.notify(m.Listening(request.token, session.handle, local))

    def _network_point(
        self,
        application: Application,
        request: m.Listen,
        config: QuicConfig,
        local: Endpoint,
        credentials: Credentials | None,
    ) -> _Point:
        found = self._network.get(local)
        if found is not None and found.may_be_joined_by(application):
            return found
        local = self._ports.open_for_listener(local, application.process)
        try:
            check_size(self._link.max_datagram_bytes_of(local), f"the interface of {local.host}")
            self._ports.open_beside(local, preferred_endpoints(config), application.process)
            credentials = credentials or credentials_for(self._engine, request, is_server=True)
            context = self._engine.listen(local, credentials, config)
        except (LinkError, ValueError):
            self._ports.close_listener(local)
            raise
        point = self._network[local] = self._by_context[context] = _Point(context, application)
        return point

    def _local_point(
        self, application: Application, request: m.Listen, config: QuicConfig, local: Endpoint
    ) -> _Point:
        namespace = application.namespace
        found = self._local.get((namespace, local))
        if found is not None and found.may_be_joined_by(application):
            return found
        if found is not None:
            raise LinkError(
                errno.EADDRINUSE,
                f"{local.host} port {local.port} has a listener in namespace {namespace!r} already",
            )
        self.check_protocols(request.alpn, config)
        if not local.port:
            local = Endpoint(local.host, self._local_ports.take(namespace, application.process))
        context = CutListener(local, request.alpn, config)
        point = self._local[namespace, local] = _Point(context, application)
        self._by_context[context] = point
        return point

    def replace_tls(
        self,
        application: Application,
        session: ListenerSession,
        request: m.ReplaceTls,
        credentials: Credentials | None,
    ) -> None:
        """Use other credentials in an endpoint's next handshakes, also for its other receivers.
        Without credentials, load them."""
        try:
            loaded = credentials or credentials_for(self._engine, request, is_server=True)
            for point in self._by_session[session]:
                if not isinstance(point.context, CutListener):
                    self._engine.replace_tls(point.context, loaded)
        except (ValueError, MemoryError) as error:
            number = errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL
            application.notify(m.Failed(request.token, number, error_text(error)))
        else:
            application.notify(m.Done(request.token))

    def unlisten(self, session: ListenerSession) -> None:
        """Remove a receiver; close the endpoint after the last one."""
        self._sessions.remove(session)
        for point in self._by_session.pop(session):
            point.receivers.remove(session)
            if point.receivers:
                # The context must refer to a session that exists.
                point.context.session = point.receivers[0].handle
            self._close_if_unused(point)

    def _close_if_unused(self, point: _Point) -> None:
        if point.receivers:
            return
        del self._by_context[point.context]
        local = Endpoint(*point.context.local)
        if isinstance(point.context, CutListener):
            namespace = point.application.namespace
            del self._local[namespace, local]
            self._local_ports.give_back(namespace, local.port)
        else:
            del self._network[local]
            self._engine.unlisten(point.context)
            self._ports.close_listener(local)

    def check_protocols(self, alpn: Sequence[str], config: QuicConfig) -> None:
        """Raise ValueError for protocols that the engine can't offer. Cut-through has the same
        limits as the network."""
        check_protocols(alpn, config, self._engine.name)

    def receiver(self, connection: ConnectionContext) -> ListenerSession | None:
        """Return the receiver of an incoming connection, the same one each time; None if all are
        gone."""
        found = self._chosen.get(connection)
        chosen = None if found is None else found()
        if chosen in self._by_session:
            return chosen
        point = self._by_context.get(connection.listener) if connection.listener else None
        if point is None:
            return None
        receiver = point.next_receiver()
        self._chosen[connection] = ref(receiver)
        return receiver

    # --- local scope -------------------------------------------------------------------------

    def find_local(self, application: Application, remote: Endpoint) -> CutListener | None:
        """Return the listener in an application's namespace for a connect to `remote`.

        A listener on all addresses matches only if `remote` is this machine.
        """
        hosts = [remote.host]
        if self._is_this_machine(remote):
            hosts.append("0.0.0.0" if ip_address(remote.host).version == 4 else "::")
        for host in hosts:
            point = self._local.get((application.namespace, Endpoint(host, remote.port)))
            if point is not None and isinstance(point.context, CutListener):
                return point.context
        return None

    def _is_this_machine(self, remote: Endpoint) -> bool:
        address = ip_address(remote.host)
        if address.is_loopback or address.is_unspecified:
            return True
        try:
            return ip_address(self._link.local_endpoint_for(remote).host) == address
        except LinkError:
            return False
