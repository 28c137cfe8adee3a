"""Escaping of untrusted text for display.

Names and messages from a peer, an application or a server may contain anything: terminal escapes,
line ends that forge a line of a log, characters that change the direction of the following text,
lone surrogates that cannot be encoded. Every such text must pass through here before it reaches a
terminal, a log or an exception's message.
"""

from __future__ import annotations

from typing import Final

#: Most characters of one text; a longer one is cut, and the result says by how much.
MAX_CHARACTERS: Final = 1024
_SHORT: Final = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: object, max_characters: int = MAX_CHARACTERS) -> str:
    r"""Return a text as one line of visible characters, with Python's escapes for all others.

    It escapes control characters (C0, C1, DEL), line and paragraph separators, formatting
    characters (bidirectional overrides, zero-width ones), unassigned ones, spaces except U+0020,
    and lone surrogates. Bytes are decoded as UTF-8, and invalid ones become `\xNN`. A text longer
    than `max_characters` is cut. Escaping an escaped text again does not change it.
    """
    if isinstance(text, bytes | bytearray):
        shown = text[: 4 * max_characters].decode(errors="surrogateescape")
        cut = max(0, len(text) - 4 * max_characters)
    else:
        shown, cut = str(text), 0
    cut += max(0, len(shown) - max_characters)
    shown = shown[:max_characters]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))
    return f"{shown}... ({cut} more)" if cut else shown


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        number -= 0xDC00
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x1_0000 else f"\\U{number:08x}"
