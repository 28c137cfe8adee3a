"""Detecting that an interface is no longer as AF_XDP was set up on it."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import pyxdp


def current_namespace() -> int:
    """Return this thread's network namespace, by its inode."""
    return os.stat("/proc/thread-self/ns/net").st_ino


class Setup(NamedTuple):
    """What sockets and program were bound to. The binding follows the interface's index when it is
    renamed. Deleting the interface, or moving it to another network namespace, ends it for good."""

    interface: str
    ifindex: int
    queues: int
    program_id: int | None
    """None where another process owns the program and watches it and the queues."""
    namespace: int
    """The interface's network namespace (`current_namespace`)."""

    def trouble(self) -> str:
        """Return what has changed so that packets no longer arrive; "" if nothing has, or if this
        thread is now in another namespace and can't see the interface."""
        if current_namespace() != self.namespace:
            return ""
        try:
            name = socket.if_indextoname(self.ifindex)
        except OSError:
            return (
                f"{self.interface} is gone from this network namespace: it was deleted, or moved "
                "to another one"
            )
        if self.program_id is None:
            return ""
        try:
            if not any(
                program.program_id == self.program_id for program in pyxdp.attached_programs(name)
            ):
                return f"the steering program was taken off {name}"
            queues = pyxdp.receive_queues(name)
        except pyxdp.PyxdpError as error:
            return f"{name} can't be queried: {error.strerror}"
        if queues != self.queues:
            return f"{name} has {queues} receive queues now, and had {self.queues}"
        return ""
