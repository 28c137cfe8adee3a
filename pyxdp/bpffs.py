"""A bpffs to pin programs in, so that they outlive the process that loaded them.

A process in a mount namespace of its own (`ip netns exec`, a systemd service with private mounts)
must not mount one there: it would vanish with the process. Instead it is mounted in the namespace
of the outermost of the process's ancestors, usually process 1, and accessed through that process's
/proc/PID/root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path
from typing import Final

from pyxdp.errors import PyxdpError, privilege_error

# The entries that the kernel itself creates in the first bpffs that is mounted.
_KERNELS_OWN: Final = frozenset({"maps.debug", "progs.debug"})


def _parent(pid: int) -> int:
    # The name, in brackets, may hold anything; the parent is the second field after it (proc(5)).
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except FileNotFoundError:
        return 0  # the process has just ended


def _outer_process() -> int | None:
    """Return the outermost accessible ancestor, if its mount namespace is another one."""
    own = os.readlink("/proc/self/ns/mnt")
    outer = None
    pid = os.getppid()
    while pid > 0:
        with contextlib.suppress(PermissionError, FileNotFoundError):
            outer = None if os.readlink(f"/proc/{pid}/ns/mnt") == own else pid
        pid = _parent(pid)
    return outer


def _reached(folder: Path, outer: int | None) -> Path:
    return folder if outer is None else Path(f"/proc/{outer}/root") / folder.relative_to("/")


def _is_bpffs(folder: Path, mountinfo: Path) -> bool:
    """Return whether `folder` lies on a bpffs in that mount namespace."""
    best, best_type = Path("/"), ""
    # Fields: id, parent, device, root, mount point, options, tags..., "-", type (proc(5)).
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if folder.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, best_type = point, after.split()[0]
    return best_type == "bpf"


def find_bpffs(folder: str | os.PathLike[str]) -> Path | None:
    """Return the path by which to access `folder` if it is on a bpffs, else None.

    `folder` is absolute. The result differs from it only in a private mount namespace.
    """
    folder = Path(folder)
    outer = _outer_process()
    if not _is_bpffs(folder, Path(f"/proc/{outer or 'self'}/mountinfo")):
        return None
    return _reached(folder, outer)


def ensure_bpffs(folder: str | os.PathLike[str]) -> Path:
    """Like `find_bpffs`, but mount a bpffs on `folder` (created if need be) if there is none.

    Raises NoPrivilegeError, or PyxdpError saying why it can't be mounted.
    """
    folder = Path(folder)
    found = find_bpffs(folder)
    if found is not None:
        return found
    outer = _outer_process()
    reached = _reached(folder, outer)
    try:
        reached.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        raise privilege_error(f"cannot make {folder}", "CAP_SYS_ADMIN") from error
    _run(["mount", "-t", "bpf", "-o", "mode=0700", "bpffs", str(folder)], folder, outer)
    return reached


def remove_bpffs(folder: str | os.PathLike[str]) -> bool:
    """Unmount and remove `folder` if it is a bpffs without pins; return whether it was."""
    folder = Path(folder)
    reached = find_bpffs(folder)
    if reached is None or not os.path.ismount(reached):
        return False
    if any(path.name not in _KERNELS_OWN for path in reached.iterdir()):
        return False
    _run(["umount", str(folder)], folder, _outer_process())
    reached.rmdir()
    return True


def _run(command: list[str], folder: Path, outer: int | None) -> None:
    if outer is not None:
        command = ["nsenter", f"--target={outer}", "--mount", "--", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PyxdpError(
            errno.ENOENT, f"{command[0]} is not installed; install mount and util-linux"
        ) from error
    if done.returncode:
        if os.geteuid() != 0:
            raise privilege_error(f"cannot mount or unmount {folder}", "CAP_SYS_ADMIN")
        raise PyxdpError(
            errno.EINVAL,
            f"cannot mount or unmount a bpffs on {folder}: {done.stderr.strip()}; in a container,"
            " have its host mount one and name its path",
        )
