"""Ports of local scope: each namespace has its own, and none of them is the network's."""

from __future__ import annotations

import errno
from itertools import cycle
from typing import Final

from hoststack.link.base import LinkError

#: What is given to who asks for no certain port (RFC 6335 section 6: dynamic ports).
_DYNAMIC: Final = range(49152, 65536)


class LocalPorts:
    """The dynamic ports of all namespaces of one worker."""

    def __init__(self) -> None:
        self._next = cycle(_DYNAMIC)
        self._taken: set[tuple[str, int]] = set()

    def take(self, namespace: str) -> int:
        """A port that nobody has; raises LinkError (EADDRNOTAVAIL) if there is none."""
        for _ in _DYNAMIC:
            taken = (namespace, next(self._next))
            if taken not in self._taken:
                self._taken.add(taken)
                return taken[1]
        raise LinkError(
            errno.EADDRNOTAVAIL, f"all dynamic ports of namespace {namespace!r} are in use"
        )

    def give_back(self, namespace: str, port: int) -> None:
        """A port is free again; nothing happens if it was not taken."""
        self._taken.discard((namespace, port))
