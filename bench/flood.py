"""Clients' first packets by the thousand, for handshakes that nobody finishes.

`flood.py forged` sends them from addresses that belong to nobody, in frames of its own; `flood.py
silent` from ports of the interface's address, answers Retry, and nothing after that. It says when
it begins, and at its end how many it has sent, as one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from bench import ALPN
from tests.support.checksummed import udp_frame
from tests.support.initials import Initials, read_retry

_SLICE_S: Final = 0.005
#: Made before it begins, and sent again and again.
_PREPARED: Final = 4000

Found = dict[str, int]


def _paced(per_second: float, seconds: float, send: Callable[[int], None]) -> Found:
    """Call `send` with numbers that count up."""
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * per_second:
            send(sent)
            sent += 1
        time.sleep(_SLICE_S)
    return {"sent": sent}


def _forged(given: argparse.Namespace, initials: Initials) -> Found:
    rng = random.Random(1)
    frames = [
        udp_frame(
            initials.first(),
            macs=bytes.fromhex(given.macs),
            hosts=(f"10.{rng.randrange(100, 200)}.{rng.randrange(256)}.{i % 254 + 1}", given.host),
            ports=(rng.randrange(1024, 65536), given.port),
        )
        for i in range(_PREPARED)
    ]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((given.interface, 0))
        print(flush=True)
        return _paced(given.per_second, given.seconds, lambda i: _send(out, frames[i % _PREPARED]))


def _send(out: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # the queue is full: that is a flood, too
        out.send(frame)


def _silent(given: argparse.Namespace, initials: Initials) -> Found:
    server = (given.host, given.port)
    packets = [initials.first() for _ in range(_PREPARED)]
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(given.ports)]
    poll = select.poll()
    by_fd = {each.fileno(): each for each in sockets}
    for each in sockets:
        each.setblocking(False)
        poll.register(each, select.POLLIN)
    again = 0

    def send(number: int) -> None:
        nonlocal again
        sockets[number % len(sockets)].sendto(packets[number % _PREPARED], server)
        for fd, _ in poll.poll(0):
            retry = read_retry(by_fd[fd].recv(2048))
            if retry is not None:
                by_fd[fd].sendto(initials.packet(retry.scid, retry.token), server)
                again += 1

    print(flush=True)
    return {**_paced(given.per_second, given.seconds, send), "with_token": again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("forged", "silent"))
    parser.add_argument("interface")
    parser.add_argument("macs", help="destination and source, 24 hexadecimal digits")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--per-second", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--ports", type=int, default=16, help="of the silent address")
    given = parser.parse_args()
    print(json.dumps({"forged": _forged, "silent": _silent}[given.kind](given, Initials(ALPN))))


if __name__ == "__main__":
    main()
