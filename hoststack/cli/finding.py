"""A finding of the doctor: one line, and the fix if something is wrong."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Severity(enum.Enum):
    """GOOD is fine; a HINT could be better; BAD keeps AF_XDP from working."""

    GOOD = enum.auto()
    HINT = enum.auto()
    BAD = enum.auto()


class Finding(NamedTuple):
    """`subject` is a word or two; `fix` is what to do, empty if there is nothing to do."""

    severity: Severity
    subject: str
    text: str
    fix: str = ""


def good(subject: str, text: str) -> Finding:
    """Return a finding about something that is as it should be."""
    return Finding(Severity.GOOD, subject, text)


def hint(subject: str, text: str, fix: str) -> Finding:
    """Return a finding about something that works, and could be better."""
    return Finding(Severity.HINT, subject, text, fix)


def bad(subject: str, text: str, fix: str) -> Finding:
    """Return a finding about something that keeps AF_XDP from working."""
    return Finding(Severity.BAD, subject, text, fix)
