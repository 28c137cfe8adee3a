"""Unix sockets that a daemon listens on: accessible to a group, and removed at the end."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MODE: Final = 0o660
_BACKLOG: Final = 128


def group_id(group: str) -> int:
    """Return a group's ID; raises KeyError."""
    return grp.getgrnam(group).gr_gid


@contextmanager
def unix_listener(path: str, kind: socket.SocketKind, group: int | None) -> Iterator[socket.socket]:
    """Listen on a socket that its owner, root and the members of a group may connect to.

    Creates a missing folder, and replaces the socket of a dead server. Raises OSError, with a line
    for the user: EADDRINUSE where another server listens or another file exists.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"can't make {Path(path).parent}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as listener:
        try:
            _remove_what_is_dead(path, kind)
            # No client can connect before `listen`.
            listener.bind(path)
            os.chown(path, -1, -1 if group is None else group)
            os.chmod(path, _MODE)
            listener.listen(_BACKLOG)
        except OSError as error:
            text = error.strerror or str(error)
            raise OSError(error.errno, f"can't listen at {path}: {text}") from None
        place = os.stat(path)
        try:
            yield listener
        finally:
            with suppress(OSError):
                # Another server may have replaced the socket since.
                if os.path.samestat(place, os.stat(path)):
                    os.unlink(path)


def _remove_what_is_dead(path: str, kind: socket.SocketKind) -> None:
    """Remove a socket without a listener; raises OSError if there is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "there is a file that is not a socket: remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        # A live server whose backlog is full causes EAGAIN, which is handled below.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise OSError(errno.EADDRINUSE, "another daemon listens there: end it, or use another path")
