"""Raw AF_XDP without QUIC: frames as large as the MTU, sent without end, received and dropped.

What a transport over the same rings and the same veth can reach at most. This is the receiver; the
sender is `pyxdp_pps.py --feed`. Prints JSON: the seconds between the first packet and the last.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from typing import Final

from bench.pyxdp_pps import BURST, FRAMES, frame_bytes, load_redirect
from pyxdp import Socket, Umem, WantedMode

#: Without a packet for so long, the sender has gone.
_PATIENCE_MS: Final = 5000


def receive(interface: str, mode: WantedMode, size_bytes: int, packets: int) -> tuple[int, float]:
    """Receive and drop so many packets: how many came, and the seconds that it took."""
    received = 0
    with (
        load_redirect() as program,
        Umem(FRAMES, frame_bytes(size_bytes)) as umem,
        Socket(umem, interface) as socket,
    ):
        program.attach(interface, mode)
        program.maps["sockets"].update(0, socket.fd)
        readable = select.poll()
        readable.register(socket, select.POLLIN)
        print("ready", file=sys.stderr, flush=True)
        start = 0.0
        while received < packets:
            burst = socket.rx_burst(BURST)
            if burst.count:
                start = start or time.perf_counter()
                received += len(burst)
                socket.rx_release(burst)
            elif not readable.poll(_PATIENCE_MS):
                sys.exit("blast: nothing comes")
        return received, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("interface")
    parser.add_argument("mode", choices=["auto", "native", "generic"])
    parser.add_argument("size_bytes", type=int)
    parser.add_argument("packets", type=int)
    wanted = parser.parse_args()
    received, seconds = receive(wanted.interface, wanted.mode, wanted.size_bytes, wanted.packets)
    print(json.dumps({"packets": received, "seconds": seconds}))


if __name__ == "__main__":
    main()
