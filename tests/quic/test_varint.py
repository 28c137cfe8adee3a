"""Variable-length integers of the fast ways (RFC 9000 section 16)."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer
from hypothesis import given
from hypothesis import strategies as st

from hoststack.quic.aioquic.receive import pull_varint
from hoststack.quic.aioquic.transmit import push_varint

values = st.integers(0, (1 << 62) - 1)


@given(value=values)
def test_pushed_as_aioquic_does(value: int) -> None:
    buf = Buffer(capacity=8)
    buf.push_uint_var(value)
    assert push_varint(value) == buf.data


@given(value=values, before=st.binary(max_size=4), after=st.binary(max_size=4))
def test_pulled_from_where_it_is(value: int, before: bytes, after: bytes) -> None:
    encoded = push_varint(value)
    assert pull_varint(before + encoded + after, len(before)) == (
        value,
        len(before) + len(encoded),
    )


@given(value=values)
def test_cut_short(value: int) -> None:
    encoded = push_varint(value)
    for end in range(len(encoded)):
        with pytest.raises(IndexError):
            pull_varint(encoded[:end], 0)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [("c2197c5eff14e88c", 151288809941952652), ("9d7f3e7d", 494878333), ("4025", 37), ("25", 37)],
)
def test_examples_of_the_rfc(encoded: str, value: int) -> None:
    """Appendix A.1."""
    assert pull_varint(bytes.fromhex(encoded), 0) == (value, len(encoded) // 2)
