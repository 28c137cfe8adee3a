"""An application that sends one kind of costly request to all workers until it is ended.

`python -m bench.costly_end API KIND`; it says "attached" first. The kind "loop" sends nothing, and
uses a processor.
"""

from __future__ import annotations

import itertools
import random
import select
import socket
import sys
from contextlib import suppress

from tests.daemon.fuzz_application import Evil
from tests.support.costly import COMMANDS, KINDS

LOOP = "loop"
#: Requests before it reads answers.
_BATCH = 8


def main() -> None:
    """Send until a signal ends this process; BrokenPipeError if the worker detaches it."""
    api, kind = sys.argv[1:]
    evil = Evil(api, random.Random(5), ("127.0.0.1", 1))
    print("attached", flush=True)
    while kind == LOOP:
        pass
    for token in itertools.count(1, _BATCH):
        for worker in evil.workers:
            if kind in COMMANDS:
                for number in range(_BATCH):
                    worker.command(COMMANDS[kind](token + number))
            else:
                with suppress(BlockingIOError):
                    for number in range(_BATCH):
                        data = KINDS[kind](token + number)
                        worker.channel._socket.send(data, socket.MSG_DONTWAIT)
            worker.read()
            select.select([], [worker.channel._socket], [], 0.001)


if __name__ == "__main__":
    main()
