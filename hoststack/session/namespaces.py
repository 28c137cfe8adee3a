"""Application namespaces, as in VPP's session layer: which applications may use which scopes.

An application belongs to one namespace. When it attaches it sends the namespace's id and secret,
and the scopes that it wants: "global" is the network, "local" the other applications of the same
namespace on this stack. Each namespace has its own listeners and ports of local scope.
"""

from __future__ import annotations

import errno
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hoststack.boundary.scope import DEFAULT_NAMESPACE, SCOPES, Scope, check_scopes

_MOST_ID_BYTES: Final = 64


class NamespaceError(PermissionError):
    """A namespace refused an application; the message says why."""


@dataclass(frozen=True, slots=True)
class Namespace:
    id: str
    secret: str
    """Secret that applications must send; empty: none."""
    scopes: frozenset[Scope] = SCOPES
    """Scopes that its applications may use."""


class Namespaces:
    """The namespaces of one worker."""

    def __init__(self) -> None:
        self._by_id = {DEFAULT_NAMESPACE: Namespace(DEFAULT_NAMESPACE, "")}

    def add(self, id: str, secret: str, scopes: Iterable[str] = SCOPES) -> Namespace:
        """Add a namespace, or change the secret and scopes of an existing one.

        Attached applications are not affected. Raises ValueError for the default namespace, and
        for an invalid id.
        """
        if id == DEFAULT_NAMESPACE:
            raise ValueError(f"the namespace {DEFAULT_NAMESPACE} is open to all: name another one")
        if not id or len(id.encode()) > _MOST_ID_BYTES or not id.isprintable() or " " in id:
            raise ValueError(
                f"{id!r} can't be a namespace's id: use 1 to {_MOST_ID_BYTES} bytes without spaces"
            )
        namespace = self._by_id[id] = Namespace(id, secret, check_scopes(scopes))
        return namespace

    def admit(self, id: str, secret: str, scopes: Iterable[str]) -> frozenset[Scope]:
        """Check the credentials of an application that attaches, and return its scopes.

        Raises NamespaceError if the namespace does not exist, the secret is wrong, or the
        namespace does not allow one of the scopes; ValueError for an unknown scope.
        """
        wanted = check_scopes(scopes)
        namespace = self._by_id.get(id)
        expected = namespace.secret if namespace is not None else ""
        # Do not reveal which of the two is wrong, not even by the time that the check takes.
        is_right = hmac.compare_digest(expected.encode(), secret.encode()) or not expected
        if namespace is None or not is_right:
            raise NamespaceError(
                errno.EACCES,
                f"there is no namespace {id!r} with this secret: use the id and secret of `app ns "
                "add`, or none for the default namespace",
            )
        if not wanted <= namespace.scopes:
            missing = ", ".join(sorted(wanted - namespace.scopes))
            raise NamespaceError(
                errno.EACCES, f"the namespace {id!r} does not allow the scope {missing}"
            )
        return wanted

    def lines(self) -> list[str]:
        """Return one line for each namespace, without its secret."""
        return [
            f"{namespace.id} scope {' '.join(sorted(namespace.scopes))}"
            + (" secret set" if namespace.secret else "")
            for namespace in self._by_id.values()
        ]
