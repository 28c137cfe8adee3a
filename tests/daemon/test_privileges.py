"""A worker that could not give up its privileges says so and does not serve."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from hoststack.daemon.config import ConfigError
from hoststack.daemon.privileges import (
    OrphanedError,
    PrivilegeError,
    become,
    close_others,
    die_with_maker,
)
from hoststack.daemon.supervisor import worker_user
from hoststack.daemon.worker_process import worker_environment
from tests.daemon.conftest import PATIENCE_S

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or platform.machine() != "x86_64",
    reason="needs root, to have something to give up, and the system calls' numbers of x86-64",
)

# asm/unistd_64.h
SYSCALLS: Final = {"capset": 126, "setgroups": 116, "setresgid": 119, "setresuid": 117}
PRCTL: Final = 157
# linux/prctl.h
PRCTLS: Final = {
    "PR_SET_PDEATHSIG": 1,
    "PR_SET_DUMPABLE": 4,
    "PR_CAPBSET_DROP": 24,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_CAP_AMBIENT_CLEAR_ALL": 47,
}
EPERM: Final = 1
LIE: Final = 0
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_LD_W: Final = 0x20
_JEQ: Final = 0x15
_RET: Final = 0x06
_NUMBER_AT: Final = 0  # struct seccomp_data
_ARGUMENT_AT: Final = 16


def forbid(name: str, error: int) -> None:
    """From now on the kernel answers a system call, or an option of prctl, with this error; with 0
    it says that it was done, and does nothing. For this process and those that it starts."""
    steps = [(_LD_W, 0, 0, _NUMBER_AT)]
    if name in PRCTLS:
        steps += [(_JEQ, 0, 3, PRCTL), (_LD_W, 0, 0, _ARGUMENT_AT), (_JEQ, 0, 1, PRCTLS[name])]
    else:
        steps += [(_JEQ, 0, 1, SYSCALLS[name])]
    steps += [(_RET, 0, 0, _RET_ERRNO | error), (_RET, 0, 0, _RET_ALLOW)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    filled = ctypes.create_string_buffer(program)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filled, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp here")


def in_a_child(run: Callable[[], None]) -> str:
    """What it raised, in a process of its own; empty for nothing."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            run()
        except BaseException as error:  # the whole test would go on here
            os.write(writing, "".join(traceback.format_exception_only(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


def test_all_is_gone_in_the_end() -> None:
    def run() -> None:
        become("nobody")
        status = Path("/proc/self/status").read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        caps = {name: int(found[name], 16) for name in found if name.startswith("Cap")}
        assert set(caps.values()) == {0}, caps
        assert (found["NoNewPrivs"], found["Groups"].strip()) == ("1", "")
        assert "0" not in found["Uid"].split() + found["Gid"].split()
        assert os.umask(0) == 0o077
        assert os.getcwd() == "/"
        with open("/proc/self/environ", "rb") as own:  # not dumpable: root's files
            own.read()

    # The last line alone fails.
    assert in_a_child(run).startswith(
        "PermissionError: [Errno 13] Permission denied: '/proc/self/e"
    )


#: A lie about the others changes nothing for root: the change of user did it already.
LIES: Final = ("setgroups", "setresgid", "setresuid", "PR_CAPBSET_DROP", "PR_SET_NO_NEW_PRIVS")
STEPS: Final = [*SYSCALLS, *(name for name in PRCTLS if name != "PR_SET_PDEATHSIG")]


@pytest.mark.parametrize(
    ("name", "error"), [*((name, EPERM) for name in STEPS), *((name, LIE) for name in LIES)]
)
def test_a_step_that_fails_ends_it(name: str, error: int) -> None:
    def run() -> None:
        os.setgroups([0, 4])
        try:
            forbid(name, error)
        except OSError as why:
            raise AssertionError(f"NOT TESTED: {why}") from None
        become("nobody")

    said = in_a_child(run)
    assert said.startswith("hoststack.daemon.privileges.PrivilegeError: can't drop"), said
    assert ("without effect" if error == LIE else "Operation not permitted") in said
    assert name in said or "to become nobody" in said


def test_a_user_that_is_gone() -> None:
    assert "there is no such user" in in_a_child(lambda: become("nosuch"))


def test_a_parent_that_died_before() -> None:
    """PR_SET_PDEATHSIG sends no signal for a parent that is dead by then."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        die_with_its_parent = in_a_child(lambda: die_with_maker(theirs))
        assert die_with_its_parent == ""

        def run() -> None:
            if pid := os.fork():
                os.waitpid(pid, 0)
                return
            die_with_maker(theirs)  # the pair was made by the test, not by its parent

        # The grandchild writes to the same pipe.
        assert OrphanedError.__name__ in in_a_child(run)

        def refused() -> None:
            forbid("PR_SET_PDEATHSIG", EPERM)
            die_with_maker(theirs)

        assert PrivilegeError.__name__ in in_a_child(refused)


def test_other_descriptors_are_closed() -> None:
    pid = os.fork()
    if pid == 0:
        is_right = False
        try:
            held = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
            close_others({held[2], held[5]})
            looking = os.open("/proc/self/fd", os.O_RDONLY)
            there = {int(name) for name in os.listdir(looking)}
            is_right = there - {0, 1, 2, looking, looking + 1} == {held[2], held[5]}
        finally:
            os._exit(0 if is_right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_environment_that_workers_get(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "SSH_AUTH_SOCK", "HOME", "DB_PASSWORD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    passed = worker_environment()
    assert passed["PYTHONUNBUFFERED"] == "1"
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS", "SSH_AUTH_SOCK", "HOME", "DB_PASSWORD"} & set(passed)


def test_workers_do_not_become_root() -> None:
    with pytest.raises(ConfigError, match="which is root"):
        worker_user("root")


def test_a_daemon_whose_workers_can_not_says_why(tmp_path: Path) -> None:
    program = (
        "from tests.daemon.test_privileges import forbid, EPERM; import runpy, sys;"
        "forbid('capset', EPERM); sys.argv[0] = 'hoststack';"
        "runpy.run_module('hoststack.cli.main', run_name='__main__')"
    )
    sockets = ["--socket", f"{tmp_path}/api.sock", "--cli-socket", f"{tmp_path}/cli.sock"]
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--link", "udp", *sockets],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "worker: can't drop privileges: capset: Operation not permitted" in done.stderr
    assert done.returncode == 1
    assert "serving at" not in done.stderr
    assert "Traceback" not in done.stderr
