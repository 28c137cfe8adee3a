"""A process with one worker and a control socket, until its stdin ends: INTERFACE SOCKET."""

from __future__ import annotations

import sys

import trio

from hoststack.control.control_socket import serve_commands
from hoststack.link.auto import choose_link
from tests.control.conftest import host_on


async def main(interface: str, path: str) -> None:
    link, _ = choose_link(interface, "af_xdp")
    async with host_on(link) as host, trio.open_nursery() as nursery:
        await nursery.start(serve_commands, path, host.console.run_line)
        print("ready", flush=True)
        await trio.lowlevel.FdStream(sys.stdin.fileno()).receive_some()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
