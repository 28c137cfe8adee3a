"""What the manager has started: processes, and the application in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from hoststack.serve.orders import End


class Child(Protocol):
    """Something that serves, and its end of a socket."""

    end: End
    started_s: float

    @property
    def pid(self) -> int: ...
    def fileno(self) -> int:
        """Readable once it has ended."""

    def kill(self) -> None: ...
    def status(self) -> int:
        """Return its exit status, negative for a signal; call it once it has ended."""

    def close(self) -> None: ...


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of an `End`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Process:
    """A process: `python -m MODULE FD`."""

    def __init__(self, module: str, fds: Sequence[int] = ()) -> None:
        """Start it; it inherits descriptors by their numbers. Raises OSError."""
        ours, theirs = socket_pair()
        self.end = End(ours)
        self.started_s = time.monotonic()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    # -P: modules beside the application must not hide Hoststack's own.
                    [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                    pass_fds=[theirs.fileno(), *fds],
                    stdin=subprocess.DEVNULL,
                    # A terminal's Ctrl-C is for the manager, which ends the others in order.
                    process_group=0,
                    env={n: value for n, value in os.environ.items() if n != "NOTIFY_SOCKET"},
                )
                self._pid_fd = os.pidfd_open(self._process.pid)
        except BaseException:
            self.end.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._pid_fd

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def status(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.end.close()
        os.close(self._pid_fd)


class Here:
    """The application in the manager's own process, whose main thread is the application's."""

    def __init__(self) -> None:
        ours, theirs = socket_pair()
        self.end, self.application_end = End(ours), theirs
        self.started_s = time.monotonic()
        self._over, self._closed_at_end = os.pipe()
        self._status = 0

    @property
    def pid(self) -> int:
        return os.getpid()

    def fileno(self) -> int:
        return self._over

    def has_ended(self, status: int) -> None:
        """Report its end; called in the main thread."""
        self._status = status
        os.close(self._closed_at_end)

    def kill(self) -> None:
        # A thread cannot be killed; a second signal, or --graceful-timeout, ends all of it.
        os._exit(128 + signal.SIGKILL)

    def status(self) -> int:
        return self._status

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.end.close()
            os.close(self._over)
