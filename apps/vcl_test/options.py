"""The client's command line: VPP's options."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from apps.vcl_test.stats import LINE
from hoststack import parse_size, vcl

#: VPP's default.
DEFAULT_PORT: Final = 22000
LEAST_BUFFER_BYTES: Final = 128
_MOST_BUFFER_BYTES: Final = 64 << 20
_TESTS: Final = ("none", "echo", "uni", "bi")


@dataclass
class Options:
    """What to run; the interactive prompt changes it between tests."""

    proto: str = "tcp"
    host: str = ""
    port: int = 0
    test: str = ""
    """ "uni", "bi", "echo"; empty: ask at the prompt."""
    text: str = ""
    """The text that `echo` sends."""
    sessions: int = 1
    per_connection: int = 1
    writes: int = 1_000_000
    txbuf_bytes: int = 8192
    rxbuf_bytes: int = 64 * 8192
    bytes: int | None = None
    workers: int = 1
    is_verbose: bool = False
    shows_config: bool = False
    shows_increments: bool = False
    exits: bool = False
    is_interactive: bool = False
    is_json: bool = False

    def lines(self) -> Iterator[str]:
        """Return lines as VPP's vcl_test_cfg_dump prints them."""
        test = self.test or "none"
        key = {"uni": "'#U'", "bi": "'#B'"}.get(test, "")
        size = self.session_bytes
        yield "  test config:"
        yield LINE
        yield _line(key, "test", f"{test.upper()} ({_TESTS.index(test)})")
        yield _number("'#I:'", "num test sockets", self.sessions)
        yield _line("'#V'", "verbose", "on (1)" if self.is_verbose else "off (0)")
        yield _number("'#R:'", "rxbuf size", self.rxbuf_bytes)
        yield _number("'#T:'", "txbuf size", self.txbuf_bytes)
        yield _number("'#N:'", "num writes", -(-size // self.txbuf_bytes))
        yield _number("", "client tx bytes", size)
        yield LINE

    @property
    def session_bytes(self) -> int:
        """The number of bytes that each session sends."""
        return self.writes * self.txbuf_bytes if self.bytes is None else self.bytes


def _line(key: str, name: str, value: str) -> str:
    return f"{key:<5}{name:>17}:  {value}"


def _number(key: str, name: str, value: int) -> str:
    return _line(key, name, f"{value} (0x{value:08x})")


class OptionError(ValueError):
    """An invalid value; the message says why."""


def number(text: str, least: int, most: int) -> int:
    """Parse a decimal or hexadecimal number; raises OptionError."""
    try:
        value = parse_size(text)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise OptionError(f"{text!r} is not a number from {least} to {most}")
    return value


def buffer_bytes(text: str) -> int:
    """Parse a buffer's size; raises OptionError."""
    return number(text, LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES)


def parse(words: Sequence[str] | None) -> Options:
    """Parse a command line; exits with status 2 if it is invalid."""
    parser = argparse.ArgumentParser(
        prog="vcl_test_client",
        description="Runs VPP's test of VCL against a vcl_test_server.",
    )
    add = parser.add_argument
    add("-p", dest="proto", metavar="PROTO", default="TCP", help="QUIC, UDP or TCP")
    add("-6", dest="is_ipv6", action="store_true", help="HOST is an IPv6 address")
    add("-s", dest="sessions", metavar="N", default="1", help="test sessions")
    add("-q", dest="per_connection", metavar="N", default="1", help="QUIC: streams a connection")
    add("-N", dest="writes", metavar="N", default="1000000", help="writes of each session")
    add("-R", dest="rxbuf_bytes", metavar="BYTES", default="524288", help="read buffer")
    add("-T", dest="txbuf_bytes", metavar="BYTES", default="8192", help="write buffer")
    add("-b", dest="bytes", metavar="BYTES", help="of each session, in place of -N writes: 1G")
    add("-U", dest="uni", action="store_true", help="send, half duplex")
    add("-B", dest="bi", action="store_true", help="send and get it back, full duplex")
    add("-E", dest="text", metavar="TEXT", help="send this text, and show the echo")
    add("-w", dest="workers", metavar="N", default="1", help="threads, each with its sessions")
    add("-X", dest="exits", action="store_true", help="exit after the test")
    add("-I", dest="is_interactive", action="store_true", help="ask what to do next, after it")
    add("-V", dest="is_verbose", action="store_true", help="the results of each session, too")
    add("-c", dest="shows_config", action="store_true", help="show the test's settings first")
    add("-S", dest="shows_increments", action="store_true", help="what is sent in each second")
    add("--json", dest="is_json", action="store_true", help="results as one line of JSON")
    add("host", metavar="HOST")
    add("port", metavar="PORT", nargs="?", default=str(DEFAULT_PORT))
    given = parser.parse_args(words)
    try:
        return _checked(given)
    except OptionError as error:
        parser.error(str(error))


def _checked(given: argparse.Namespace) -> Options:
    if given.proto.lower() not in ("quic", "udp", "tcp"):
        raise OptionError(f"-p {given.proto}: use QUIC, UDP or TCP")
    if sum((given.uni, given.bi, given.text is not None)) > 1:
        raise OptionError("-U, -B and -E are one test each: give one of them")
    if given.is_ipv6:
        try:
            ipaddress.IPv6Address(given.host)
        except ValueError:
            raise OptionError(f"-6: {given.host!r} is not an IPv6 address") from None
    kind = "echo" if given.text is not None else "bi" if given.bi else "uni" if given.uni else ""
    options = Options(
        proto=given.proto.lower(),
        host=given.host,
        port=number(given.port, 1, 65534),
        test=kind,
        text=given.text or "",
        sessions=number(given.sessions, 1, 65536),
        per_connection=number(given.per_connection, 1, vcl.STREAMS_PER_CONNECTION),
        writes=number(given.writes, 1, 1 << 40),
        txbuf_bytes=buffer_bytes(given.txbuf_bytes),
        rxbuf_bytes=buffer_bytes(given.rxbuf_bytes),
        bytes=None if given.bytes is None else number(given.bytes, 1, 1 << 50),
        workers=number(given.workers, 1, 64),
        is_verbose=given.is_verbose,
        shows_config=given.shows_config,
        shows_increments=given.shows_increments,
        exits=given.exits,
        is_interactive=given.is_interactive,
        is_json=given.is_json,
    )
    if options.text and not options.text.strip():
        raise OptionError("-E: give a text to send")
    if options.workers > options.sessions:
        raise OptionError("-w: no more workers than sessions (-s)")
    if not options.test and options.exits:
        raise OptionError("-X: there is no test to exit after: give -U, -B or -E")
    return options
