"""The command line: words as VPP's program has them, in any order."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from apps.quic_echo.events import Event
from apps.quic_echo.sizes import parse_size

LinkWord = Literal["auto", "af_xdp", "udp"]
ModeWord = Literal["auto", "native", "generic"]
DEFAULT_TX_BYTES = 64 << 10


class UsageError(ValueError):
    """A command line that means nothing; the message says what to write instead."""


class Close(Enum):
    """Who says that a stream or connection is over."""

    SEND = "Y"
    NOT = "N"
    WAIT = "W"


class Check(Enum):
    """What `test-bytes` does with received bytes."""

    OFF = "off"
    REPORT = "report"
    ASSERT = "assert"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for. Sizes are in bytes; None means that it was not said."""

    is_server: bool
    uri: str
    interface: str | None = None
    link: LinkWord = "udp"
    mode: ModeWord = "auto"
    connections: int | None = None
    streams: int = 1
    tx_bytes: int | None = None
    """What each stream sends; None sends back what comes (TX=RX)."""
    rx_bytes: int | None = None
    """What each stream expects; None takes what comes, up to the end of the stream."""
    check: Check = Check.OFF
    fifo_bytes: int | None = None
    rx_buf_bytes: int = 256 << 10
    tx_buf_bytes: int = 256 << 10
    is_unidirectional: bool = False
    server_opens_streams: bool = False
    stream_close: Close = Close.SEND
    connection_close: Close = Close.SEND
    time_start: Event = Event.QCONNECT
    time_end: Event = Event.LASTBYTE
    stats_s: float | None = None
    log_level: int = 1
    is_json: bool = False
    connect_timeout_s: float = 10.0
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    is_verifying: bool = False
    server_name: str | None = None
    alpn: str = "hoststack"

    @property
    def opens_streams(self) -> bool:
        """Whether this side opens the streams, rather than to accept them."""
        return self.is_server == self.server_opens_streams


#: What is known after reading the words: the fields of Options, and TX=RX as tx_bytes None.
_Fields = dict[str, Any]


def parse_options(arguments: Sequence[str]) -> Options:
    """The options of a command line without the program's name; raises UsageError."""
    fields: _Fields = {}
    words = iter(arguments)
    for word in words:
        _parse_word(word, words, fields)
    return _complete(fields)


def _parse_word(word: str, words: Iterator[str], fields: _Fields) -> None:
    if word in ("server", "client"):
        _set(fields, "is_server", word == "server", "server or client")
    elif word in _FLAGS:
        name, value = _FLAGS[word]
        fields[name] = value
    elif word in _WITH_VALUE:
        value = next(words, None)
        if value is None:
            raise UsageError(f"{word!r} needs a value behind it: {word} {_EXAMPLES[word]}")
        _parse_value(word, value, _WITH_VALUE[word], fields)
    elif "=" in word and word.partition("=")[0] in _WITH_EQUALS:
        key, _, value = word.partition("=")
        _parse_value(f"{key}=", value, _WITH_EQUALS[key], fields)
    else:
        raise UsageError(_unknown(word))


def _set(fields: _Fields, name: str, value: object, what: str) -> None:
    if fields.setdefault(name, value) != value:
        raise UsageError(f"give {what} once")


def _parse_value(
    word: str, value: str, parser: Callable[[str, _Fields], None], fields: _Fields
) -> None:
    try:
        parser(value, fields)
    except UsageError:
        raise
    except ValueError as error:
        space = "" if word.endswith("=") else " "
        raise UsageError(f"{word}{space}{value}: {error}") from None


def _unknown(word: str) -> str:
    known = ["server", "client", *_FLAGS, *_WITH_VALUE, *(f"{key}=" for key in _WITH_EQUALS)]
    bare, equals, value = word.lstrip("-").partition("=")
    if bare in _WITH_EQUALS:
        return f"{word!r} needs a value: {bare}={value or _EXAMPLES[bare]}"
    if bare in _WITH_VALUE:
        return f"{word!r} is not a word of quic_echo: write {bare} {value or _EXAMPLES[bare]}"
    if bare in known:
        return f"{word!r} is not a word of quic_echo: write {bare}"
    close = difflib.get_close_matches(f"{bare}{equals}", known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "see quic_echo --help"
    return f"{word!r} is not a word of quic_echo: {hint}"


def _text(name: str) -> Callable[[str, _Fields], None]:
    def parse(value: str, fields: _Fields) -> None:
        if not value:
            raise ValueError("it is empty")
        fields[name] = value

    return parse


def _choice(name: str, *choices: str) -> Callable[[str, _Fields], None]:
    def parse(value: str, fields: _Fields) -> None:
        if value not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        fields[name] = value

    return parse


def _size(
    name: str, least_bytes: int = 0, most_bytes: int = 1 << 50
) -> Callable[[str, _Fields], None]:
    def parse(value: str, fields: _Fields) -> None:
        size = parse_size(value)
        if not least_bytes <= size <= most_bytes:
            raise ValueError(f"it must be from {least_bytes} to {most_bytes} bytes")
        fields[name] = size

    return parse


def _seconds(name: str) -> Callable[[str, _Fields], None]:
    def parse(value: str, fields: _Fields) -> None:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= 86400:
            raise ValueError("it must be a number of seconds, more than 0 and 86400 at most")
        fields[name] = seconds

    return parse


def _close(name: str) -> Callable[[str, _Fields], None]:
    def parse(value: str, fields: _Fields) -> None:
        if value not in ("Y", "N", "W"):
            raise ValueError("it must be Y (send it), N (do nothing) or W (wait for it)")
        fields[name] = Close(value)

    return parse


def _parse_tx(value: str, fields: _Fields) -> None:
    if value == "RX":
        fields["tx_bytes"] = None
    else:
        _size("tx_bytes")(value, fields)


def _parse_clients(value: str, fields: _Fields) -> None:
    numbers = value.split("/")
    if len(numbers) > 2 or not all(n.isascii() and n.isdigit() and len(n) < 7 for n in numbers):
        raise ValueError("it must be N, or N/M for M streams in each of N connections")
    if "0" in (n.lstrip("0") or "0" for n in numbers):
        raise ValueError("both numbers must be 1 or more")
    fields["connections"] = int(numbers[0])
    fields["streams"] = int(numbers[1]) if len(numbers) == 2 else 1


def _parse_setup(value: str, fields: _Fields) -> None:
    if value not in ("default", "serverstream"):
        raise ValueError("it must be default (the client opens the streams) or serverstream")
    fields["server_opens_streams"] = value == "serverstream"


def _parse_time(value: str, fields: _Fields) -> None:
    names = value.split(":")
    known = [event.value for event in Event]
    if len(names) != 2 or not set(names) <= set(known):
        raise ValueError(f"it must be START:END, with two of {', '.join(known)}")
    fields["time_start"], fields["time_end"] = Event(names[0]), Event(names[1])


def _parse_log(value: str, fields: _Fields) -> None:
    if value not in ("0", "1", "2"):
        raise ValueError("it must be 0 (no output), 1 (errors) or 2 (every session)")
    fields["log_level"] = int(value)


_FLAGS: dict[str, tuple[str, object]] = {
    "test-bytes": ("check", Check.REPORT),
    "test-bytes:assert": ("check", Check.ASSERT),
    "uni": ("is_unidirectional", True),
    "json": ("is_json", True),
    "verify": ("is_verifying", True),
}

_WITH_VALUE: dict[str, Callable[[str, _Fields], None]] = {
    "uri": _text("uri"),
    "interface": _text("interface"),
    "link": _choice("link", "auto", "af_xdp", "udp"),
    "mode": _choice("mode", "auto", "native", "generic"),
    "nclients": _parse_clients,
    "nclient": _parse_clients,
    "fifo-size": _size("fifo_bytes", 4096, 1 << 30),
    "rx-buf": _size("rx_buf_bytes", 1, 1 << 30),
    "tx-buf": _size("tx_buf_bytes", 1, 1 << 30),
    "quic-setup": _parse_setup,
    "time": _parse_time,
    "stats": _seconds("stats_s"),
    "connect-timeout": _seconds("connect_timeout_s"),
    "certificate": _text("certificate"),
    "key": _text("key"),
    "ca": _text("ca"),
    "server-name": _text("server_name"),
    "alpn": _text("alpn"),
}

_WITH_EQUALS: dict[str, Callable[[str, _Fields], None]] = {
    "TX": _parse_tx,
    "RX": _size("rx_bytes"),
    "sclose": _close("stream_close"),
    "qclose": _close("connection_close"),
    "log": _parse_log,
}

_EXAMPLES = {
    "uri": "quic://10.0.0.2:1234",
    "interface": "eth1",
    "link": "udp",
    "mode": "native",
    "nclients": "2/4",
    "nclient": "2/4",
    "fifo-size": "1M",
    "rx-buf": "256K",
    "tx-buf": "256K",
    "quic-setup": "serverstream",
    "time": "qconnect:lastbyte",
    "stats": "1",
    "connect-timeout": "10",
    "certificate": "cert.pem",
    "key": "key.pem",
    "ca": "ca.pem",
    "server-name": "example.org",
    "alpn": "hoststack",
    "TX": "10M",
    "RX": "10M",
    "sclose": "Y",
    "qclose": "Y",
    "log": "1",
}


def _complete(fields: _Fields) -> Options:
    """Defaults that depend on other words, and words that do not go together."""
    if "is_server" not in fields:
        raise UsageError("say which side this is: quic_echo server ... or quic_echo client ...")
    if "uri" not in fields:
        raise UsageError("give the address: uri quic://ADDRESS:PORT")
    if fields.get("link") == "af_xdp" and "interface" not in fields:
        raise UsageError("link af_xdp needs an interface: interface IF")
    if fields.get("link") == "udp" and "interface" in fields:
        raise UsageError("link udp takes no interface: leave one of the two out")
    fields.setdefault("link", "af_xdp" if "interface" in fields else "udp")
    _check_tls(fields)
    return _complete_data(Options(**fields), fields)


def _check_tls(fields: _Fields) -> None:
    for mine, word in ((True, "certificate"), (True, "key"), (False, "verify"), (False, "ca")):
        name = "is_verifying" if word == "verify" else word
        if name in fields and fields["is_server"] is not mine:
            raise UsageError(f"{word!r} is a word for the {'server' if mine else 'client'}")
    if ("certificate" in fields) != ("key" in fields):
        raise UsageError("certificate and key go together: certificate FILE key FILE")


def _complete_data(options: Options, fields: _Fields) -> Options:
    opens, uni = options.opens_streams, options.is_unidirectional
    tx, rx = options.tx_bytes, options.rx_bytes
    if opens and "tx_bytes" in fields and tx is None:
        raise UsageError("TX=RX is for the other side: the side that opens streams sends first")
    if uni and opens and rx:
        raise UsageError("RX= has no sense here: with uni the side that opens a stream only sends")
    if uni and not opens and tx:
        raise UsageError("TX= has no sense here: with uni the side that opens a stream sends")
    if opens:
        tx = fields.get("tx_bytes", DEFAULT_TX_BYTES)
        rx = 0 if uni else fields.get("rx_bytes", tx)
    elif uni:
        tx = 0
    connections = options.connections
    if not options.is_server:
        connections = connections or 1
    elif fields.get("connection_close") is Close.SEND and connections is None:
        raise UsageError("qclose=Y at the server needs nclients N/M, to know when to close")
    return dataclasses.replace(
        options,
        tx_bytes=tx,
        rx_bytes=rx,
        connections=connections,
        stream_close=fields.get("stream_close", Close.SEND if opens or tx else Close.WAIT),
        connection_close=fields.get(
            "connection_close", Close.WAIT if options.is_server else Close.SEND
        ),
    )
