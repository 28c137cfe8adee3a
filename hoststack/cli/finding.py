"""What the doctor found: one line, and where it is wanting, the fix."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Severity(enum.Enum):
    """GOOD needs nothing; a HINT could be better; with BAD, AF_XDP does not work."""

    GOOD = enum.auto()
    HINT = enum.auto()
    BAD = enum.auto()


class Finding(NamedTuple):
    """`subject` is a word or two; `fix` is what to do, empty where there is nothing to."""

    severity: Severity
    subject: str
    text: str
    fix: str = ""


def good(subject: str, text: str) -> Finding:
    """As it should be."""
    return Finding(Severity.GOOD, subject, text)


def hint(subject: str, text: str, fix: str) -> Finding:
    """Works, and could be better."""
    return Finding(Severity.HINT, subject, text, fix)


def bad(subject: str, text: str, fix: str) -> Finding:
    """Keeps AF_XDP from working."""
    return Finding(Severity.BAD, subject, text, fix)
