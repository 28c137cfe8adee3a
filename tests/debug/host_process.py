"""A process with one worker and a control socket, until its stdin ends: INTERFACE SOCKET."""

from __future__ import annotations

import sys
from functools import partial

import trio

from hoststack.debug.control_socket import serve_commands
from hoststack.debug.lines import run_line
from hoststack.debug.run import run
from hoststack.link.auto import choose_link
from tests.debug.conftest import host_on


async def main(interface: str, path: str) -> None:
    link, _ = choose_link(interface, "af_xdp")
    async with host_on(link) as host, trio.open_nursery() as nursery:

        async def run_one(line: str, as_json: bool) -> str:
            workers = {side.index: partial(run, side=side) for side in host.sides}
            return await run_line(line, workers, as_json=as_json)

        await nursery.start(serve_commands, path, run_one)
        print("ready", flush=True)
        await trio.lowlevel.FdStream(sys.stdin.fileno()).receive_some()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
