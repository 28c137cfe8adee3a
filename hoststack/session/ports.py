"""Which local UDP ports the sessions of a worker use, and when they can be given back.

A listener holds its port, and so does every connection that came in on it: a port goes back to
the link when the last of them is gone. Connections of ours share one port for each local address,
since connection IDs tell them apart; it stays as long as the stack does.
"""

from __future__ import annotations

import errno

from hoststack.link.base import Endpoint, Link, LinkError


class PortTable:
    """Ports in use over one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._holders: dict[Endpoint, int] = {}
        self._listening: set[Endpoint] = set()
        self._client: dict[str, Endpoint] = {}

    def open_for_listener(self, local: Endpoint) -> Endpoint:
        """Take a port for a listener; raises LinkError (EADDRINUSE, ...)."""
        if local in self._listening:
            raise LinkError(
                errno.EADDRINUSE,
                f"{local.host} port {local.port} has a listener of this stack already: "
                "close that one first, or take another port",
            )
        if local not in self._holders:
            local = self._link.open_port(local)
        # Else the port is still held by connections of a listener that is gone.
        self._listening.add(local)
        self.hold(local)
        return local

    def close_listener(self, local: Endpoint) -> None:
        """The listener on a port is gone; its connections may still hold the port."""
        self._listening.discard(local)
        self.release(local)

    def open_for_client(self, remote: Endpoint) -> Endpoint:
        """The port for connections to `remote`, taken on first use; raises LinkError."""
        local = self._link.local_endpoint_for(remote)
        if local.host not in self._client:
            self._client[local.host] = self._link.open_port(local)
        return self._client[local.host]

    def hold(self, local: Endpoint) -> None:
        """A connection came in on a port."""
        self._holders[local] = self._holders.get(local, 0) + 1

    def release(self, local: Endpoint) -> None:
        """A holder of a port is gone; the last one gives the port back."""
        self._holders[local] -= 1
        if not self._holders[local]:
            del self._holders[local]
            self._link.close_port(local)
