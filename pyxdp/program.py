"""XDP programs and their maps: loading, running on a packet, attaching and pinning."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pyxdp._extension import ffi, require
from pyxdp.attach import WantedMode, XdpLink, attach, pin_fd
from pyxdp.closing import Closing
from pyxdp.errors import ClosedError, NoPrivilegeError, ObjectError, os_error, privilege_error
from pyxdp.maps import Map

XDP_ABORTED: Final = 0
XDP_DROP: Final = 1
XDP_PASS: Final = 2
XDP_TX: Final = 3
XDP_REDIRECT: Final = 4

_LOG_BYTES: Final = 256 * 1024
# The most that a program can prepend, and the smallest Ethernet frame (net/bpf/test_run.c).
_TEST_RUN_ROOM_BYTES: Final = 4096
_TEST_RUN_MIN_BYTES: Final = 14

_MOST_MAPS: Final = 64  # of one program: MAX_USED_MAPS in linux/bpf_verifier.h

#: What the verifier refuses to those without CAP_PERFMON (kernel/bpf/verifier.c: allow_ptr_leaks).
_FOR_THE_PRIVILEGED: Final = (
    b"pointer comparison prohibited",
    b"pointer -= pointer prohibited",
    b"prohibited for !root",
)

_PROGRAM_PIN: Final = "program"
_LINK_PIN: Final = "link"
_MAP_PIN_PREFIX: Final = "map_"


class _Description(NamedTuple):
    program_id: int
    name: str


def _describe(program_fd: int) -> _Description:
    info = ffi.new("struct pyxdp_program_info *")
    error = require().pyxdp_program_info(program_fd, info)
    if error < 0:
        raise os_error("cannot describe a program", -error)
    return _Description(int(info.id), str(ffi.string(info.name).decode(errors="replace")))


def _is_privilege(number: int, log: bytes) -> bool:
    """Whether a capability was missing, by errno and what the verifier says."""
    if number == errno.EACCES:
        return not log or any(words in log for words in _FOR_THE_PRIVILEGED)
    return number == errno.EPERM


class RunResult(NamedTuple):
    """The result of a program for a packet: the verdict (XDP_PASS, ...) and the packet after it."""

    verdict: int
    packet: bytes


class Program(Closing):
    """A loaded XDP program with its maps; use it as a context manager, or close it.

    Closing also detaches it, unless it is pinned.
    """

    def __init__(self, fd: int, name: str, maps: Mapping[str, Map], link: XdpLink | None) -> None:
        """Take over the arguments. Use `Program.load` or `Program.from_pin`."""
        self._fd = fd
        self.name: Final[str] = name
        self.maps: Final[dict[str, Map]] = dict(maps)
        self.link: XdpLink | None = link

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | bytes,
        *,
        map_sizes: Mapping[str, int] | None = None,
        name: str | None = None,
    ) -> Self:
        """Load a program from an object file made by clang, given as its path or its bytes.

        `map_sizes` sets the number of entries of maps by name; `name` selects one of several
        programs. Raises ObjectError if the file is no BPF object, lacks a name, or is refused by
        the verifier (its `log` says why), and NoPrivilegeError.
        """
        library = require()
        if isinstance(source, bytes):
            data, where = source, "the BPF object"
        else:
            where = os.fspath(source)
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                number = error.errno or errno.EIO
                raise ObjectError(
                    number, f"cannot read the BPF object {where}: {os.strerror(number)}"
                ) from error
        log = ffi.new("char[]", _LOG_BYTES)
        opened = ffi.new("struct pyxdp_object **")
        error_number = library.pyxdp_object_open(data, len(data), log, _LOG_BYTES, opened)
        if error_number < 0:
            raise ObjectError(-error_number, f"{where} is not a BPF object that clang made")
        try:
            for map_name, entries in (map_sizes or {}).items():
                error_number = library.pyxdp_object_set_map_size(
                    opened[0], map_name.encode(), entries
                )
                if error_number < 0:
                    raise ObjectError(-error_number, f"{where} has no map {map_name!r}")
            error_number = library.pyxdp_object_load(opened[0])
            if _is_privilege(-error_number, ffi.string(log)):
                raise NoPrivilegeError(
                    errno.EPERM,
                    f"cannot load {where}: not permitted; run as root, or with CAP_BPF,"
                    " CAP_NET_ADMIN and CAP_PERFMON",
                )
            if error_number < 0:
                text = ffi.string(log).decode(errors="replace")
                last = text.strip().splitlines()[-3:] or [os.strerror(-error_number)]
                raise ObjectError(
                    -error_number, f"the kernel refuses {where}: {'; '.join(last)}", text
                )
            return cls._take(opened[0], where, name)
        finally:
            library.pyxdp_object_close(opened[0])

    @classmethod
    def _take(cls, loaded: Any, where: str, name: str | None) -> Self:
        """Duplicate the descriptors of a loaded object, which may then be closed."""
        library = require()
        room = ffi.new("char[]", library.PYXDP_NAME_BYTES)
        if name is None:
            if library.pyxdp_object_program_name(loaded, 0, room) < 0:
                raise ObjectError(errno.ENOENT, f"{where} holds no program")
            name = str(ffi.string(room).decode())
        fd = library.pyxdp_object_program_fd(loaded, name.encode())
        if fd < 0:
            raise ObjectError(errno.ENOENT, f"{where} holds no program {name!r}")
        program = cls(fd, name, {}, None)
        try:
            index = 0
            while library.pyxdp_object_map_name(loaded, index, room) == 0:
                map_name = ffi.string(room).decode()
                map_fd = library.pyxdp_object_map_fd(loaded, room)
                if map_fd < 0:
                    raise os_error(f"cannot open map {map_name}", -map_fd)
                program.maps[map_name] = Map(map_fd, map_name)
                index += 1
        except BaseException:
            program.close()
            raise
        return program

    @classmethod
    def from_pin(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a pinned program with its maps and its link.

        Raises PyxdpError with errno ENOENT if nothing is pinned there.
        """
        library = require()
        folder = Path(folder)
        fd = library.pyxdp_open_pin(os.fsencode(folder / _PROGRAM_PIN))
        if fd < 0:
            raise os_error(f"cannot open the pinned program in {folder}", -fd)
        program = cls(fd, _describe(fd).name, {}, None)
        try:
            for path in sorted(folder.glob(_MAP_PIN_PREFIX + "*")):
                map_fd = library.pyxdp_open_pin(os.fsencode(path))
                if map_fd < 0:
                    raise os_error(f"cannot open the pinned map {path}", -map_fd)
                map_name = path.name.removeprefix(_MAP_PIN_PREFIX)
                program.maps[map_name] = Map(map_fd, map_name)
            if (folder / _LINK_PIN).exists():
                program.link = XdpLink.from_pin(folder / _LINK_PIN)
        except BaseException:
            program.close()
            raise
        return program

    @classmethod
    def from_id(cls, program_id: int) -> Self:
        """Open any loaded program and its maps, for inspection.

        The kernel stores 15 characters of the names. Raises PyxdpError with errno ENOENT if there
        is no such program, and NoPrivilegeError without CAP_SYS_ADMIN.
        """
        library = require()
        fd = library.pyxdp_program_open(program_id)
        if fd < 0:
            if -fd == errno.EPERM:
                raise privilege_error(f"cannot open program {program_id}", "CAP_SYS_ADMIN")
            raise os_error(f"cannot open program {program_id}", -fd)
        program = cls(fd, _describe(fd).name, {}, None)
        try:
            ids = ffi.new("uint32_t[]", _MOST_MAPS)
            for map_id in ids[0 : library.pyxdp_program_map_ids(fd, ids, _MOST_MAPS)]:
                map_fd = library.pyxdp_map_open(map_id)
                if map_fd < 0:
                    raise os_error(f"cannot open map {map_id}", -map_fd)
                opened = Map(map_fd)
                program.maps[opened.name] = opened
        except BaseException:
            program.close()
            raise
        return program

    @property
    def fd(self) -> int:
        """The file descriptor; raises ClosedError."""
        if self._fd < 0:
            raise ClosedError(errno.EBADF, f"program {self.name} is closed")
        return self._fd

    @property
    def id(self) -> int:
        """The kernel's id of the program, as `bpftool prog` shows it."""
        return _describe(self.fd).program_id

    def attach(self, interface: str, mode: WantedMode = "auto") -> XdpLink:
        """Attach to an interface, until this program is closed or its owner ends.

        Raises what pyxdp.attach.attach raises: ForeignProgramError, NoInterfaceError, ...
        """
        if self.link is not None:
            raise ValueError(f"program {self.name} is attached to {self.link.interface} already")
        self.link = attach(self.fd, interface, mode)
        return self.link

    def detach(self) -> None:
        """Detach the program, pinned or not; do nothing if it is not attached."""
        if self.link is not None:
            link, self.link = self.link, None
            link.detach()

    def pin(self, folder: str | os.PathLike[str]) -> None:
        """Pin program, maps and link in a new folder in a bpffs, so that they outlive this process.

        All or nothing. Raises PyxdpError with errno EEXIST if the folder exists.
        """
        folder = Path(folder)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise os_error(f"cannot make {folder}", error.errno or errno.EIO) from error
        try:
            for map_name, pinned in self.maps.items():
                pin_fd(pinned.fd, folder / (_MAP_PIN_PREFIX + _file_name(map_name)))
            pin_fd(self.fd, folder / _PROGRAM_PIN)
            if self.link is not None:
                self.link.pin(folder / _LINK_PIN)
        except BaseException:
            unpin(folder)
            raise

    def test_run(self, packet: bytes) -> RunResult:
        """Run the program on an Ethernet frame (BPF_PROG_TEST_RUN), attached or not.

        The kernel accepts 14 bytes to about a page; raises ValueError below 14.
        """
        if len(packet) < _TEST_RUN_MIN_BYTES:
            raise ValueError(f"a test packet has at least {_TEST_RUN_MIN_BYTES} bytes")
        out = ffi.new("uint8_t[]", len(packet) + _TEST_RUN_ROOM_BYTES)
        out_bytes = ffi.new("uint32_t *", len(packet) + _TEST_RUN_ROOM_BYTES)
        verdict = ffi.new("uint32_t *")
        error = require().pyxdp_program_test_run(
            self.fd, packet, len(packet), out, out_bytes, verdict
        )
        if error < 0:
            raise os_error(f"cannot run {self.name} on {len(packet)} bytes", -error)
        return RunResult(int(verdict[0]), bytes(ffi.buffer(out, out_bytes[0])))

    def close(self) -> None:
        """Close link, maps and program; idempotent. Pinned objects stay."""
        if self.link is not None:
            self.link.close()
            self.link = None
        for owned in self.maps.values():
            owned.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unpin(folder: str | os.PathLike[str]) -> bool:
    """Undo `Program.pin`: detach the program and remove the folder.

    Returns False if there was none. Detaches the program even while another process has it open.
    """
    library = require()
    folder = Path(folder)
    if not folder.is_dir():
        return False
    fd = library.pyxdp_open_pin(os.fsencode(folder / _LINK_PIN))
    if fd >= 0:
        # Removing the pin would detach it too, but only some time later.
        error = library.pyxdp_link_detach(fd)
        os.close(fd)
        if error < 0:
            raise os_error(f"cannot detach the program pinned in {folder}", -error)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return True


def _file_name(map_name: str) -> str:
    # A bpffs does not allow names with a dot, such as those of .rodata and .bss.
    return map_name.replace(".", "_")
