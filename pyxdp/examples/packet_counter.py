"""Counts the packets that an interface receives, once a second: packet_counter.py IFACE."""

import sys
import time
from importlib.resources import files

from pyxdp import Program


def main(interface: str) -> None:
    with Program.load(files("pyxdp").joinpath("count.bpf.o").read_bytes()) as program:
        link = program.attach(interface)
        print(f"counting on {interface} in {link.mode} mode; Ctrl-C ends it", flush=True)
        counters = program.maps["counters"]
        while True:
            packets, size_bytes = counters.sum_per_cpu(0), counters.sum_per_cpu(1)
            print(f"{packets} packets, {size_bytes} bytes", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except (OSError, TypeError) as error:
        sys.exit(f"packet_counter: {error}")
