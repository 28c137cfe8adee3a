"""Attach an XDP program to an interface with a bpf_link, in native or generic mode.

A bpf_link exists as long as a descriptor or pin refers to it: when its owner ends, for whatever
reason, the program is detached (kernel: Documentation/bpf/libbpf, bpf_link).
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pyxdp._extension import ffi, require
from pyxdp.errors import (
    ClosedError,
    ForeignProgramError,
    NoInterfaceError,
    PyxdpError,
    os_error,
    privilege_error,
)

#: How a program is attached: by the driver, or by the kernel for any driver.
Mode = Literal["native", "generic"]
#: The mode to ask for; auto means native where the driver supports it, else generic.
WantedMode = Literal["auto", "native", "generic"]

# linux/if_link.h
_XDP_FLAGS: Final[dict[Mode, int]] = {"generic": 1 << 1, "native": 1 << 2}
_CAPABILITIES: Final = "CAP_NET_ADMIN and CAP_BPF"


class AttachedProgram(NamedTuple):
    """A program attached to an interface. `name` is empty without the privilege to read it."""

    program_id: int
    name: str
    mode: str


def interface_index(interface: str) -> int:
    """Return the interface's index in this network namespace; raises NoInterfaceError."""
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError):
        raise NoInterfaceError(
            errno.ENODEV,
            f"there is no interface {interface!r} in this network namespace;"
            " `ip link` lists those that are",
        ) from None


def interface_name(ifindex: int) -> str:
    """Return the interface's name, or "" if it is gone or in another network namespace."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def attached_programs(interface: str) -> list[AttachedProgram]:
    """List the XDP programs on an interface, at most one per mode. Only names need privileges."""
    found = ffi.new("struct pyxdp_attached *")
    error = require().pyxdp_attached(interface_index(interface), found)
    if error < 0:
        raise os_error(f"cannot ask {interface} for its XDP program", -error)
    by_mode = {
        "native": found.native_id,
        "generic": found.generic_id,
        "offloaded": found.offloaded_id,
    }
    return [
        AttachedProgram(program_id, program_name(program_id), mode)
        for mode, program_id in by_mode.items()
        if program_id
    ]


def program_name(program_id: int) -> str:
    """Return a loaded program's name (the kernel stores 15 characters), "" if unreadable."""
    library = require()
    fd = library.pyxdp_program_open(program_id)
    if fd < 0:
        return ""
    try:
        info = ffi.new("struct pyxdp_program_info *")
        if library.pyxdp_program_info(fd, info) < 0:
            return ""
        return str(ffi.string(info.name).decode(errors="replace"))
    finally:
        os.close(fd)


class XdpLink:
    """An attached program. Closing the link detaches it, unless the link is pinned."""

    def __init__(self, fd: int, interface: str, mode: Mode) -> None:
        """Take over the bpf_link `fd`. Use `attach` or `XdpLink.from_pin`."""
        self._fd = fd
        self.interface: Final[str] = interface
        self.mode: Final[Mode] = mode

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> XdpLink:
        """Open a pinned link; raises PyxdpError with errno ENODEV if its interface is gone."""
        library = require()
        fd = library.pyxdp_open_pin(os.fsencode(path))
        if fd < 0:
            raise os_error(f"cannot open the pinned link {path}", -fd)
        info = ffi.new("struct pyxdp_link_info *")
        error = library.pyxdp_link_info(fd, info)
        if error < 0:
            os.close(fd)
            raise os_error(f"{path} is not an XDP link", -error)
        interface = interface_name(info.ifindex) if info.ifindex else ""
        mode: Mode | None = None
        if interface:
            for program in attached_programs(interface):
                if program.program_id == info.program_id and program.mode != "offloaded":
                    mode = "native" if program.mode == "native" else "generic"
        if mode is None:
            os.close(fd)
            raise NoInterfaceError(
                errno.ENODEV,
                f"the interface of the pinned link {path} is gone, or in another network"
                f" namespace; remove the pin with `rm {path}`",
            )
        return cls(fd, interface, mode)

    @property
    def fd(self) -> int:
        """The file descriptor; raises ClosedError."""
        if self._fd < 0:
            raise ClosedError(errno.EBADF, f"the link to {self.interface} is closed")
        return self._fd

    @property
    def program_id(self) -> int:
        """The id of the attached program."""
        info = ffi.new("struct pyxdp_link_info *")
        error = require().pyxdp_link_info(self.fd, info)
        if error < 0:
            raise os_error(f"cannot describe the link to {self.interface}", -error)
        return int(info.program_id)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the link to a path in a bpffs (see pyxdp.bpffs), so that it outlives this process."""
        pin_fd(self.fd, path)

    def detach(self) -> None:
        """Detach the program, even while the link is pinned, and close the link."""
        error = require().pyxdp_link_detach(self.fd)
        self.close()
        if error < 0:
            raise os_error(f"cannot detach from {self.interface}", -error)

    def close(self) -> None:
        """Close the link; idempotent. The program stays attached only if the link is pinned."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def pin_fd(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin a program, map or link; the folder must be in a bpffs. Raises PyxdpError."""
    error = require().pyxdp_pin(fd, os.fsencode(path))
    if error == -errno.EPERM and os.access(Path(path).parent, os.W_OK):
        raise PyxdpError(
            errno.EINVAL, f"cannot pin {path}: it is not in a bpffs; pyxdp.ensure_bpffs makes one"
        )
    if error == -errno.EEXIST:
        raise PyxdpError(errno.EEXIST, f"cannot pin {path}: something is pinned there already")
    if error < 0:
        raise os_error(f"cannot pin {path}", -error)


def refuse_foreign(interface: str) -> None:
    """Raise ForeignProgramError if the interface carries an XDP program."""
    for program in attached_programs(interface):
        called = f" {program.name!r}" if program.name else ""
        raise ForeignProgramError(
            f"{interface} carries the XDP program{called} (id {program.program_id},"
            f" {program.mode} mode) already, which is left alone; if it is not needed, end its"
            f" owner or remove it with `ip link set dev {interface} xdp off`",
            program.program_id,
            program.name,
        )


def attach(program_fd: int, interface: str, mode: WantedMode = "auto") -> XdpLink:
    """Attach a program to an interface; the link's `mode` is the mode in use.

    Raises ForeignProgramError if another program is attached, NoInterfaceError, NoPrivilegeError,
    and PyxdpError with errno EOPNOTSUPP if the native mode was requested and the driver has none.
    """
    library = require()
    ifindex = interface_index(interface)
    refuse_foreign(interface)
    modes: list[Mode] = ["native", "generic"] if mode == "auto" else [mode]
    error = 0
    for attempt in modes:
        fd = library.pyxdp_link_create(program_fd, ifindex, _XDP_FLAGS[attempt])
        if fd >= 0:
            return XdpLink(fd, interface, attempt)
        error = -fd
        if error in (errno.EBUSY, errno.EEXIST):
            refuse_foreign(interface)
        if error in (errno.EPERM, errno.EACCES):
            raise privilege_error(f"cannot attach to {interface}", _CAPABILITIES)
    what = f"cannot attach to {interface} in {mode} mode"
    if error == errno.ERANGE or (error == errno.EINVAL and mode == "native"):
        raise PyxdpError(
            error,
            f"{what}: the driver refuses it, most often because of the MTU or the number of"
            " queues; lower the MTU, or use generic mode",
        )
    raise os_error(what, error)
