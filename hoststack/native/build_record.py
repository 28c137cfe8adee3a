"""What the build left out because HOSTSTACK_WITHOUT asked for it (setup.py writes it)."""

from __future__ import annotations

import json
from importlib.resources import files


def left_out() -> list[str]:
    """ "native", "xdp", both, or none of them; none, too, where nothing was built yet."""
    try:
        record = json.loads(files("hoststack.native").joinpath("build.json").read_text("utf-8"))
    except FileNotFoundError:
        return []
    names: list[str] = record["without"]
    return names
