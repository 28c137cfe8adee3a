"""Network namespaces joined by a veth pair, made by a test and gone with it.

Threads and processes enter by setns(2): `ip netns exec` would hide /sys/fs/bpf.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from trio._core import _thread_cache
from trio._core._thread_cache import ThreadCache

_CLONE_NEWNET: Final = 0x40000000
_PREFIX: Final = "hstest"
_libc: Final = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


class _ThreadsByNamespace:
    """trio's idle threads, apart by namespace: a thread stays where its maker was, and trio keeps
    it for the next job of the process for 10 s."""

    def __init__(self) -> None:
        # Under this name trio empties it in a child: its threads are not there.
        self._idle_workers: dict[int, ThreadCache] = {}

    def start_thread_soon(self, *job: Any) -> None:
        """See trio.lowlevel.start_thread_soon."""
        here = os.stat("/proc/thread-self/ns/net").st_ino
        self._idle_workers.setdefault(here, ThreadCache()).start_thread_soon(*job)


_thread_cache.THREAD_CACHE = _ThreadsByNamespace()  # type: ignore[assignment]


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def why_not() -> str:
    """What keeps us from making network namespaces; empty if nothing does."""
    if os.geteuid() != 0:
        return "needs root: makes network namespaces and loads XDP programs"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"root may not make network namespaces here: {tried.stderr.strip()}"
    return ""


def run(*words: str) -> str:
    """Run a command; its output. An AssertionError has what it said on failure."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Side:
    """One end of the pair, alone in its namespace."""

    namespace: str
    ifname: str
    ipv4: str
    ipv6: str

    @property
    def path(self) -> str:
        """The namespace's file."""
        return f"/run/netns/{self.namespace}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread in the namespace; sockets made there stay there."""
        with open("/proc/thread-self/ns/net") as home, open(self.path) as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` in the namespace, under the same process ID."""
        return ["nsenter", f"--net={self.path}", *words]

    def ip(self, *words: str) -> str:
        """`ip` in this namespace."""
        return run("ip", "-n", self.namespace, *words)

    def link(self) -> dict[str, Any]:
        """What `ip link` says of the interface."""
        found: list[dict[str, Any]] = json.loads(self.ip("-d", "-j", "link", "show", self.ifname))
        return found[0]

    @property
    def mac(self) -> bytes:
        """Its address, 6 bytes."""
        return bytes.fromhex(self.link()["address"].replace(":", ""))

    def link_local(self) -> str:
        """Its IPv6 link-local address."""
        return f"fe80::{self.ipv6.rpartition(':')[2]}"


@dataclass(frozen=True)
class VethPair:
    """Two namespaces, `a` and `b`, joined by a veth pair with IPv4 and IPv6 addresses."""

    a: Side
    b: Side


@cache
def _reaper(stem: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one for a moment and removes its namespaces, however it died.

    Only this process has the other end of the pipe that it reads. It has a session of its own:
    timeout(1) and Ctrl-C end a whole group.
    """
    script = f'cat; for name in $(ls /run/netns | grep "^{stem}-"); do ip netns del "$name"; done'
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def reaper_pid() -> int:
    """The process ID of what removes the namespaces if this process is killed."""
    return _reaper(f"{_PREFIX}-{os.getpid()}").pid


class Namespaces:
    """Makes what has a name of its own in each test process, and removes it."""

    def __init__(self, undo: ExitStack) -> None:
        reaper_pid()
        self._undo = undo
        self.stem = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"

    def add(self, letter: str) -> str:
        """A namespace; its name."""
        name = f"{self.stem}-{letter}"
        run("ip", "netns", "add", name)
        self._undo.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        return name

    def sides(self) -> tuple[Side, Side]:
        """The two ends, whose interfaces are still to be made."""
        return (
            Side(self.add("a"), "left", "10.77.0.1", "fd77::1"),
            Side(self.add("b"), "right", "10.77.0.2", "fd77::2"),
        )


def bring_up(side: Side, mtu_bytes: int) -> None:
    """Give a side's interface its addresses."""
    side.ip("link", "set", "lo", "up")
    # Addresses of ours, without duplicate address detection, are there at once.
    side.ip("link", "set", side.ifname, "addrgenmode", "none")
    side.ip("link", "set", side.ifname, "mtu", str(mtu_bytes))
    side.ip("address", "add", f"{side.link_local()}/64", "dev", side.ifname, "nodad")
    side.ip("address", "add", f"{side.ipv4}/24", "dev", side.ifname)
    side.ip("address", "add", f"{side.ipv6}/64", "dev", side.ifname, "nodad")
    side.ip("link", "set", side.ifname, "up")


def forward(side: Side, value: int) -> None:
    """Whether its namespace is a router's: 0 or 1."""
    with side.inside():
        for family in ("ipv4", "ipv6"):
            path = Path(f"/proc/sys/net/{family}/conf/all/forwarding")
            path.write_text(f"{value}\n", encoding="ascii")


@contextmanager
def veth_pair(*, mtu_bytes: int = 1500, queues: int = 1) -> Iterator[VethPair]:
    """Make a pair; removed at the end, also after a failure."""
    with ExitStack() as undo:
        a, b = Namespaces(undo).sides()
        count: Sequence[str] = ("numrxqueues", str(queues), "numtxqueues", str(queues))
        peer = ("peer", "name", b.ifname, "netns", b.namespace, *count)
        a.ip("link", "add", a.ifname, *count, "type", "veth", *peer)
        for side in (a, b):
            bring_up(side, mtu_bytes)
        yield VethPair(a, b)
