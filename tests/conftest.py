"""What all tests share: what root is needed for, and namespaces joined by a veth pair."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.support import netns


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_root: makes network namespaces, loads XDP programs")


@cache
def why_no_namespaces() -> str:
    """What keeps us from making network namespaces; empty if nothing does."""
    if os.geteuid() != 0:
        return "needs root: makes network namespaces and loads XDP programs"
    tried = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"root may not make network namespaces here: {tried.stderr.strip()}"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root") and why_no_namespaces():
        pytest.skip(why_no_namespaces())


@pytest.fixture
def veth_pair() -> Iterator[netns.VethPair]:
    """Two namespaces joined by a veth pair."""
    with netns.veth_pair() as pair:
        yield pair


@pytest.fixture
def make_veth_pair() -> Iterator[Callable[..., netns.VethPair]]:
    """The same, with an MTU and a number of queues of one's own."""
    with ExitStack() as undo:
        yield lambda **options: undo.enter_context(netns.veth_pair(**options))
