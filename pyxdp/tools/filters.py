"""Filters: a subset of pcap-filter(7), compiled into the table that pyxdp/packet.bpf.h runs.

expression  = unary { ("and" | "or") unary }        from left to right, as in pcap-filter
unary       = "not" unary | "(" expression ")" | primitive
primitive   = kind [ address ] | address
kind        = "ip" | "ip6" | "arp" | "tcp" | "udp" | "sctp" | "icmp" | "icmp6"
address     = [ "src" | "dst" ] ( "host" IP | "net" IP/LENGTH | "port" NUMBER | IP )
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final, NamedTuple

from pyxdp.program import Program

# pyxdp/packet.bpf.h
_MOST_TESTS: Final = 32
_PART_BYTES: Final = 16
_SOURCE, _DESTINATION, _REST = 0, 1, 2
_ACCEPT: Final = 0
_REJECT: Final = 255
_TEST: Final = struct.Struct("=16s16sIBBxx")
# The third part of a flow: ethertype, source port, destination port, protocol, has_ports
_REST_LAYOUT: Final = struct.Struct(">HHHBB8x")

_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_ETHERTYPES: Final = {"ip": _IPV4, "ip6": _IPV6, "arp": 0x0806}
_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
_DIRECTIONS: Final = ("src", "dst")
_ADDRESSES: Final = ("host", "net", "port")
_AND: Final = ("and", "&&")
_OR: Final = ("or", "||")
_NOT: Final = ("not", "!")
_TOKEN: Final = re.compile(r"&&|\|\||[!()]|[^\s!()&|]+|\S")

_WORDS: Final = ", ".join((*_ETHERTYPES, *_PROTOCOLS, *_DIRECTIONS, *_ADDRESSES, "and, or, not"))


class FilterError(ValueError):
    """A filter that can't be compiled; the message has it, and what is wrong."""


class _Test(NamedTuple):
    """16 bytes of the flow under a mask are equal to a value."""

    part: int
    mask: bytes
    value: bytes


class _Not(NamedTuple):
    inner: _Node


class _Both(NamedTuple):
    left: _Node
    right: _Node
    is_and: bool


_Node = _Test | _Not | _Both


def compile_filter(expression: str) -> list[bytes]:
    """Return the entries of the filter's table; none for an empty one, which accepts all.

    Raises FilterError.
    """
    parser = _Parser(expression)
    if not parser.ahead:
        return []
    table = _Table()
    try:
        table.add(parser.whole(), _Jump(_ACCEPT), _Jump(_REJECT))
    except RecursionError:
        raise FilterError("the filter is nested too deeply") from None
    if len(table.tests) > _MOST_TESTS:
        raise FilterError(
            f"filter {expression!r} takes {len(table.tests)} comparisons, and at most "
            f"{_MOST_TESTS} are possible"
        )
    return table.entries()


def load_filter(program: Program, expression: str) -> None:
    """Set the filter of a program with packet.bpf.h's table. Raises FilterError."""
    for number, entry in enumerate(compile_filter(expression)):
        program.maps["filter"].update(number, entry)


class _Jump(NamedTuple):
    """Where a result leads: accept, reject, or a test by its number from the end of the table."""

    target: int
    is_test: bool = False


class _Table:
    """The tests from the last to the first: each knows those that follow it."""

    def __init__(self) -> None:
        self.tests: list[tuple[_Test, _Jump, _Jump]] = []

    def add(self, node: _Node, if_true: _Jump, if_false: _Jump) -> _Jump:
        """Add the tests of a node; return the jump to its first one."""
        match node:
            case _Not(inner):
                return self.add(inner, if_false, if_true)
            case _Both(left, right, is_and):
                second = self.add(right, if_true, if_false)
                if is_and:
                    return self.add(left, second, if_false)
                return self.add(left, if_true, second)
            case _Test():
                self.tests.append((node, if_true, if_false))
                return _Jump(len(self.tests) - 1, is_test=True)

    def entries(self) -> list[bytes]:
        last = len(self.tests) - 1

        def number(jump: _Jump) -> int:
            return last - jump.target if jump.is_test else jump.target

        return [
            _TEST.pack(test.mask, test.value, test.part, number(if_true), number(if_false))
            for test, if_true, if_false in reversed(self.tests)
        ]


class _Parser:
    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = _TOKEN.findall(expression)
        self._next = 0

    @property
    def ahead(self) -> str:
        """The next token; "" at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self.ahead
        self._next += 1
        return token

    def _error(self, what: str) -> FilterError:
        return FilterError(f"filter {self._expression!r}: {what}")

    def whole(self) -> _Node:
        node = self._expression_node()
        if self.ahead:
            raise self._error(f"'and' or 'or' is missing before {self.ahead!r}")
        return node

    def _expression_node(self) -> _Node:
        node = self._unary()
        while self.ahead in (*_AND, *_OR):
            is_and = self._take() in _AND
            node = _Both(node, self._unary(), is_and)
        return node

    def _unary(self) -> _Node:
        if self.ahead in _NOT:
            self._take()
            return _Not(self._unary())
        if self.ahead == "(":
            self._take()
            node = self._expression_node()
            if self._take() != ")":
                raise self._error("')' is missing")
            return node
        return self._primitive()

    def _primitive(self) -> _Node:
        if self.ahead not in _ETHERTYPES and self.ahead not in _PROTOCOLS:
            return self._address()
        kind = self._take()
        if kind in _ETHERTYPES:
            test = _rest(ethertype=_ETHERTYPES[kind])
        else:
            test = _rest(protocol=_PROTOCOLS[kind])
        if self.ahead in _DIRECTIONS or self.ahead in _ADDRESSES:
            return _Both(test, self._address(), is_and=True)
        return test

    def _address(self) -> _Node:
        direction = self._take() if self.ahead in _DIRECTIONS else ""
        kind = self._take() if self.ahead in _ADDRESSES else ""
        text = self._take()
        if not text:
            raise self._error("it ends where something has to follow")
        tests = self._port(text) if kind == "port" else self._network(text, kind)
        if direction:
            return tests[_DIRECTIONS.index(direction)]
        return _Both(*tests, is_and=False)

    def _port(self, text: str) -> tuple[_Node, _Node]:
        if not text.isascii() or not text.isdigit() or int(text) > 0xFFFF:
            raise self._error(f"a port is a number up to 65535, not {text!r}")
        return _rest(source_port=int(text)), _rest(destination_port=int(text))

    def _network(self, text: str, kind: str) -> tuple[_Node, _Node]:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            if kind:
                form = "an address and its length, as 10.0.0.0/8" if kind == "net" else "an address"
                raise self._error(f"{kind} takes {form}, not {text!r}") from None
            raise self._error(f"{text!r} is none of {_WORDS}, or an IP address") from None
        if kind != "net" and network.num_addresses > 1:
            raise self._error(f"{text!r} is a network: write 'net' before it")
        value, mask = network.network_address.packed, network.netmask.packed
        if network.version == 4:
            value, mask = bytes(10) + b"\xff\xff" + value, b"\xff" * 12 + mask
            return _Test(_SOURCE, mask, value), _Test(_DESTINATION, mask, value)
        family = _rest(ethertype=_IPV6)
        return (
            _Both(family, _Test(_SOURCE, mask, value), is_and=True),
            _Both(family, _Test(_DESTINATION, mask, value), is_and=True),
        )


def _rest(
    *,
    ethertype: int | None = None,
    source_port: int | None = None,
    destination_port: int | None = None,
    protocol: int | None = None,
) -> _Test:
    """Return the test of a flow's third part, of the fields that are given."""
    has_ports = None if source_port is None and destination_port is None else 1
    fields = (ethertype, source_port, destination_port, protocol, has_ports)
    widths = (0xFFFF, 0xFFFF, 0xFFFF, 0xFF, 0xFF)
    mask = (0 if field is None else width for field, width in zip(fields, widths, strict=True))
    return _Test(
        _REST, _REST_LAYOUT.pack(*mask), _REST_LAYOUT.pack(*(each or 0 for each in fields))
    )
