"""Sends every IPv4 UDP packet back to its sender: udp_reflector.py IFACE [QUEUE]."""

import select
import sys
from importlib.resources import files

from pyxdp import Program, Socket, Umem


def turned_round(packet: bytes) -> bytes:
    """Swap source and destination: MAC addresses, IP addresses and ports. No checksum changes."""
    macs, addresses, ports = packet[6:12] + packet[:6], packet[30:34] + packet[26:30], packet[34:38]
    return macs + packet[12:26] + addresses + ports[2:] + ports[:2] + packet[38:]


def main(interface: str, queue: str = "0") -> None:
    program = Program.load(files("pyxdp").joinpath("redirect.bpf.o").read_bytes())
    with program, Umem(4096) as umem, Socket(umem, interface, int(queue)) as socket:
        program.attach(interface)
        program.maps["sockets"].update(int(queue), socket.fd)
        print(f"reflecting UDP on queue {queue} of {interface}; Ctrl-C ends it", flush=True)
        while select.select([socket], [], []):
            received, answers, count = socket.rx_burst(), socket.tx_alloc(), 0
            for packet in map(bytes, received):
                if packet[12:15] == b"\x08\x00\x45" and packet[23:24] == b"\x11":
                    answers.write(count, turned_round(packet))
                    count += 1
            socket.rx_release(received)
            socket.tx_send(answers, count)
            socket.tx_release(answers)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except (OSError, TypeError) as error:
        sys.exit(f"udp_reflector: {error}")
