"""Packets per second of pyxdp over a veth pair of its own: transmit, and receive and drop.

Bursts of 64 a call. The sender writes every frame's bytes once, the receiver looks at descriptors
and not at bytes: what is measured is the rings. `transmit` counts what left, and the far end's
kernel throws it away; `receive` is fed by a second process.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final

from pyxdp import Program, Socket, Umem

BURST: Final = 64
FRAMES: Final = 4096
HEADER: Final = bytes.fromhex("ffffffffffff 020000000001 88b5")
_CLONE_NEWNET: Final = 0x40000000


@contextlib.contextmanager
def veth_pair(mtu_bytes: int) -> Iterator[tuple[str, str]]:
    """Two joined interfaces in a network namespace that this process is moved into."""
    name = f"pyxdp-bench-{os.getpid()}"
    with contextlib.ExitStack() as undo:
        ip("netns", "add", name)
        undo.callback(ip, "netns", "del", name)
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        undo.callback(os.close, home)
        new = os.open(f"/run/netns/{name}", os.O_RDONLY)
        undo.callback(os.close, new)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(new, _CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "cannot enter a network namespace")
        undo.callback(libc.setns, home, _CLONE_NEWNET)
        ip("link", "add", "left", "type", "veth", "peer", "name", "right")
        for side in ("left", "right"):
            ip("link", "set", side, "addrgenmode", "none")
            ip("link", "set", side, "mtu", str(mtu_bytes), "up")
        yield "left", "right"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def frame_bytes(size_bytes: int) -> int:
    """A UMEM frame that holds a packet of that size behind the kernel's headroom of 256 bytes."""
    return 2048 if size_bytes <= 2048 - 256 else 4096


def load_redirect() -> Program:
    return Program.load(files("pyxdp").joinpath("redirect.bpf.o").read_bytes())


def transmit(interface: str, size_bytes: int, seconds: float) -> int:
    """Send for that long, or until killed if `seconds` is 0; how many packets left."""
    packet = HEADER.ljust(size_bytes, b"\x5a")
    sent = 0
    with (
        Umem(FRAMES, frame_bytes(size_bytes)) as umem,
        Socket(umem, interface, fill_frames=0) as socket,
    ):
        for start in range(0, umem.size_bytes, umem.frame_bytes):
            umem.area[start : start + size_bytes] = packet
        writable = select.poll()
        writable.register(socket, select.POLLOUT)
        end = time.monotonic() + seconds
        while not seconds or time.monotonic() < end:
            burst = socket.tx_alloc(BURST)
            for index in range(len(burst)):
                burst.descs[index].len = size_bytes
            sent += socket.tx_send(burst)
            socket.tx_release(burst)
            if socket.kick():
                writable.poll(10)
        return sent


def receive(interface: str, mode: str, size_bytes: int, seconds: float) -> int:
    """Receive and drop for that long what another process sends; how many packets came."""
    received = 0
    feeder = [sys.executable, __file__, "--feed", "left", "--size", str(size_bytes)]
    with load_redirect() as program, Umem(FRAMES) as umem, Socket(umem, interface) as socket:
        program.attach(interface, "native" if mode == "native" else "generic")
        program.maps["sockets"].update(0, socket.fd)
        readable = select.poll()
        readable.register(socket, select.POLLIN)
        with subprocess.Popen(feeder) as child:
            try:
                readable.poll()
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    burst = socket.rx_burst(BURST)
                    received += len(burst)
                    if burst.count:
                        socket.rx_release(burst)
                    else:
                        readable.poll(10)
            finally:
                child.kill()
        return received


def measure(seconds: float) -> list[dict[str, Any]]:
    """All combinations of direction, mode and packet size."""
    rows = []
    for size_bytes, mtu_bytes in ((64, 1500), (1514, 1500)):
        for mode in ("native", "generic"):
            with veth_pair(mtu_bytes) as (left, right):
                received = receive(right, mode, size_bytes, seconds)
                with load_redirect() as program:
                    # No socket is in its map, so that everything goes on to the kernel,
                    # which has no use for it.
                    program.attach(right, "native" if mode == "native" else "generic")
                    sent = transmit(left, size_bytes, seconds)
            for what, packets in (("receive", received), ("transmit", sent)):
                rows.append(
                    {
                        "what": what,
                        "mode": mode,
                        "packet_bytes": size_bytes,
                        "packets_per_second": round(packets / seconds),
                        "gbit_per_second": round(packets * size_bytes * 8 / seconds / 1e9, 3),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--feed", metavar="IFACE", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=64, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.feed:
        transmit(wanted.feed, wanted.size, 0)
        return
    if os.geteuid() != 0:
        sys.exit("pyxdp_pps: needs root: it makes a network namespace and attaches XDP programs")
    rows = measure(wanted.seconds)
    print(f"{'':10}{'mode':10}{'bytes':>6}{'packets/s':>12}{'Gbit/s':>9}")
    for row in rows:
        print(
            f"{row['what']:10}{row['mode']:10}{row['packet_bytes']:>6}"
            f"{row['packets_per_second']:>12,}{row['gbit_per_second']:>9.2f}"
        )
    if wanted.json:
        with open(wanted.json, "w", encoding="utf-8") as out:
            json.dump({"benchmark": "pyxdp_pps", "rows": rows}, out, indent=2)


if __name__ == "__main__":
    main()
