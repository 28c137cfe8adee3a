"""quic_echo that polls busily, over AF_XDP."""

from __future__ import annotations

import pytest

import pyxdp
from hoststack.worker import engines
from tests.apps.echo_process import transfer
from tests.support.netns import VethPair

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        "native" not in engines.available_engines(), reason="the native engine was not built"
    ),
]


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_transfer(veth_pair: VethPair, mode: str) -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)
    a, b = veth_pair.a, veth_pair.b
    words = f"mode {mode} busy-poll 50 engine native test-bytes"
    reports = transfer(
        f"interface {a.ifname} {words} nclients 1", f"interface {b.ifname} {words} TX=4M", (a, b)
    )
    for report in reports:
        assert report["link"] == "af_xdp"
        assert report["engine_counters"]["empty_turns"] > 0
        assert report["engine_counters"]["rx_packets"]["1rtt"] > 0
        assert report["rx_data"] == report["tx_data"] == 4 << 20
