"""How connections share the limits of an application: sessions, and memory for FIFOs.

They share a limit as ports share the buffer of a switch (dynamic thresholds). While at least half
is free, a connection may use any part of it. Below that, it may use at most a quarter of what is
free. The last quarter is reserved for connections that use little: the more a connection uses, the
more of that quarter it must leave free.
"""

from __future__ import annotations


def may_have(total: int, left: int, held: int, asked: int) -> bool:
    """Return whether a holder of `held` of `total` may get `asked` more of the remaining `left`."""
    remains = left - asked
    if remains >= total // 2:
        return True
    reserve = total // 4 * held // (held + asked)
    return remains >= reserve and (not held or held + asked <= left // 4)
