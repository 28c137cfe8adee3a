"""Whether an interface is still as AF_XDP was set up on it."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import pyxdp


def current_namespace() -> int:
    """This thread's network namespace, by its inode."""
    return os.stat("/proc/thread-self/ns/net").st_ino


class Setup(NamedTuple):
    """What sockets and program were bound to. They stay with the interface's index when it is
    renamed. When it ends, or moves to another network namespace, they are cut off for good."""

    interface: str
    ifindex: int
    queues: int
    program_id: int | None
    """None where another process keeps the program, and looks after it and the queues."""
    namespace: int
    """The network namespace that it is in (`current_namespace`)."""

    def trouble(self) -> str:
        """What has changed so that packets no longer come; "" if nothing has, or if this thread is
        in another namespace now and can't see it."""
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
            return f"{name} can't be looked at: {error.strerror}"
        if queues != self.queues:
            return f"{name} has {queues} receive queues now, and had {self.queues}"
        return ""
