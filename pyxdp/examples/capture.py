"""Captures what an interface receives into a pcapng file: capture.py IFACE FILE [FILTER]."""

import sys

from pyxdp.tools import Capture, PcapngWriter


def main(interface: str, path: str, *words: str) -> None:
    with Capture(interface, " ".join(words)) as capture, open(path, "wb", 0) as file:
        print(f"capturing on {interface}; Ctrl-C ends it", flush=True)
        writer = PcapngWriter(file, interface)
        while True:
            for packet in capture.wait():
                writer.write(packet)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"capture: {error}")
