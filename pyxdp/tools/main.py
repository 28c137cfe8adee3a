"""The `pyxdp` command: capture, replay, count."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import BinaryIO, Final

from pyxdp.tools.capture import MOST_SNAP_BYTES, Capture
from pyxdp.tools.filters import FilterError
from pyxdp.tools.flows import FlowCounter, describe_flow
from pyxdp.tools.packets import Packet, PcapngWriter, read_packets
from pyxdp.tools.replay import Pace, as_recorded, at_bits, at_once, at_packets, replay

_USAGE: Final = 2
_INTERRUPTED: Final = 130  # as shells report a program that SIGINT ended
_UNITS: Final = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
_FILTER_HELP: Final = (
    "which packets: ip, ip6, arp, tcp, udp, sctp, icmp, icmp6, [src|dst] host IP, net IP/LENGTH, "
    "port NUMBER; with and, or, not and parentheses, as in pcap-filter(7)"
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; its result's `run` does the work."""
    parser = argparse.ArgumentParser(
        prog="pyxdp", description="Capture, replay and count packets with XDP and AF_XDP."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_capture(commands)
    _add_replay(commands)
    _add_count(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0 success, 1 failure, 2 usage."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except FilterError as error:
        print(f"pyxdp: {error}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; flushing the rest must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"pyxdp: {what or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"pyxdp: {error}", file=sys.stderr)
        return 1
    return status


_Commands = argparse._SubParsersAction  # what add_subparsers returns has no public name


def _add(
    commands: _Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.add_argument("-i", "--interface", required=True, help="as `ip link` lists it")
    parser.set_defaults(run=run)
    return parser


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("filter", nargs="*", metavar="FILTER", help=_FILTER_HELP)
    parser.add_argument(
        "--mode",
        choices=("auto", "native", "generic"),
        default="auto",
        help="of the XDP program: in the driver, or in the kernel for any driver (default: auto)",
    )


def _number(least: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise ValueError(text)
        return value

    parse.__name__ = "number"  # argparse says: invalid number value
    return parse


# --- capture ---


def _add_capture(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "capture", _capture, "copy the packets that an interface receives into a file"
    )
    _add_filter(parser)
    parser.add_argument(
        "-w",
        "--write",
        metavar="FILE",
        help="a pcapng file, - for standard output; without it, print a line a packet",
    )
    parser.add_argument(
        "-c", "--count", type=_number(1, int), metavar="N", help="end after so many packets"
    )
    parser.add_argument(
        "-s",
        "--snap-bytes",
        type=_number(1, int),
        default=MOST_SNAP_BYTES,
        metavar="N",
        help=f"the most bytes of a packet (default: {MOST_SNAP_BYTES})",
    )


def _capture(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        source = stack.enter_context(
            Capture(
                options.interface,
                " ".join(options.filter),
                snap_bytes=options.snap_bytes,
                mode=options.mode,
            )
        )
        writer: PcapngWriter | None = None
        if options.write:
            file = stack.enter_context(_output(options.write))
            writer = PcapngWriter(file, options.interface, options.snap_bytes)
        _note(f"capturing on {options.interface} in {source.mode} mode; Ctrl-C ends it")
        captured = 0
        try:
            while options.count is None or captured < options.count:
                for packet in source.wait():
                    if captured == options.count:
                        break
                    captured += 1
                    if writer is None:
                        print(_line(packet))
                    else:
                        writer.write(packet)
                (sys.stdout if writer is None else file).flush()
        except KeyboardInterrupt:
            pass
        if writer is not None:
            writer.write_statistics(time.time_ns(), source.lost)
        _note(f"{captured} packets captured, {source.lost} lost")
    return 0


def _output(name: str) -> BinaryIO:
    """The file to write, or standard output, which must not be closed."""
    return open(name if name != "-" else os.dup(sys.stdout.fileno()), "wb")


def _line(packet: Packet) -> str:
    seconds, rest_ns = divmod(packet.time_ns, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return (
        f"{clock}.{rest_ns // 1000:06} {describe_flow(packet.flow_key)} {packet.length_bytes} bytes"
    )


def _note(text: str) -> None:
    print(f"pyxdp: {text}", file=sys.stderr, flush=True)


# --- replay ---


def _add_replay(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "replay", _replay, "send the packets of a pcap or pcapng file")
    parser.add_argument("file", metavar="FILE", help="- for standard input")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--pps", type=_rate, metavar="N", help="packets a second, as 1000 or 1.5k")
    rate.add_argument("--bps", type=_rate, metavar="N", help="bits a second, as 100M or 1G")
    rate.add_argument("--top-speed", action="store_true", help="as fast as possible")
    parser.add_argument(
        "--loop", type=_number(1, int), default=1, metavar="N", help="so many times (default: 1)"
    )
    parser.add_argument(
        "--queue", type=_number(0, int), default=0, metavar="N", help="of the interface"
    )
    parser.epilog = "Without a rate, the packets are as far apart as they were captured."


def _rate(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kMG]?)", text)
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a rate is a number, as 1000, 1.5k, 100M, not {text!r}")
    return value


def _replay(options: argparse.Namespace) -> int:
    with _input(options.file) as file:
        packets = list(read_packets(file, options.file))
    packets, shortened = packets * options.loop, sum(len(p.data) < p.length_bytes for p in packets)
    if shortened:
        _note(f"{shortened} packets were cut short by the capture, and are sent so")
    sent = replay(options.interface, packets, _pace(options), queue=options.queue)
    rates = ""
    if sent.seconds:
        bits_per_s = sent.size_bytes * 8 / sent.seconds
        rates = f": {sent.packets / sent.seconds:.0f} packets/s, {bits_per_s / 1e6:.3f} Mbit/s"
    _note(f"{sent.packets} packets, {sent.size_bytes} bytes in {sent.seconds:.3f} s{rates}")
    return 0


def _input(name: str) -> BinaryIO:
    return open(name if name != "-" else os.dup(sys.stdin.fileno()), "rb")


def _pace(options: argparse.Namespace) -> Pace:
    if options.pps is not None:
        return at_packets(options.pps)
    if options.bps is not None:
        return at_bits(options.bps)
    return at_once() if options.top_speed else as_recorded()


# --- count ---


def _add_count(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "count", _count, "count the packets that an interface receives, by five-tuple"
    )
    _add_filter(parser)
    parser.add_argument(
        "--every",
        type=_number(0.01, float),
        default=1.0,
        metavar="SECONDS",
        help="between two tables (default: 1)",
    )
    parser.add_argument(
        "--times", type=_number(1, int), metavar="N", help="end after so many tables"
    )
    parser.add_argument(
        "--top",
        type=_number(1, int),
        default=10,
        metavar="N",
        help="so many flows, those with the most packets (default: 10)",
    )


def _count(options: argparse.Namespace) -> int:
    with FlowCounter(options.interface, " ".join(options.filter), mode=options.mode) as counter:
        _note(f"counting on {options.interface} in {counter.mode} mode; Ctrl-C ends it")
        tables = 0
        while options.times is None or tables < options.times:
            time.sleep(options.every)
            tables += 1
            flows = counter.flows()
            packets = sum(flow.packets for flow in flows)
            print(f"{len(flows)} flows, {packets} packets")
            for flow in flows[: options.top]:
                print(f"{flow.packets:>12} packets {flow.size_bytes:>14} bytes  {flow}")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
