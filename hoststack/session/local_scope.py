"""Connecting as an application's scopes allow it: within the stack first, else to the network."""

from __future__ import annotations

import errno

from hoststack.boundary import messages as m
from hoststack.boundary.application import Application
from hoststack.link.base import Endpoint, LinkError
from hoststack.quic.seam import QuicConfig
from hoststack.session.connector import Connector, error_text
from hoststack.session.listeners import Listeners
from hoststack.session.rules import Rules
from hoststack.session.session import ConnectionSession
from hoststack.transport.local.cut_through import CutConnection, CutListener, CutThrough
from hoststack.transport.local.ports import LocalPorts


class LocalScope:
    """Connections of local scope, until they are there, and what they hold."""

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

    def start(self, application: Application, request: m.Connect, config: QuicConfig) -> None:
        """Connect to another application where one listens in reach, else to the network."""
        remote = Endpoint(*request.remote)
        listener = None
        if "local" in application.scopes:
            listener = self._listeners.find_local(application, remote)
        if listener is not None:
            self._connect(application, request, config, listener)
        elif "global" in application.scopes:
            self._connector.start(application, request, config)
        else:
            text = (
                f"nobody listens on {remote.host} port {remote.port} in namespace "
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
            local = Endpoint(remote.host, self._ports.take(namespace))
        except (LinkError, ValueError) as error:
            number = error.errno if isinstance(error, LinkError) else errno.EINVAL
            application.notify(m.Failed(request.token, number or 0, error_text(error)))
            return
        # The connection is one that is asked for, and one that comes.
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
        """A connection is over."""
        context.let_go()
        if context.listener is None:
            self._ports.give_back(session.application.namespace, context.local[1])
