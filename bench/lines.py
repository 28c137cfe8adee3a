"""Lines of the summary: one figure each, with what it is measured by and what is expected of it."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from bench.rounds import Figures, ratio

_MEETS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Expected:
    """What a figure is to be."""

    sign: Literal[">=", "<=", "<", ">"]
    bound: float

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:,g}"

    def is_met(self, value: float) -> bool:
        return _MEETS[self.sign](value, self.bound)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure that is judged. Without `against` it is judged by itself."""

    what: str
    case: str
    """Which of several figures of the same sort: they share a panel of the picture."""
    unit: str
    """Of the absolute figures."""
    against: str = ""
    expected: Expected | None = None
    ratio: float | None = None
    """The median over the rounds of the ratios within them."""
    ours: float | None = None
    theirs: float | None = None
    why_not: str = ""
    """Why it was not measured."""

    @property
    def value(self) -> float | None:
        """What is judged: the ratio, or the figure itself; None if it was not measured."""
        return self.ratio if self.against else self.ours

    @property
    def verdict(self) -> str:
        """ "yes", "no", or nothing."""
        if self.value is None or self.expected is None:
            return ""
        return "yes" if self.expected.is_met(self.value) else "no"

    @property
    def measured(self) -> str:
        """What is judged, in words."""
        return "not measured" if self.value is None else number(self.value)

    @property
    def absolute(self) -> str:
        """The absolute figures, in words; or why there are none."""
        if self.ours is None:
            return self.why_not
        theirs = f" against {number(self.theirs)}" if self.theirs is not None else ""
        return f"{number(self.ours)}{theirs} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "expected": str(self.expected) if self.expected else None,
            "is_met": {"yes": True, "no": False}.get(self.verdict),
        }


def number(value: float) -> str:
    """At least three digits, and all those before the point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def compared(
    figures: Figures,
    of: str,
    to: str,
    *,
    what: str,
    case: str,
    unit: str,
    expected: Expected | None = None,
    absent: Mapping[str, str] | None = None,
) -> Line:
    """The line that compares two contenders; `absent` says what those lack that were not run."""
    made = partial(Line, what=what, against=to, case=case, unit=unit, expected=expected)
    for name in (of, to):
        if name not in figures:
            return made(why_not=(absent or {}).get(name, "the engine was not built"))
    ours, theirs = (statistics.median(figures[name]) for name in (of, to))
    return made(ratio=ratio(figures, of, to), ours=ours, theirs=theirs)
