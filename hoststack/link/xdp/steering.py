"""The steering program of an interface: loading it, its maps, and its verdicts by name.

bpf/steer.h defines the layouts. A program is either owned by its stack and unloaded with it, or
pinned by `hoststack xdp load` and adopted by the stacks that start later.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from importlib import resources
from pathlib import Path
from typing import Final, Self

import pyxdp
from hoststack.link.base import Endpoint, LinkError
from hoststack.native.wire._wire import ffi, lib

logger = logging.getLogger(__name__)

#: Where programs are pinned: a bpffs, mounted on first use.
BPFFS: Final = Path("/run/hoststack/bpf")

_PREFIX: Final = "HS_STEER_"
#: The names of enum hs_steer_verdict, in its order and in lower case: "redirected_by_cid", ...
VERDICTS: Final[tuple[str, ...]] = tuple(
    name.removeprefix(_PREFIX).lower()
    for _, name in sorted(ffi.typeof("enum hs_steer_verdict").elements.items())
    if name != "HS_STEER_VERDICTS"
)
MAX_QUEUES: Final = int(lib.HS_STEER_MAX_QUEUES)
MAX_PORTS: Final = int(lib.HS_STEER_MAX_PORTS)
_PORT_KEY: Final = "struct hs_steer_port *"


def pin_name(interface: str) -> str:
    """Return the name under which an interface's program is pinned.

    It includes the network namespace: two namespaces may have interfaces of the same name.
    """
    return f"{interface}-{os.stat('/proc/self/ns/net').st_ino}"


def program_object() -> bytes:
    """Return the compiled program; raises LinkError if the build left it out."""
    try:
        return (resources.files("hoststack.link.xdp") / "steer.bpf.o").read_bytes()
    except FileNotFoundError:
        raise LinkError(
            errno.ENOTSUP,
            "this build has no steering program: install clang and libbpf-dev, and build again",
        ) from None


class Steering:
    """A steering program on an interface. Its methods raise LinkError with what to do next."""

    def __init__(self, program: pyxdp.Program, interface: str, *, is_pinned: bool) -> None:
        """Use `load` or `adopt`."""
        self._program = program
        self.interface = interface
        self.is_pinned = is_pinned
        self._maps = program.maps

    @classmethod
    def load(
        cls,
        interface: str,
        queues: int,
        *,
        workers: int = 1,
        mode: pyxdp.WantedMode = "auto",
    ) -> Self:
        """Load the program and attach it; it is unloaded with this object or its process.

        Raises LinkError: EBUSY where another program is attached, EPERM, ENOTSUP, ...
        """
        if queues > MAX_QUEUES:
            raise LinkError(
                errno.E2BIG,
                f"{interface} has {queues} receive queues, more than {MAX_QUEUES}: "
                f"`ethtool -L {interface} combined {MAX_QUEUES}`",
            )
        try:
            program = pyxdp.Program.load(
                program_object(), map_sizes={"hs_sockets": queues * workers}
            )
            try:
                attached = program.attach(interface, mode)
            except BaseException:
                program.close()
                raise
        except pyxdp.PyxdpError as error:
            raise as_link_error(error) from None
        if mode == "auto" and attached.mode == "generic":
            logger.warning(
                "%s: XDP in generic mode instead of native, which its driver refuses: `hoststack "
                "doctor %s` says more",
                interface,
                interface,
            )
        return cls(program, interface, is_pinned=False)

    @classmethod
    def adopt(cls, interface: str) -> Self | None:
        """Return the program that `hoststack xdp load` pinned for this interface, or None."""
        try:
            bpffs = pyxdp.find_bpffs(BPFFS)
            folder = None if bpffs is None else bpffs / pin_name(interface)
            if folder is None or not folder.is_dir():
                return None
            return cls(pyxdp.Program.from_pin(folder), interface, is_pinned=True)
        except pyxdp.PyxdpError as error:
            raise as_link_error(error) from None

    def pin(self) -> Path:
        """Pin the program so that it outlives this process; return where it is pinned."""
        try:
            folder = pyxdp.ensure_bpffs(BPFFS) / pin_name(self.interface)
            self._program.pin(folder)
        except pyxdp.PyxdpError as error:
            raise as_link_error(error) from None
        self.is_pinned = True
        return folder

    @property
    def mode(self) -> str:
        """The attach mode: "native" or "generic"."""
        link = self._program.link
        return "" if link is None else link.mode

    @property
    def program_id(self) -> int:
        """The kernel's ID of the program, as `bpftool prog` shows it."""
        return self._program.id

    @property
    def program_name(self) -> str:
        """The program's name in the object file."""
        return self._program.name

    @property
    def sockets(self) -> int:
        """The capacity of the socket map: queues times workers."""
        return self._maps["hs_sockets"].max_entries

    def configure(self, *, workers: int, host: int, rotation: int) -> None:
        """Start steering; connection IDs with another host or rotation count as foreign."""
        config = ffi.new(
            "struct hs_steer_config *",
            {
                "workers": workers,
                "host": host,
                "rotation": rotation,
                "previous_rotation": rotation,
            },
        )
        self._maps["hs_config"].update(0, bytes(ffi.buffer(config)))

    def register(self, index: int, fd: int) -> None:
        """Add a socket at index `queue * workers + worker`; closing the socket removes it."""
        try:
            self._maps["hs_sockets"].update(index, fd, create_only=True)
        except pyxdp.PyxdpError as error:
            if error.errno != errno.EEXIST:
                raise as_link_error(error) from None
            raise LinkError(
                errno.EBUSY,
                f"another process has the AF_XDP sockets of {self.interface}: "
                "end it, or use another interface",
            ) from None

    def open_port(self, endpoint: Endpoint, worker: int | None = None) -> None:
        """Steer an endpoint's datagrams: by connection ID, or all of them to one worker."""
        use = lib.HS_STEER_QUIC if worker is None else worker + 1
        try:
            self._maps["hs_ports"].update(_port_key(endpoint), use)
        except pyxdp.PyxdpError as error:
            raise as_link_error(error) from None

    def close_port(self, endpoint: Endpoint) -> None:
        """Leave an endpoint's datagrams to the kernel; no effect if it is not steered."""
        self._maps["hs_ports"].delete(_port_key(endpoint))

    def ports(self) -> list[Endpoint]:
        """Return the endpoints that are steered."""
        keys = self._maps["hs_ports"].keys()
        return sorted(_endpoint(key) for key in keys)

    def counters(self) -> dict[str, int]:
        """Return packet counts by verdict (VERDICTS), since the program was loaded."""
        verdicts = self._maps["hs_verdicts"]
        return {name: verdicts.sum_per_cpu(index) for index, name in enumerate(VERDICTS)}

    def close(self) -> None:
        """Detach the program, unless it is pinned; idempotent."""
        self._program.close()


def unload(interface: str) -> bool:
    """Detach and unpin an interface's program; return False if none is pinned."""
    try:
        bpffs = pyxdp.find_bpffs(BPFFS)
        if bpffs is None or not pyxdp.unpin(bpffs / pin_name(interface)):
            return False
        pyxdp.remove_bpffs(BPFFS)
    except pyxdp.PyxdpError as error:
        raise as_link_error(error) from None
    return True


def as_link_error(error: pyxdp.PyxdpError) -> LinkError:
    """Convert a pyxdp error; its message already says what failed, why and what to do."""
    return LinkError(error.errno or errno.EIO, error.strerror or str(error))


def _port_key(endpoint: Endpoint) -> bytes:
    address = ipaddress.ip_address(endpoint.host.partition("%")[0])
    packed = b"" if address.is_unspecified else address.packed
    key = ffi.new(
        _PORT_KEY, {"ip_version": address.version, "port_be": socket.htons(endpoint.port)}
    )
    ffi.memmove(key.ip, packed, len(packed))
    return bytes(ffi.buffer(key))


def _endpoint(key: bytes) -> Endpoint:
    port = ffi.from_buffer(_PORT_KEY, key)
    size = 4 if port.ip_version == 4 else 16
    address = ipaddress.ip_address(bytes(ffi.buffer(port.ip, size)))
    return Endpoint(str(address), socket.ntohs(port.port_be))
