"""Files whose changes are noticed by asking for their times.

Not inotify: that sees no change behind the symbolic links of certbot and Kubernetes, none on
network file systems, and none that another container makes. Asking for the times of some files,
or of an application's source, takes a few milliseconds a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_Times = dict[str, tuple[int, int, int] | None]


class Watched:
    """Some files, and what they were like when they were last asked for."""

    def __init__(self, find: Callable[[], Iterable[str]]) -> None:
        """`find` returns the paths, again each time."""
        self._find = find
        self._seen = self._settled = self._times()

    def changed(self) -> list[str]:
        """Return the files that have changed, appeared or gone since the last change, as soon as
        they are the same at two calls: several files, or the parts of one, change at once."""
        now = self._times()
        is_settled, self._seen = now == self._seen, now
        if not is_settled or now == self._settled:
            return []
        before, self._settled = self._settled, now
        return sorted(
            path for path in before.keys() | now.keys() if before.get(path) != now.get(path)
        )

    def _times(self) -> _Times:
        return {path: _times_of(path) for path in self._find()}


def _times_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def sources(folders: Iterable[str]) -> Iterator[str]:
    """Yield the *.py files below folders, without hidden folders and virtual environments."""
    for folder in folders:
        for top, inner, files in os.walk(folder):
            inner[:] = [name for name in inner if not _is_skipped(top, name)]
            yield from (os.path.join(top, name) for name in files if name.endswith(".py"))


def _is_skipped(top: str, name: str) -> bool:
    return (
        name.startswith((".", "__pycache__", "node_modules"))
        or Path(top, name, "pyvenv.cfg").exists()
    )
