"""Fault containment: an error of one application or console ends its own handler and nothing else.

Code that processes input from outside runs inside `contained`. Only cancellation, KeyboardInterrupt
and SystemExit propagate out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hoststack.text import printable


@contextmanager
def contained(on_fault: Callable[[Exception], None]) -> Iterator[None]:
    """Pass an exception raised inside, or the first of a group, to `on_fault` instead of the
    caller."""
    try:
        yield
    except* Exception as group:
        on_fault(first_of(group))


def first_of(error: Exception) -> Exception:
    """Return the first exception in a group that is not a group itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def fault_text(error: Exception) -> str:
    """Return an exception as one line, for a log."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    try:
        text = printable(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}" if text else name
