"""How connections share what an application may have: sessions, and memory for FIFOs.

They share it as ports share the buffer of a switch (dynamic thresholds). While half of it is free,
each may have any part; from then on a quarter of what is free at most. The last quarter is for
those that have little: the more a connection has, the more of that quarter it has to leave alone.
"""

from __future__ import annotations


def may_have(total: int, left: int, held: int, asked: int) -> bool:
    """Whether one who holds `held` of `total` may have `asked` more of what is `left`."""
    remains = left - asked
    if remains >= total // 2:
        return True
    reserve = total // 4 * held // (held + asked)
    return remains >= reserve and (not held or held + asked <= left // 4)
