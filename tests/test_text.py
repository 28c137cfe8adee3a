"""Text from outside, as it is shown."""

from __future__ import annotations

import unicodedata

import pytest

from hoststack.text import MAX_CHARACTERS, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text, Zürich, 東京", "plain text, Zürich, 東京"),
        ("\x1b[31mRED", r"\x1b[31mRED"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\0\x07\x7f", r"\x00\x07\x7f"),
        ("\x85\x9b31m", r"\x85\x9b31m"),
        ("\u202e\u2066\u200b\ufeff", r"\u202e\u2066\u200b\ufeff"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\u00a0\u3000", r"\xa0\u3000"),
        ("\ud800", r"\ud800"),
        ("\udcff", r"\xff"),
        ("\U000e0041", r"\U000e0041"),
        (r"\x1b", r"\x1b"),
        (b"bytes \xff\x1b", r"bytes \xff\x1b"),
        (ValueError("x\ny"), r"x\ny"),
        (7, "7"),
    ],
)
def test_what_has_no_shape_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_what_is_long_is_cut() -> None:
    assert printable("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    assert printable("x" * (MAX_CHARACTERS + 7)) == "x" * MAX_CHARACTERS + "... (7 more)"
    assert printable("\n" * 10, 3) == r"\n\n\n... (7 more)"
    assert len(printable(b"\xff" * 10_000_000)) < 5 * MAX_CHARACTERS


def test_every_character() -> None:
    for first in (*range(0, 0x3_0000, MAX_CHARACTERS), 0xE_0000, 0xF_0000, 0x10_FC00):
        text = "".join(map(chr, range(first, first + MAX_CHARACTERS)))
        shown = printable(text)
        assert shown.isprintable(), hex(first)
        assert shown.splitlines() == [shown]
        assert shown.encode().decode() == shown
        kinds = {unicodedata.category(each)[0] for each in shown.replace(" ", "")}
        assert not kinds & {"C", "Z"}, hex(first)
