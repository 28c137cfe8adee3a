"""How users share what a daemon or a worker has a limited number of, and a user's processes.

Of what it has and what is free, a user may have all but a quarter. Of that, a process may have all
but a quarter in the same way. So one user can take three quarters, one process nine sixteenths, and
several of them together still leave something. Below 4 nothing is held back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Process = tuple[int, int]
"""User and process."""


class UserShares:
    """What the processes of all users have of one thing."""

    def __init__(self, things: str) -> None:
        """`things` is their name in a refusal: "UDP ports"."""
        self._things = things
        self._total = 0
        self._users: Counter[int] = Counter()
        self._processes: Counter[Process] = Counter()

    def __len__(self) -> int:
        return self._total

    def refusal(self, process: Process | None, left: int) -> str | None:
        """Return why a process may have none of the `left` that are free, as a line for the user;
        None if it may. None as the process is a stack of this one, which has no share."""
        if process is None:
            return None
        of_user, of_process = self._users[process[0]], self._processes[process]
        if of_process < _most(of_process, _most(of_user, left) - of_user):
            return None
        return (
            f"this process has {of_process} {self._things} of the daemon, its user {of_user}, and "
            f"the last {left} are for others: close some"
        )

    def add(self, process: Process | None) -> Callable[[], None]:
        """Count one more; return what takes it back, which is idempotent."""
        counted = [process]
        self._count(process, 1)

        def remove() -> None:
            while counted:
                self._count(counted.pop(), -1)

        return remove

    def _count(self, process: Process | None, more: int) -> None:
        self._total += more
        if process is None:
            return
        self._users[process[0]] += more
        self._processes[process] += more
        if not self._processes[process]:
            del self._processes[process]
        if not self._users[process[0]]:
            del self._users[process[0]]


def _most(held: int, left: int) -> int:
    return held + left - (held + left) // 4
