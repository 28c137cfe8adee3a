"""Ports of local scope: each namespace has its own set, separate from the network's ports."""

from __future__ import annotations

import errno
from itertools import cycle
from typing import Final

from hoststack.link.base import LinkError

#: Range for port 0 (RFC 6335 section 6: dynamic ports).
_DYNAMIC: Final = range(49152, 65536)


class LocalPorts:
    """The dynamic ports of all namespaces of one worker."""

    def __init__(self) -> None:
        self._next = cycle(_DYNAMIC)
        self._taken: set[tuple[str, int]] = set()

    def take(self, namespace: str) -> int:
        """Allocate a free port; raises LinkError (EADDRNOTAVAIL) if there is none."""
        for _ in _DYNAMIC:
            taken = (namespace, next(self._next))
            if taken not in self._taken:
                self._taken.add(taken)
                return taken[1]
        raise LinkError(
            errno.EADDRNOTAVAIL, f"all dynamic ports of namespace {namespace!r} are in use"
        )

    def give_back(self, namespace: str, port: int) -> None:
        """Free a port. Idempotent."""
        self._taken.discard((namespace, port))
