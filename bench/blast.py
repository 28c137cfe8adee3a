"""Raw AF_XDP without QUIC: frames sent without end, received and dropped.

What a transport over the same rings and the same veth pair can reach at most. Bursts of 64 a call.
The sender writes every frame's bytes once, the receiver looks at descriptors and not at bytes: what
is measured is the rings. Each role is a process; both print JSON: packets, and the seconds they
took, of `receive` from the first one on.
"""

from __future__ import annotations

import argparse
import json
import math
import select
import sys
import time
from importlib.resources import files
from typing import Final

from pyxdp import Program, Socket, Umem, WantedMode

_BURST: Final = 64
_FRAMES: Final = 4096
_HEADER: Final = bytes.fromhex("ffffffffffff 020000000001 88b5")
#: Without a packet for so long, the sender has gone.
_PATIENCE_MS: Final = 5000


def _frame_bytes(size_bytes: int) -> int:
    """A UMEM frame that holds a packet of that size behind the kernel's headroom of 256 bytes."""
    return 2048 if size_bytes <= 2048 - 256 else 4096


def load_redirect() -> Program:
    """The program that gives a queue's packets to its socket, and those of others to the kernel."""
    return Program.load(files("pyxdp").joinpath("redirect.bpf.o").read_bytes())


def send(interface: str, size_bytes: int, seconds: float) -> tuple[int, float]:
    """Send for that long."""
    packet = _HEADER.ljust(size_bytes, b"\x5a")
    sent = 0
    with (
        Umem(_FRAMES, _frame_bytes(size_bytes)) as umem,
        Socket(umem, interface, fill_frames=0) as socket,
    ):
        for start in range(0, umem.size_bytes, umem.frame_bytes):
            umem.area[start : start + size_bytes] = packet
        writable = select.poll()
        writable.register(socket, select.POLLOUT)
        print("ready", file=sys.stderr, flush=True)
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < seconds:
            burst = socket.tx_alloc(_BURST)
            for index in range(len(burst)):
                burst.descs[index].len = size_bytes
            sent += socket.tx_send(burst)
            socket.tx_release(burst)
            if socket.kick():
                writable.poll(10)
        return sent, time.perf_counter() - start_s


def receive(
    interface: str, mode: WantedMode, size_bytes: int, packets: float, seconds: float
) -> tuple[int, float]:
    """Receive and drop, until so many packets came, or so long after the first one."""
    received = 0
    with (
        load_redirect() as program,
        Umem(_FRAMES, _frame_bytes(size_bytes)) as umem,
        Socket(umem, interface) as socket,
    ):
        program.attach(interface, mode)
        program.maps["sockets"].update(0, socket.fd)
        readable = select.poll()
        readable.register(socket, select.POLLIN)
        print("ready", file=sys.stderr, flush=True)
        start_s = took_s = 0.0
        while received < packets and took_s < seconds:
            burst = socket.rx_burst(_BURST)
            if burst.count:
                start_s = start_s or time.perf_counter()
                received += len(burst)
                socket.rx_release(burst)
                took_s = time.perf_counter() - start_s
            elif not readable.poll(_PATIENCE_MS):
                sys.exit("blast: nothing comes")
        return received, took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["send", "receive"])
    parser.add_argument("interface")
    parser.add_argument("--size", type=int, required=True, help="of a frame, in bytes")
    parser.add_argument("--mode", choices=["auto", "native", "generic"], default="auto")
    parser.add_argument("--packets", type=int, default=math.inf)
    parser.add_argument("--seconds", type=float, default=math.inf)
    wanted = parser.parse_args()
    where = (wanted.interface, wanted.mode, wanted.size)
    packets, seconds = (
        send(wanted.interface, wanted.size, wanted.seconds)
        if wanted.role == "send"
        else receive(*where, wanted.packets, wanted.seconds)
    )
    print(json.dumps({"packets": packets, "seconds": seconds}))


if __name__ == "__main__":
    main()
