"""Network namespaces joined by a veth pair, made by a test and gone with it.

Threads and processes enter by setns(2): `ip netns exec` would hide /sys/fs/bpf.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_CLONE_NEWNET: Final = 0x40000000
_PREFIX: Final = "hstest"
_libc: Final = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

#: Runs the rest of its command line in the namespace whose file is its first argument.
_LAUNCHER: Final = (
    "import ctypes,os,sys\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    "assert ctypes.CDLL(None).setns(fd, 0x40000000) == 0, 'setns failed'\n"
    "os.close(fd)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


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
        return [sys.executable, "-c", _LAUNCHER, self.path, *words]

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


def _sweep() -> None:
    """Remove what test processes left that were killed."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == _PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def veth_pair(*, mtu_bytes: int = 1500, queues: int = 1) -> Iterator[VethPair]:
    """Make a pair; removed at the end, also after a failure."""
    _sweep()
    stem = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
    a = Side(f"{stem}-a", "left", "10.77.0.1", "fd77::1")
    b = Side(f"{stem}-b", "right", "10.77.0.2", "fd77::2")
    with contextlib.ExitStack() as undo:
        for side in (a, b):
            run("ip", "netns", "add", side.namespace)
            undo.callback(
                subprocess.run, ["ip", "netns", "del", side.namespace], capture_output=True
            )
        count: Sequence[str] = ("numrxqueues", str(queues), "numtxqueues", str(queues))
        peer = ("peer", "name", b.ifname, "netns", b.namespace, *count)
        a.ip("link", "add", a.ifname, *count, "type", "veth", *peer)
        for side in (a, b):
            side.ip("link", "set", "lo", "up")
            # Addresses of ours, without duplicate address detection, are there at once.
            side.ip("link", "set", side.ifname, "addrgenmode", "none")
            side.ip("link", "set", side.ifname, "mtu", str(mtu_bytes))
            side.ip("address", "add", f"{side.link_local()}/64", "dev", side.ifname, "nodad")
            side.ip("address", "add", f"{side.ipv4}/24", "dev", side.ifname)
            side.ip("address", "add", f"{side.ipv6}/64", "dev", side.ifname, "nodad")
            side.ip("link", "set", side.ifname, "up")
        yield VethPair(a, b)
