"""The exceptions of pyxdp: what happened, why, what to do next, and the errno if any."""

from __future__ import annotations

import errno
import os


class PyxdpError(OSError):
    """An operation of pyxdp failed; `errno` is set if the kernel returned one."""


class NotAvailableError(PyxdpError):
    """pyxdp's C part was not built, or its libraries are missing."""


class NoPrivilegeError(PyxdpError, PermissionError):
    """A capability is missing; the message names it."""


class NoInterfaceError(PyxdpError):
    """This network namespace has no interface of that name, or the interface has no such queue."""


class QueueBusyError(PyxdpError):
    """The queue is in use by another AF_XDP socket."""


class ForeignProgramError(PyxdpError):
    """The interface carries an XDP program that is not ours; it is left attached."""

    def __init__(self, message: str, program_id: int, program_name: str) -> None:
        super().__init__(errno.EBUSY, message)
        self.program_id = program_id
        self.program_name = program_name


class ObjectError(PyxdpError):
    """A BPF object file is unreadable, or the verifier refused it; `log` is its output."""

    def __init__(self, number: int, message: str, log: str = "") -> None:
        super().__init__(number, message)
        self.log = log


class FrameOwnershipError(PyxdpError):
    """A UMEM frame was used by a caller that does not own it (only with debug=True)."""


class ClosedError(PyxdpError, ValueError):
    """The object is closed."""


_CAUSES = {
    errno.EAFNOSUPPORT: "this kernel has no AF_XDP: it needs CONFIG_XDP_SOCKETS=y",
    errno.EEXIST: "there is one already",
    errno.EINVAL: "the kernel does not accept these values",
    errno.ENETDOWN: "the interface is down: `ip link set IFACE up`",
    errno.ENOBUFS: "locked memory is limited: raise `ulimit -l`, or add CAP_IPC_LOCK",
    errno.ENOPROTOOPT: "this kernel has no such socket option",
    errno.ENOMEM: "memory is short, or limited: ask for fewer frames, or raise `ulimit -l`",
    errno.ENOSPC: "the map is full",
    errno.EOPNOTSUPP: "the interface's driver cannot do this: use generic or copy mode",
}


def privilege_error(what: str, capabilities: str) -> NoPrivilegeError:
    """Return the exception for EPERM, naming the capabilities that are needed."""
    return NoPrivilegeError(
        errno.EPERM, f"{what}: not permitted; run as root, or with {capabilities}"
    )


def os_error(what: str, number: int, capabilities: str = "CAP_BPF and CAP_NET_ADMIN") -> PyxdpError:
    """Return the exception for errno `number` (positive), with its cause where that is known."""
    if number in (errno.EPERM, errno.EACCES):
        return privilege_error(what, capabilities)
    if number == errno.ENODEV:
        return NoInterfaceError(
            number, f"{what}: no such interface in this network namespace; `ip link` lists them"
        )
    return PyxdpError(number, f"{what}: {_CAUSES.get(number, os.strerror(number))}")
