"""What one application or one console does wrong ends its own handler and nothing else.

Whoever handles what came from outside does so within `contained`. What leaves it is cancellation,
and what ends a process on purpose (KeyboardInterrupt, SystemExit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hoststack.text import printable


@contextmanager
def contained(on_fault: Callable[[Exception], None]) -> Iterator[None]:
    """Report what is raised within, be it a group or not, to `on_fault` instead of the caller."""
    try:
        yield
    except* Exception as group:
        on_fault(first_of(group))


def first_of(error: Exception) -> Exception:
    """The first exception of a group that is no group itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def fault_text(error: Exception) -> str:
    """An exception in one line, for a log."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    try:
        text = printable(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}" if text else name
