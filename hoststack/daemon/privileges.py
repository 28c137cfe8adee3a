"""Dropping a worker's privileges before it reads the first packet, and checking that they are gone.

Each step is checked, and the result is read back at the end: a call that a seccomp filter or a
security module refuses, or pretends to carry out, must not leave a worker with extra privileges.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
import struct
from functools import cache
from typing import Any, Final

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG: Final = 1
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_IS_SET: Final = 1
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAP_SETPCAP: Final = 8
_CAPABILITY_VERSION_3: Final = 0x20080522
#: More capabilities than any kernel has.
_MOST_CAPABILITIES: Final = 64
#: Effective, permitted and inheritable, for the capabilities below 32 and above.
_CAPABILITY_WORDS: Final = 6
_UCRED: Final = struct.Struct("3i")  # unix(7)
_UMASK: Final = 0o077


class PrivilegeError(Exception):
    """A process still has a privilege that it should have dropped; the message says which."""


class OrphanedError(Exception):
    """The process that started this one has ended already."""


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> int:
    """Call prctl(2); returns -1 with errno (ctypes.get_errno) on failure."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return int(_libc().prctl(option, *(ctypes.c_ulong(each) for each in padded)))


def _must(result: int, what: str) -> int:
    if result < 0:
        raise PrivilegeError(_refused(what, os.strerror(ctypes.get_errno())))
    return result


def _refused(what: str, why: str) -> str:
    return (
        f"can't drop privileges: {what}: {why}; a seccomp filter (SystemCallFilter=) or a "
        "security module that forbids this has to allow it"
    )


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        raise PrivilegeError(_refused(what, "the call succeeded without effect"))


def _capabilities() -> list[int]:
    """Return the words of capget(2): effective, permitted, inheritable, twice."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    words = (ctypes.c_uint32 * _CAPABILITY_WORDS)()
    _must(_libc().capget(header, words), "capget")
    return list(words)


def _bounding_set() -> list[int]:
    """Return the capabilities that an execve could still grant."""
    return [each for each in range(_MOST_CAPABILITIES) if _prctl(_PR_CAPBSET_READ, each) == 1]


def _empty_bounding_set() -> bool:
    """Empty the bounding set; False if that is forbidden: without capabilities, no_new_privs is
    enough."""
    if not _capabilities()[0] >> _CAP_SETPCAP & 1:
        return False
    for capability in _bounding_set():
        _must(_prctl(_PR_CAPBSET_DROP, capability), "PR_CAPBSET_DROP")
    return True


def _change_user(user: str) -> None:
    try:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except (OSError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) else "there is no such user"
        raise PrivilegeError(_refused(f"to become {user}", why or str(error))) from None
    _check(os.getresuid() == (entry.pw_uid,) * 3, "setresuid")
    _check(os.getresgid() == (entry.pw_gid,) * 3, "setresgid")
    _check(os.getgroups() == [], "setgroups")
    # Others of that user, workers among them, may not read this process's memory (ptrace(2)).
    _must(_prctl(_PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")
    _check(_prctl(_PR_GET_DUMPABLE) != 1, "PR_SET_DUMPABLE")


def become(user: str | None) -> None:
    """Drop root, if we are root, every capability, and everything that could restore them.

    `user` is None for a process that is not root. Raises PrivilegeError.
    """
    is_bounded = _empty_bounding_set()
    if user is not None and os.geteuid() == 0:
        _change_user(user)
    # A daemon that is not root may have ambient capabilities (AmbientCapabilities=).
    _must(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL), "PR_CAP_AMBIENT_CLEAR_ALL")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _must(_libc().capset(header, (ctypes.c_uint32 * _CAPABILITY_WORDS)()), "capset")
    _must(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")
    _check(_prctl(_PR_GET_NO_NEW_PRIVS) == 1, "PR_SET_NO_NEW_PRIVS")
    _check(not any(_capabilities()), "capset")
    _check(not (is_bounded and _bounding_set()), "PR_CAPBSET_DROP")
    _check(
        all(
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_IS_SET, each) != 1
            for each in range(_MOST_CAPABILITIES)
        ),
        "PR_CAP_AMBIENT_CLEAR_ALL",
    )
    os.umask(_UMASK)
    os.chdir("/")


def die_with_maker(end: socket.socket) -> None:
    """Have the kernel kill this process when the one that made the socket pair of `end` dies.

    A change of user resets that (prctl(2)), so call it after one, too. Raises PrivilegeError, and
    OrphanedError if that process is dead already: then no signal would come.
    """
    _must(_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "PR_SET_PDEATHSIG")
    maker, _, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if os.getppid() != maker:
        raise OrphanedError


def close_others(kept: set[int]) -> None:
    """Close all descriptors except these and standard input, output and error."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
