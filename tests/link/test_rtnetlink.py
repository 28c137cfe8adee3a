"""What the kernel refuses leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import socket
import weakref
from collections.abc import Callable

import pytest

from hoststack.link.base import LinkError
from hoststack.link.kernel.rtnetlink import Rtnetlink


class Caller:
    """What the frame of a caller refers to: a connection, for example."""


REFUSED: dict[str, Callable[[Rtnetlink], object]] = {
    # Not an address of this machine: EINVAL.
    "route": lambda kernel: kernel.route("127.0.0.1", source="203.0.113.1"),
    "interface": lambda kernel: kernel.interface("no-such-if"),
    "neighbour": lambda kernel: kernel.neighbour(socket.if_nametoindex("lo"), "203.0.113.1"),
    "probe": lambda kernel: kernel.use_neighbour(1 << 30, "203.0.113.1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_keeps_no_frame_of_its_callers(what: str) -> None:
    """pyroute2's exceptions are in reference cycles."""
    kernel = Rtnetlink()

    def ask() -> weakref.ref[Caller]:
        caller = Caller()
        with contextlib.suppress(LinkError):
            assert REFUSED[what](kernel) is None
        return weakref.ref(caller)

    gc.collect()
    gc.disable()
    try:
        assert ask()() is None
    finally:
        gc.enable()
        kernel.close()
