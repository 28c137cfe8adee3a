"""Scopes of an application: global is the network, local the applications of its namespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

Scope = Literal["local", "global"]
SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))

#: Namespace of applications that specify none. It always exists, and needs no secret.
DEFAULT_NAMESPACE: Final = "default"


def check_scopes(scopes: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes with these names; raises ValueError if empty or if a name is unknown."""
    given = frozenset(scopes)
    if not given or not given <= SCOPES:
        raise ValueError(f"scopes are local, global or both, not {sorted(given)}")
    return frozenset(scope for scope in SCOPES if scope in given)
