"""Sizes as people write them: `1500`, `0x10000`, `64k`, `10Mb`, `1G`."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,18})([kmg]?)b?", re.IGNORECASE | re.ASCII)
_SHIFTS: Final = {"k": 10, "m": 20, "g": 30}


def parse_size(text: str, *, shift: int = 0) -> int:
    """Return a size in bytes; k, m and g are binary multiples, in either case.

    `shift` is the unit of a number without one: 20 for MiB. Raises ValueError.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no size: write a number, or one with K, M or G")
    return int(found[1], 0 if found[1][:2].lower() == "0x" else 10) << _SHIFTS.get(
        found[2].lower(), shift
    )
