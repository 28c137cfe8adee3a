"""Fault containment: an error of one application or console ends its own handler and nothing else.

Code that processes input from outside runs inside `contained`. Only cancellation, KeyboardInterrupt
and SystemExit propagate out of it.
"""

from __future__ import annotations

from collections.abc import Callable

from hoststack.text import printable


class contained:  # noqa: N801 (it stands in a `with`, as a function's name)
    """Pass an exception raised inside, or the first of a group, to `on_fault`, not to the caller.

    It is no generator: since CPython 3.13, an exception that passes through one is in a reference
    cycle, with all that its traceback holds.
    """

    def __init__(self, on_fault: Callable[[Exception], None]) -> None:
        self._on_fault = on_fault

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, Exception):
            self._on_fault(first_of(error))
            return True
        if isinstance(error, BaseExceptionGroup):
            faults, others = error.split(Exception)
            if faults is not None:
                self._on_fault(first_of(faults))
                assert others is not None
                raise others from None
        return False


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
