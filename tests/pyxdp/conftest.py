"""A veth pair in a network namespace of its own, which the test's thread is moved into."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pytest

import pyxdp

_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Veth(NamedTuple):
    """Two interfaces joined back to back, both in the current network namespace."""

    left: str
    right: str


def _enter(namespace_fd: int) -> None:
    """Move this thread, and it alone, into another network namespace."""
    if _libc.setns(namespace_fd, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def extension() -> None:
    """Skip where pyxdp's C part was not built."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


@pytest.fixture
def privileged(extension: None) -> None:
    """Skip where XDP programs may not be loaded."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it loads XDP programs and makes network namespaces")


@pytest.fixture
def namespace(privileged: None) -> Iterator[str]:
    """An empty network namespace that the test runs in."""
    name = f"pyxdp-test-{os.getpid()}"
    _ip("netns", "add", name)
    with contextlib.ExitStack() as undo:
        undo.callback(_ip, "netns", "del", name)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        undo.callback(os.close, home)
        new = os.open(f"/run/netns/{name}", os.O_RDONLY)
        undo.callback(os.close, new)
        _enter(new)
        undo.callback(_enter, home)
        yield name


@pytest.fixture
def make_veth(namespace: str) -> Callable[..., Veth]:
    """Makes the pair; its queues and MTU may be given."""

    def make(queues: int = 1, mtu_bytes: int = 1500) -> Veth:
        count = ["numrxqueues", str(queues), "numtxqueues", str(queues)]
        _ip("link", "add", "left", *count, "type", "veth", "peer", "name", "right", *count)
        for name in ("left", "right"):
            _ip("link", "set", name, "addrgenmode", "none")
            _ip("link", "set", name, "mtu", str(mtu_bytes), "up")
        return Veth("left", "right")

    return make


@pytest.fixture
def veth(make_veth: Callable[..., Veth]) -> Veth:
    """A pair with one queue and an MTU of 1500."""
    return make_veth()
