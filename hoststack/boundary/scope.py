"""Scopes of an application: the network, or the other applications of its namespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

Scope = Literal["local", "global"]
SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))

#: The namespace of applications that name none. It always exists, and is open to all.
DEFAULT_NAMESPACE: Final = "default"


def check_scopes(scopes: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes with these names; raises ValueError for none, and for unknown ones."""
    given = frozenset(scopes)
    if not given or not given <= SCOPES:
        raise ValueError(f"scopes are local, global or both, not {sorted(given)}")
    return frozenset(scope for scope in SCOPES if scope in given)
