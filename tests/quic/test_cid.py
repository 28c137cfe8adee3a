"""Connection IDs are laid out as bpf/steer.h says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoststack.native.wire._wire import lib
from hoststack.quic.cid import CID_BYTES, CidGenerator
from hoststack.quic.seam import CidConfig


@given(host=st.integers(0, 0xFFFF), worker=st.integers(0, 255), rotation=st.integers(0, 7))
def test_the_layout(host: int, worker: int, rotation: int) -> None:
    cid = CidGenerator(CidConfig(host=host, worker=worker, rotation=rotation))()
    assert len(cid) == CID_BYTES == lib.HS_CID_BYTES
    assert cid[0] >> lib.HS_CID_ROTATION_SHIFT == rotation
    # The length octet counts what follows it (draft-ietf-quic-load-balancers).
    assert cid[0] & lib.HS_CID_LENGTH_MASK == CID_BYTES - 1
    at = lib.HS_CID_HOST_OFFSET
    assert int.from_bytes(cid[at : at + 2], "big") == host
    assert cid[lib.HS_CID_WORKER_OFFSET] == worker


def test_no_two_are_the_same() -> None:
    new_cid = CidGenerator(CidConfig())
    assert len({new_cid() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "config",
    [
        CidConfig(rotation=8),
        CidConfig(host=1 << 16),
        CidConfig(worker=256),
        CidConfig(worker=-1),
    ],
)
def test_what_has_no_room_is_refused(config: CidConfig) -> None:
    with pytest.raises(ValueError, match="a connection ID's"):
        CidGenerator(config)
