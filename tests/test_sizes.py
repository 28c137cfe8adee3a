"""Sizes as people write them: the command lines, VCL's file and the debug CLI read the same."""

from __future__ import annotations

import pytest

from hoststack.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1337", 1337),
        ("010", 10),
        ("0x10000", 65536),
        ("64k", 64 << 10),
        ("10Mb", 10 << 20),
        ("1GB", 1 << 30),
        ("0x2M", 2 << 20),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_a_number_without_a_unit_has_that_of_the_caller() -> None:
    assert parse_size("16", shift=20) == 16 << 20
    assert parse_size("16k", shift=20) == 16 << 10


@pytest.mark.parametrize(
    "text", ["", "k", "1.5M", "-1", "1 k", "1T", "0x", "\u0661", "1k\n", "9" * 19]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
