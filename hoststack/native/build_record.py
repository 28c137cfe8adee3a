"""The parts that HOSTSTACK_WITHOUT left out of the build, as setup.py records them."""

from __future__ import annotations

import json
from importlib.resources import files


def left_out() -> list[str]:
    """Return "native", "xdp", both or neither; empty as well where nothing was built yet."""
    try:
        record = json.loads(files("hoststack.native").joinpath("build.json").read_text("utf-8"))
    except FileNotFoundError:
        return []
    names: list[str] = record["without"]
    return names
