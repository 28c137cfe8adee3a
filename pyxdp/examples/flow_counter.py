"""Counts received packets by five-tuple, once a second: flow_counter.py IFACE [FILTER]."""

import sys
import time

from pyxdp.tools import FlowCounter


def main(interface: str, *words: str) -> None:
    with FlowCounter(interface, " ".join(words)) as counter:
        print(f"counting on {interface}; Ctrl-C ends it", flush=True)
        while True:
            for flow in counter.flows():
                print(f"{flow}: {flow.packets} packets, {flow.size_bytes} bytes", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"flow_counter: {error}")
