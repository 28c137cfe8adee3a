"""Alternative services (RFC 7838): which origins said that they speak HTTP/3, and where."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import unquote

#: RFC 7838 section 3.1: "If this parameter is not present, the freshness lifetime is 24 hours".
_DEFAULT_AGE_S: Final = 24 * 3600
#: How long an alternative is not used after it did not answer, at first; then twice as long.
_BROKEN_S: Final = 300.0
_MOST_BROKEN_S: Final = 24 * 3600.0
_MOST_ORIGINS: Final = 1024
_H3: Final = "h3"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_VALUE: Final = re.compile(
    rf"\s*(?P<protocol>{_TOKEN})=(?P<authority>{_QUOTED})"
    rf"(?P<parameters>(?:\s*;\s*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*)\s*(?:,|$)"
)
_PARAMETER: Final = re.compile(rf";\s*({_TOKEN})=({_TOKEN}|{_QUOTED})")
#: The host is used in a field (Alt-Used), in a URI and in the log.
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]*):(?P<port>[0-9]{1,5})")


class Origin(NamedTuple):
    """Host and port of an https: URL."""

    host: str
    port: int


@dataclass
class _Known:
    """What is known of one origin."""

    place: Origin | None = None
    """Where it speaks HTTP/3."""
    until_s: float = 0.0
    broken_until_s: float = 0.0
    failures: int = 0


class Alternatives:
    """The origins' alternatives for HTTP/3, in memory. It does no I/O; times are monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._origins: dict[Origin, _Known] = {}

    def find(self, origin: Origin) -> Origin | None:
        """Return where an origin speaks HTTP/3, unless it did not answer there lately."""
        known = self._origins.get(origin)
        if known is None or known.place is None:
            return None
        now_s = self._clock()
        if known.until_s <= now_s or known.broken_until_s > now_s:
            return None
        return known.place

    def learn(self, origin: Origin, fields: Iterable[str], age_s: float = 0.0) -> None:
        """Take over the Alt-Svc fields of a response from an origin. `age_s` is the response's Age.

        A field that can't be parsed is ignored (RFC 7838 section 3).
        """
        text = ",".join(fields)
        if not text:
            return
        if text.strip() == "clear":
            self._origins.pop(origin, None)
            return
        found = parse(text)
        known = self._origins.pop(origin, None) or _Known()
        self._origins[origin] = known  # the one that was used last is at the end
        # RFC 7838 section 3: a new field replaces what is known, also where it has no h3.
        known.place = None
        if found:
            host, port, lifetime_s = found[0]
            known.place = Origin(host or origin.host, port)
            known.until_s = self._clock() + lifetime_s - age_s
        while len(self._origins) > _MOST_ORIGINS:
            del self._origins[next(iter(self._origins))]

    def on_failed(self, origin: Origin) -> None:
        """Note that an origin's alternative did not answer, so that it is not used for a time."""
        known = self._origins.get(origin)
        if known is not None:
            broken_s = min(_BROKEN_S * 2**known.failures, _MOST_BROKEN_S)
            known.failures = min(known.failures + 1, 20)
            known.broken_until_s = self._clock() + broken_s

    def on_answered(self, origin: Origin) -> None:
        """Note that an origin's alternative works."""
        known = self._origins.get(origin)
        if known is not None:
            known.failures = 0

    def forget(self, origin: Origin) -> None:
        """Use an origin's alternative no more: it answered 421 (RFC 7838 section 6)."""
        self._origins.pop(origin, None)


def parse(text: str) -> list[tuple[str, int, float]]:
    """Return host (empty: the origin's), port and lifetime in seconds of each h3 service in an
    Alt-Svc field, in its order; none of an invalid one."""
    found = []
    place = 0
    while place < len(text):
        match = _VALUE.match(text, place)
        if match is None:
            return []
        place = match.end()
        if unquote(match["protocol"]) != _H3:
            continue
        authority = _AUTHORITY.fullmatch(_unquoted(match["authority"]))
        if authority is None or not 0 < int(authority["port"]) < 1 << 16:
            continue
        parameters = {
            name.lower(): _unquoted(value)
            for name, value in _PARAMETER.findall(match["parameters"])
        }
        age = parameters.get("ma", str(_DEFAULT_AGE_S))
        if age.isdecimal() and len(age) <= 10:
            host = authority["host"].strip("[]").lower()
            found.append((host, int(authority["port"]), float(age)))
    return found


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
