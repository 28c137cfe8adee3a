"""The probes, attached by bcc, and their counters.

bcc is Debian's python3-bpfcc, which is imported from the system's Python: the package named bcc on
PyPI is a different one.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final, NamedTuple

from hoststack.trace.kernel_headers import headers

_DIST_PACKAGES: Final = "/usr/lib/python3/dist-packages"
_TRACEFS: Final = Path("/sys/kernel/tracing")
_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_TURN: Final = "hs_quic_turn"
#: enum figure of tracing.bcc.c, in its order.
FIGURES: Final = ("turn_ns", "received", "sent")


class Redirect(NamedTuple):
    """`error` is an errno, 0 for a successful redirect."""

    prog_id: int
    ifindex: int
    map_index: int
    error: int


class XdpException(NamedTuple):
    """A packet whose verdict could not be carried out, or for which the program aborted."""

    prog_id: int
    ifindex: int
    act: int


class Slot(NamedTuple):
    """Turns of a process in which a figure had `bits` bits: from 2^(bits-1) to 2^bits - 1, or 0."""

    pid: int
    figure: str
    bits: int


@dataclass
class Counts:
    """Counts since the beginning, or between two moments."""

    redirects: dict[Redirect, int] = field(default_factory=dict)
    exceptions: dict[XdpException, int] = field(default_factory=dict)
    slots: dict[Slot, int] = field(default_factory=dict)
    sums: dict[tuple[int, str], int] = field(default_factory=dict)
    """By process and figure."""

    def since(self, before: Counts) -> Counts:
        """Return the difference to an earlier reading."""
        return Counts(
            _difference(self.redirects, before.redirects),
            _difference(self.exceptions, before.exceptions),
            _difference(self.slots, before.slots),
            _difference(self.sums, before.sums),
        )


def _difference(now: Mapping[Any, int], before: Mapping[Any, int]) -> dict[Any, int]:
    return {key: n - before.get(key, 0) for key, n in now.items() if n > before.get(key, 0)}


def engine_files(pids: Collection[int]) -> dict[Path, list[int]]:
    """Return the native engine files that processes have mapped, with the ids of those processes.

    The paths can be opened by this process. Covers the processes `pids`, or all if it is empty.
    """
    found: dict[tuple[int, int], tuple[Path, list[int]]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or (pids and int(process.name) not in pids):
            continue
        try:
            maps = (process / "maps").read_text()
        except OSError:  # it ended, or has no memory
            continue
        for line in maps.splitlines():
            _, _, mapped = line.partition("/")
            if "hoststack/native/quic/_quic." not in mapped:
                continue
            path = Path(f"{process}/root/{mapped}")  # as that process sees it
            try:
                about = path.stat()
            except OSError:  # the file was rebuilt since
                continue
            _, users = found.setdefault((about.st_dev, about.st_ino), (path, []))
            if int(process.name) not in users:
                users.append(int(process.name))
    return {_plain(path): users for path, users in found.values()}


def _plain(path: Path) -> Path:
    """Return the path without /proc/PID/root if that is the same file: not so for a container's."""
    plain = path.resolve()
    return plain if plain.exists() and plain.samefile(path) else path


class Probes:
    """Attached probes, until they are closed or this process ends."""

    def __init__(self, program: Any, processes: Collection[int]) -> None:
        """Use `attach`."""
        self._program = program
        self.processes = processes
        """Those with a native engine, when it began."""

    def read(self) -> Counts:
        """Return the counts so far."""
        table = self._program.__getitem__
        return Counts(
            {
                Redirect(k.prog_id, k.ifindex, k.map_index, -k.err): v.value
                for k, v in table("redirects").items()
            },
            {
                XdpException(k.prog_id, k.ifindex, k.act): v.value
                for k, v in table("exceptions").items()
            },
            {Slot(k.pid, FIGURES[k.figure], k.bits): v.value for k, v in table("slots").items()},
            {(k.pid, FIGURES[k.figure]): v.value for k, v in table("sums").items()},
        )


@contextmanager
def attach(pids: Collection[int]) -> Iterator[Probes]:
    """Attach the probes; detach them at the end of the block.

    Counts the turns of the processes `pids`, or of all that have a native engine, including those
    that start later and use the same file. Raises OSError saying what is missing.
    """
    if os.geteuid() != 0:
        raise OSError(errno.EPERM, "tracing needs root: run it with sudo")
    bcc = _import_bcc()
    missing = [pid for pid in pids if not Path(f"/proc/{pid}").exists()]
    if missing:
        raise OSError(errno.ESRCH, f"there is no process {missing[0]}")
    files = engine_files(pids)
    if pids and not files:
        raise OSError(errno.ESRCH, f"{_list(pids)}: no native engine is running there")
    _mount_tracefs()
    try:
        with headers():
            program = bcc.BPF(text=_source(), cflags=_flags(bool(pids)))
    except Exception as error:  # bcc raises plain Exception
        raise OSError(errno.EIO, f"bcc can't compile or load the probes: {error}") from None
    try:
        for pid in pids:
            program["pids"][ctypes.c_uint32(pid)] = ctypes.c_uint8(1)
        for path in files or _own_engine():
            _attach_to(program, path)
        yield Probes(program, sorted(pid for users in files.values() for pid in users))
    finally:
        program.cleanup()


def _attach_to(program: Any, path: Path) -> None:
    try:
        program.attach_uprobe(name=str(path), sym=_TURN, fn_name="turn_begins")
        program.attach_uretprobe(name=str(path), sym=_TURN, fn_name="turn_ends")
    except Exception as error:  # bcc raises plain Exception
        if path.exists():
            raise OSError(errno.EIO, f"{path} can't be traced: {error}") from None
        # The process or container by whose root the file was found has ended while bcc compiled.


def _import_bcc() -> Any:
    found = sys.modules.get("bcc")
    if found is not None:
        return found
    spec = PathFinder.find_spec("bcc", [_DIST_PACKAGES])
    if spec is None or spec.loader is None:
        raise OSError(errno.ENOENT, "tracing needs bcc: install python3-bpfcc")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise OSError(
            errno.ENOENT, f"bcc can't be used ({error}): install python3-bpfcc again"
        ) from None
    return module


def _mount_tracefs() -> None:
    """If tracefs is not mounted, mount it for this process only."""
    if (_TRACEFS / "events").is_dir() or Path("/sys/kernel/debug/tracing/events").is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        or libc.mount(b"tracefs", bytes(_TRACEFS), b"tracefs", 0, None)
    ):
        number = ctypes.get_errno()
        raise OSError(
            number,
            f"tracefs can't be mounted ({os.strerror(number)}): the kernel may lack tracepoints",
        )


def _source() -> str:
    return (resources.files("hoststack.trace") / "tracing.bcc.c").read_text()


def _flags(some_pids: bool) -> list[str]:
    try:
        from hoststack.native.quic._quic import ffi
    except ImportError:  # then there are only XDP's tracepoints
        received, sent = 0, 0
    else:
        received, sent = (ffi.offsetof("struct hs_quic_turn", n) for n in ("received", "sent"))
    flags = ["-w", f"-DRECEIVED_OFFSET={received}", f"-DSENT_OFFSET={sent}"]
    return [*flags, "-DSOME_PIDS"] if some_pids else flags


def _own_engine() -> list[Path]:
    """Return our own file, for processes that start later."""
    spec = importlib.util.find_spec("hoststack.native.quic._quic")
    return [Path(spec.origin)] if spec is not None and spec.origin else []


def _list(pids: Collection[int]) -> str:
    return ("process " if len(pids) == 1 else "processes ") + ", ".join(map(str, pids))
