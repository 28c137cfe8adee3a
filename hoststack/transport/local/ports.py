"""Ports of local scope: each namespace has its own set, separate from the network's ports."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle
from typing import Final

from hoststack.boundary.user_shares import Process, UserShares
from hoststack.link.base import LinkError

#: Range for port 0 (RFC 6335 section 6: dynamic ports).
_DYNAMIC: Final = range(49152, 65536)


class LocalPorts:
    """The dynamic ports of all namespaces of one worker."""

    def __init__(self) -> None:
        self._next = cycle(_DYNAMIC)
        self._taken: dict[tuple[str, int], Callable[[], None]] = {}
        self._shares: defaultdict[str, UserShares] = defaultdict(
            lambda: UserShares("dynamic ports of its namespace")
        )

    def take(self, namespace: str, process: Process | None) -> int:
        """Allocate a free port for a process. Raises LinkError: EADDRNOTAVAIL if there is none,
        EMFILE if the process has its share."""
        shares = self._shares[namespace]
        left = len(_DYNAMIC) - len(shares)
        if not left:
            raise LinkError(
                errno.EADDRNOTAVAIL, f"all dynamic ports of namespace {namespace!r} are in use"
            )
        refusal = shares.refusal(process, left)
        if refusal is not None:
            raise LinkError(errno.EMFILE, refusal)
        port = next(each for each in self._next if (namespace, each) not in self._taken)
        self._taken[namespace, port] = shares.add(process)
        return port

    def give_back(self, namespace: str, port: int) -> None:
        """Free a port. Idempotent."""
        release = self._taken.pop((namespace, port), None)
        if release is not None:
            release()
