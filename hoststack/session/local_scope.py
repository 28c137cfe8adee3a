"""Connecting in an application's scopes: within the stack first, else over the network."""

from __future__ import annotations

import errno

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.link.base import Endpoint, LinkError
from hoststack.quic.seam import Credentials, QuicConfig
from hoststack.session.connector import Connector, error_text
from hoststack.session.listeners import Listeners
from hoststack.session.rules import Rules
from hoststack.session.session import ConnectionSession
from hoststack.transport.local.cut_through import CutConnection, CutListener, CutThrough
from hoststack.transport.local.ports import LocalPorts


class LocalScope:
    """Setup of connections of local scope, and the ports that they hold."""

    def __init__(
        self,
        cut_through: CutThrough,
        listeners: Listeners,
        connector: Connector,
        ports: LocalPorts,
        rules: Rules,
    ) -> None:
        self._cut_through = cut_through
        self._listeners = listeners
        self._connector = connector
        self._ports = ports
        self._rules = rules

    def start(
        self,
        application: Application,
        request: m.Connect,
        config: QuicConfig,
        credentials: Credentials | None,
    ) -> None:
        """Connect to another application of the namespace if one listens, else to the network."""
        remote = Endpoint(*request.remote)
        listener = None
        if "local" in application.scopes:
            listener = self._listeners.find_local(application, remote)
        if listener is not None:
            self._connect(application, request, config, listener)
        elif "global" in application.scopes:
            self._connector.start(application, request, config, credentials)
        else:
            text = (
                f"no application listens on {remote.host} port {remote.port} in namespace "
                f"{application.namespace!r}, and this application has no global scope"
            )
            application.notify(m.Failed(request.token, errno.ECONNREFUSED, text))

    def _connect(
        self,
        application: Application,
        request: m.Connect,
        config: QuicConfig,
        listener: CutListener,
    ) -> None:
        namespace, remote = application.namespace, Endpoint(*request.remote)
        try:
            self._listeners.check_protocols(request.alpn, config)
            # Both are on this machine.
            local = Endpoint(remote.host, self._ports.take(namespace, application.process))
        except (LinkError, ValueError) as error:
            number = error.errno if isinstance(error, LinkError) else errno.EINVAL
            application.notify(m.Failed(request.token, number or 0, error_text(error)))
            return
        # It is both an outgoing and an incoming connection.
        denial = self._rules.denial("local", namespace, local, remote) or self._rules.denial(
            "local", namespace, remote, local
        )
        if denial is not None:
            self._ports.give_back(namespace, local.port)
            application.notify(m.Failed(request.token, errno.EACCES, denial))
            return
        context = self._cut_through.connect(listener, local, remote, request.alpn, config)
        self._connector.began(application, request, context)

    def on_closed(self, session: ConnectionSession, context: CutConnection) -> None:
        """Free the FIFOs and the port of a closed connection."""
        context.let_go()
        if context.listener is None:
            self._ports.give_back(session.application.namespace, context.local[1])
