"""A program loads what it uses: starting it costs a good part of a second otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What only links and engines need.
HEAVY = ("aioquic", "pyroute2", "pyxdp", "asyncio")
LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


@pytest.mark.parametrize(
    "first",
    [
        "import hoststack",
        "import hoststack.vcl",
        "import hoststack.cli.run",
        "from hoststack.cli.main import build_parser; build_parser(['ctl'])",
    ],
)
def test_what_an_attached_program_and_the_command_line_load(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; {LOADED}"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_an_embedded_stack_loads() -> None:
    """Neither the other engine nor the other link."""
    program = f"""
import trio, hoststack
async def main():
    async with hoststack.open_stack(link="udp") as stack:
        print(stack.engine_name)
trio.run(main)
{LOADED}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    engine, loaded = done.stdout.splitlines()
    assert engine == "aioquic" or loaded == "[]"
