"""Sends the packets of a pcap or pcapng file: replay.py IFACE FILE PACKETS_PER_SECOND."""

import sys

from pyxdp.tools import at_packets, read_packets, replay


def main(interface: str, path: str, packets_per_s: str) -> None:
    with open(path, "rb") as file:
        sent = replay(interface, read_packets(file, path), at_packets(float(packets_per_s)))
    print(f"{sent.packets} packets in {sent.seconds:.3f} s")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"replay: {error}")
