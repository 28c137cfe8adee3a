"""Text from outside, as it may be shown.

What a peer, an application or a server calls itself or says may hold anything: terminal escapes,
ends of lines that forge a line of a log, characters that turn the direction of what follows, halves
of surrogate pairs that no encoding has. Whatever reaches a terminal, a log or the text of an
exception goes through here.
"""

from __future__ import annotations

from typing import Final

#: Of one text: what is longer is cut short, and says so.
MAX_CHARACTERS: Final = 1024
_SHORT: Final = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: object, max_characters: int = MAX_CHARACTERS) -> str:
    r"""Return a text in one line of visible characters, with Python's escapes for the rest.

    Escaped are control characters (C0, C1, DEL), ends of lines and paragraphs, formatting
    characters (bidirectional overrides, zero-width ones), unassigned ones, spaces but U+0020, and
    lone surrogates. Bytes are read as UTF-8, and what is none is `\xNN`. What is longer than
    `max_characters` is cut. A text that was escaped once is not escaped again.
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
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8 (PEP 383)
        number -= 0xDC00
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x1_0000 else f"\\U{number:08x}"
