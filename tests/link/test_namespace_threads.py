"""The tests' namespaces: no thread that trio keeps carries one test's namespace into another."""

from __future__ import annotations

import os

import pytest
import trio

from tests.support.netns import VethPair

pytestmark = pytest.mark.needs_root


def namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def in_a_thread() -> int:
    return trio.run(trio.to_thread.run_sync, namespace)


def test_threads_stay_in_their_namespace(veth_pair: VethPair) -> None:
    home = namespace()
    assert in_a_thread() == home
    with veth_pair.a.inside():
        there = namespace()
        assert in_a_thread() == there != home
        with veth_pair.b.inside():
            assert in_a_thread() == namespace() != there
        assert in_a_thread() == there
    assert in_a_thread() == home
