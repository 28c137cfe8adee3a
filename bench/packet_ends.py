"""Frames sent and received as programs do it: pyxdp.tools, AF_PACKET sockets, scapy.

The counterpart of bench/blast.py, which drives the rings themselves. A receiver has each packet's
bytes in Python, and a sender has them there before. Each role is a process, which prints JSON:
packets, and the seconds that they took, of `receive` from the first one on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from pyxdp.tools import Capture, Packet, at_once, replay

_ETH_P_ALL: Final = 0x0003
_BATCH: Final = 64  # packets between two looks at the clock
_PATIENCE_S: Final = 5
_HEADER: Final = bytes.fromhex("ffffffffffff 020000000001 88b5")


def _packet_socket(interface: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    raw.bind((interface, _ETH_P_ALL))
    raw.settimeout(_PATIENCE_S)
    return raw


def _scapy_socket(interface: str) -> Any:
    from scapy.arch.linux import L2Socket  # takes half a second

    return L2Socket(iface=interface)


# --- sending: endless, until the seconds are over ---


def _send_pyxdp(interface: str, frame: bytes, seconds: float) -> int:
    end_s = time.perf_counter() + seconds
    batch = [Packet(0, frame, len(frame))] * _BATCH

    def packets() -> Iterator[Packet]:
        while time.perf_counter() < end_s:
            yield from batch

    return replay(interface, packets(), at_once()).packets


def _send_all(send: Callable[[Any], object], frame: Any, seconds: float) -> int:
    end_s = time.perf_counter() + seconds
    sent = 0
    while time.perf_counter() < end_s:
        for _ in range(_BATCH):
            send(frame)
        sent += _BATCH
    return sent


def _send_af_packet(interface: str, frame: bytes, seconds: float) -> int:
    with _packet_socket(interface) as raw:
        return _send_all(raw.send, frame, seconds)


def _send_scapy(interface: str, frame: bytes, seconds: float) -> int:
    from scapy.layers.l2 import Ether

    return _send_all(_scapy_socket(interface).send, Ether(frame), seconds)


# --- receiving: how many packets came at each call ---


def _receive_pyxdp(interface: str) -> Iterator[int]:
    with Capture(interface) as capture:
        print("ready", file=sys.stderr, flush=True)
        while True:
            yield len(capture.wait(_PATIENCE_S))


def _receive_af_packet(interface: str) -> Iterator[int]:
    with _packet_socket(interface) as raw:
        print("ready", file=sys.stderr, flush=True)
        while True:
            raw.recv(65536)
            yield 1


def _receive_scapy(interface: str) -> Iterator[int]:
    raw = _scapy_socket(interface)
    print("ready", file=sys.stderr, flush=True)
    while True:
        yield int(raw.recv() is not None)


def _count(came: Iterator[int], seconds: float) -> tuple[int, float]:
    packets = next(came)
    start_s, took_s = time.perf_counter(), 0.0
    for number in itertools.count(1):
        count = next(came)
        if not count:
            sys.exit("packet_ends: nothing comes")
        packets += count
        if number % _BATCH == 0 or count > 1:
            took_s = time.perf_counter() - start_s
            if took_s > seconds:
                break
    return packets, took_s


_SENDERS: Final = {"pyxdp": _send_pyxdp, "AF_PACKET": _send_af_packet, "scapy": _send_scapy}
_RECEIVERS: Final = {
    "pyxdp": _receive_pyxdp,
    "AF_PACKET": _receive_af_packet,
    "scapy": _receive_scapy,
}
#: By way: what programs use.
WAYS: Final = tuple(_SENDERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["send", "receive"])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("interface")
    parser.add_argument("--size", type=int, required=True, help="of a frame, in bytes")
    parser.add_argument("--seconds", type=float, required=True)
    wanted = parser.parse_args()
    if wanted.role == "send":
        frame, seconds = _HEADER.ljust(wanted.size, b"\x5a"), wanted.seconds
        packets = _SENDERS[wanted.way](wanted.interface, frame, seconds)
    else:
        packets, seconds = _count(_RECEIVERS[wanted.way](wanted.interface), wanted.seconds)
    print(json.dumps({"packets": packets, "seconds": seconds}))


if __name__ == "__main__":
    main()
