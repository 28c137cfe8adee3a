"""A veth pair with both ends in one network namespace, which the test's thread is moved into."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import pyxdp
from tests.support import netns

PATIENCE_S: Final = 60


class Veth(NamedTuple):
    """Two interfaces joined back to back, without addresses: only the test sends."""

    left: str
    right: str
    namespace: str


@pytest.fixture
def extension() -> None:
    """Skip where pyxdp's C part was not built."""
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


@pytest.fixture
def privileged(extension: None) -> None:
    """Skip where XDP programs may not be loaded."""
    if why := netns.why_not():
        pytest.skip(why)


def _wait_until_it_sends(side: netns.Side, name: str) -> None:
    """The kernel activates a link in the background, and drops what is sent before, silently."""
    link: dict[str, Any] = {}
    end_s = time.monotonic() + PATIENCE_S
    while link.get("operstate") != "UP" or link["qdisc"] == "noop":
        assert time.monotonic() < end_s, f"{name} does not come up: {link}"
        [link] = json.loads(side.ip("-j", "link", "show", name))


@pytest.fixture
def make_veth(privileged: None) -> Iterator[Callable[..., Veth]]:
    """Makes the pair and enters its namespace; its queues and MTU may be given."""
    with ExitStack() as undo:

        def make(*, queues: int = 1, mtu_bytes: int = 1500) -> Veth:
            pair = undo.enter_context(netns.veth_pair(queues=queues, mtu_bytes=mtu_bytes))
            left, right = pair.a.ifname, pair.b.ifname
            pair.b.ip("link", "set", right, "netns", pair.a.namespace)
            undo.enter_context(pair.a.inside())
            pair.a.ip("address", "flush", "dev", left)
            for name in (left, right):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            pair.a.ip("link", "set", right, "up")
            for name in (left, right):
                _wait_until_it_sends(pair.a, name)
            return Veth(left, right, pair.a.namespace)

        yield make


@pytest.fixture
def veth(make_veth: Callable[..., Veth]) -> Veth:
    """A pair with one queue and an MTU of 1500."""
    return make_veth()
