"""What pyxdp raises: what happened, why, and what to do next, with the errno where there is one."""

from __future__ import annotations

import errno
import os


class PyxdpError(OSError):
    """Something that pyxdp was asked for did not work; `errno` is set where the kernel gave one."""


class NotAvailableError(PyxdpError):
    """pyxdp's C part was not built, or its libraries are not there."""


class NoPrivilegeError(PyxdpError, PermissionError):
    """A capability is missing; the message names it."""


class NoInterfaceError(PyxdpError):
    """There is no interface of that name in this network namespace, or no such queue of it."""


class QueueBusyError(PyxdpError):
    """Another AF_XDP socket has the queue."""


class ForeignProgramError(PyxdpError):
    """The interface carries an XDP program that is not ours; it is left alone."""

    def __init__(self, message: str, program_id: int, program_name: str) -> None:
        super().__init__(errno.EBUSY, message)
        self.program_id = program_id
        self.program_name = program_name


class ObjectError(PyxdpError):
    """A BPF object file cannot be read or is refused by the verifier; `log` is what that said."""

    def __init__(self, number: int, message: str, log: str = "") -> None:
        super().__init__(number, message)
        self.log = log


class FrameOwnershipError(PyxdpError):
    """A UMEM frame was used by somebody who does not own it (only with debug=True)."""


class ClosedError(PyxdpError, ValueError):
    """The object was closed before."""


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
    """EPERM, saying which capabilities are needed."""
    return NoPrivilegeError(
        errno.EPERM, f"{what}: not permitted; run as root, or with {capabilities}"
    )


def os_error(what: str, number: int, capabilities: str = "CAP_BPF and CAP_NET_ADMIN") -> PyxdpError:
    """The exception for errno `number` (positive), with its cause where it is a known one."""
    if number in (errno.EPERM, errno.EACCES):
        return privilege_error(what, capabilities)
    if number == errno.ENODEV:
        return NoInterfaceError(
            number, f"{what}: no such interface in this network namespace; `ip link` lists them"
        )
    return PyxdpError(number, f"{what}: {_CAUSES.get(number, os.strerror(number))}")
