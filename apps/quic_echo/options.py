"""The words of the command line, as VPP's users know them (docs/quic_echo.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import hoststack
from apps.quic_echo.timing import EVENTS

#: The default of what the side that opens streams sends on each.
DEFAULT_TX_BYTES: Final = 64 << 10

Close = Literal["Y", "N", "W"]
Check = Literal["off", "count", "assert"]


class UsageError(ValueError):
    """Invalid words; the message says which, and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A command line, parsed and with its defaults filled in."""

    is_server: bool
    uri: str
    interface: str | None = None
    link: Literal["auto", "af_xdp", "udp"] = "udp"
    mode: Literal["auto", "native", "generic"] = "auto"
    engine: Literal["auto", "native", "aioquic"] = "auto"
    busy_poll_us: int = 0
    socket_name: str | None = None
    """The socket of the daemon whose stack this uses; None for an embedded stack."""
    namespace: str | None = None
    secret: str | None = None
    scopes: frozenset[Literal["local", "global"]] = frozenset({"global"})
    threads: int = 1
    """Each with its own trio loop and attachment."""
    connections: int | None = None
    """The number of connections; None for a server that runs until it is stopped."""
    streams: int | None = None
    """The number in each connection; None for as many as the peer opens."""
    tx_bytes: int | None = None
    """What to send on each stream; None reflects what arrives."""
    rx_bytes: int | None = None
    """What to expect on each stream; None reads until the peer's end."""
    check: Check = "off"
    fifo_bytes: int = 1 << 20
    rx_buf_bytes: int = 1 << 20
    tx_buf_bytes: int = 1 << 20
    is_unidirectional: bool = False
    is_serverstream: bool = False
    stream_close: Close | None = None
    connection_close: Close | None = None
    start_event: str = "qconnect"
    end_event: str = "lastbyte"
    stats_s: int = 0
    log_level: int = 1
    is_json: bool = False
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    is_verifying: bool = False
    server_name: str | None = None
    alpn: str = "echo"
    connect_timeout_s: int = 10
    idle_timeout_s: int = 30

    @property
    def role(self) -> str:
        """ "server" or "client"."""
        return "server" if self.is_server else "client"

    @property
    def opens_streams(self) -> bool:
        """Whether this side opens the streams, not the peer."""
        return self.is_server == self.is_serverstream


def parse_options(words: Sequence[str]) -> Options:
    """Parse the words after the program's name; raises UsageError."""
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if word in _FLAGS:
            _set(given, word, _FLAGS[word])
        elif word in _VALUES:
            if not rest:
                raise UsageError(f"{word!r} needs a value behind it")
            field, convert = _VALUES[word]
            _set(given, word, convert(word, rest.pop(0), field))
        elif equals and key in _EQUALS:
            field, convert = _EQUALS[key]
            _set(given, key, convert(key, value, field))
        else:
            raise UsageError(f"{word!r} is not known here")
    if "is_server" not in given:
        raise UsageError("say which side this is: 'server' or 'client'")
    if "uri" not in given:
        raise UsageError("say where: uri quic://ADDRESS:PORT")
    return _completed(Options(**given), given)


def size_of(word: str, text: str) -> int:
    """Parse the size in bytes after a word; raises UsageError."""
    try:
        return hoststack.parse_size(text)
    except ValueError as error:
        raise UsageError(f"{word}: {error}") from None


def _completed(options: Options, given: dict[str, Any]) -> Options:
    """Fill in what depends on other words, and refuse contradictions."""
    filled: dict[str, Any] = {}
    _check_daemon(options, given)
    if options.interface is None and options.link == "af_xdp":
        raise UsageError("link af_xdp needs an interface: interface IFACE")
    if options.interface is not None and "link" not in given:
        filled["link"] = "af_xdp"
    if not options.is_server and options.connections is None:
        filled["connections"] = 1
    if options.stream_close is None:
        filled["stream_close"] = "Y" if options.opens_streams else "W"
    if options.connection_close is None:
        filled["connection_close"] = "W" if options.is_server else "Y"
    # A server that accepts streams and waits for the close accepts any number.
    counts_streams = not options.is_server or options.connection_close == "Y"
    if options.streams is None and (options.opens_streams or counts_streams):
        filled["streams"] = 1
    filled |= _amounts(options, given)
    options = replace(options, **filled)
    if options.streams == 0 and "start_event" not in given:
        options = replace(options, end_event="qconnected")
    _check_closing(options)
    _check_security(options)
    return options


def _amounts(options: Options, given: dict[str, Any]) -> dict[str, int | None]:
    """Return TX and RX: the opener of a stream sends and expects an echo, the acceptor reflects."""
    if not options.opens_streams:
        if not options.is_unidirectional:
            return {}
        if options.tx_bytes:
            raise UsageError("uni: nothing can be sent on the peer's streams; leave TX out")
        return {"tx_bytes": 0}
    if "tx_bytes" in given and options.tx_bytes is None:
        raise UsageError("TX=RX is for the side that accepts the streams; give this one a size")
    tx_bytes = DEFAULT_TX_BYTES if options.tx_bytes is None else options.tx_bytes
    if options.is_unidirectional:
        if options.rx_bytes:
            raise UsageError("uni: nothing can come back on our own streams; leave RX out")
        return {"tx_bytes": tx_bytes, "rx_bytes": 0}
    return {"tx_bytes": tx_bytes, "rx_bytes": given.get("rx_bytes", tx_bytes)}


def _check_daemon(options: Options, given: dict[str, Any]) -> None:
    if options.socket_name is None:
        for field, word in _OF_DAEMONS.items():
            if field in given:
                raise UsageError(f"{word!r} is for applications of a daemon: give socket-name PATH")
        return
    for field, word in _OWN_STACK.items():
        if field in given:
            raise UsageError(f"{word!r} is the daemon's setting: leave it out with socket-name")
    if not options.is_server and options.threads > (options.connections or 1):
        raise UsageError(
            f"nthreads {options.threads}: more threads than connections would have nothing to do; "
            "say nclients",
        )


def _check_closing(options: Options) -> None:
    if not options.opens_streams or options.stream_close == "Y":
        return
    if options.tx_bytes == 0:
        raise UsageError(
            f"sclose={options.stream_close} with TX=0: the peer would never notice the "
            "streams; use sclose=Y"
        )
    if options.is_unidirectional and options.stream_close == "W":
        raise UsageError("sclose=W with uni: the peer has nothing to close; use sclose=Y")


def _check_security(options: Options) -> None:
    if (options.certificate is None) != (options.key is None):
        raise UsageError("'cert' and 'key' belong together: give both")
    if options.is_server and (options.ca or options.is_verifying or options.server_name):
        raise UsageError("'verify', 'ca' and 'server-name' are for the client")
    if not options.is_server and options.certificate:
        raise UsageError("'cert' and 'key' are for the server")


def _set(given: dict[str, Any], word: str, fields: dict[str, Any]) -> None:
    for field, value in fields.items():
        if given.setdefault(field, value) != value:
            raise UsageError(f"{word!r} contradicts a word before it")


#: From a word, its value's text and the field of Options: returns the fields that it sets.
_Convert = Callable[[str, str, str], dict[str, Any]]


def _text(word: str, text: str, field: str) -> dict[str, Any]:
    if not text:
        raise UsageError(f"{word!r} needs a value that is not empty")
    return {field: text}


def _in_range(word: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not low <= int(text) <= high:
        raise UsageError(f"{word}: {text!r} is not a whole number from {low} to {high}")
    return int(text)


def _number(low: int, high: int) -> _Convert:
    def convert(word: str, text: str, field: str) -> dict[str, Any]:
        return {field: _in_range(word, text, low, high)}

    return convert


def _size(low: int, high: int) -> _Convert:
    def convert(word: str, text: str, field: str) -> dict[str, Any]:
        size = size_of(word, text)
        if not low <= size <= high:
            raise UsageError(f"{word}: {text!r} is out of range: from {low} to {high} bytes")
        return {field: size}

    return convert


def _one_of(*choices: str) -> _Convert:
    def convert(word: str, text: str, field: str) -> dict[str, Any]:
        if text not in choices:
            raise UsageError(f"{word}: {text!r} is not one of {', '.join(choices)}")
        return {field: text}

    return convert


def _tx(word: str, text: str, field: str) -> dict[str, Any]:
    return {field: None if text == "RX" else size_of(word, text)}


def _rx(word: str, text: str, field: str) -> dict[str, Any]:
    return {field: size_of(word, text)}


def _clients(word: str, text: str, field: str) -> dict[str, Any]:
    connections, slash, streams = text.partition("/")
    found = {field: _in_range(word, connections, 1, _MOST)}
    return found | ({"streams": _in_range(word, streams, 0, _MOST)} if slash else {})


def _setup(word: str, text: str, field: str) -> dict[str, Any]:
    chosen = _one_of("default", "serverstream")(word, text, field)
    return {field: chosen[field] == "serverstream"}


def _time(word: str, text: str, field: str) -> dict[str, Any]:
    start, colon, end = text.partition(":")
    if not colon or start not in EVENTS or end not in EVENTS:
        raise UsageError(f"{word}: {text!r} is not START:END, both one of {', '.join(EVENTS)}")
    return {field: start, "end_event": end}


#: Words about an embedded stack: field and word.
_OWN_STACK: Final = {
    "interface": "interface",
    "link": "link",
    "mode": "mode",
    "engine": "engine",
    "busy_poll_us": "busy-poll",
}

#: Words about an application of a daemon.
_OF_DAEMONS: Final = {
    "namespace": "appns",
    "secret": "secret",
    "scopes": "scopes",
    "threads": "nthreads",
}

#: Connections, and streams in each.
_MOST: Final = 65536

_FLAGS: Final[dict[str, dict[str, Any]]] = {
    "server": {"is_server": True},
    "client": {"is_server": False},
    "test-bytes": {"check": "count"},
    "test-bytes:assert": {"check": "assert"},
    "uni": {"is_unidirectional": True},
    "json": {"is_json": True},
    "verify": {"is_verifying": True},
    "global-scope": {"scopes": frozenset({"global"})},
    "local-scope": {"scopes": frozenset({"local"})},
    "all-scope": {"scopes": frozenset({"local", "global"})},
}

_VALUES: Final[dict[str, tuple[str, _Convert]]] = {
    "interface": ("interface", _text),
    "link": ("link", _one_of("auto", "af_xdp", "udp")),
    "mode": ("mode", _one_of("auto", "native", "generic")),
    "engine": ("engine", _one_of("auto", "native", "aioquic")),
    "busy-poll": ("busy_poll_us", _number(1, 1000)),
    "socket-name": ("socket_name", _text),
    "appns": ("namespace", _text),
    "secret": ("secret", _text),
    "nthreads": ("threads", _number(1, 32)),
    "uri": ("uri", _text),
    "nclients": ("connections", _clients),
    "nclient": ("connections", _clients),
    "quic-streams": ("streams", _number(0, _MOST)),
    "quic-setup": ("is_serverstream", _setup),
    "fifo-size": ("fifo_bytes", _size(1 << 10, 1 << 28)),
    "rx-buf": ("rx_buf_bytes", _size(1, 1 << 28)),
    "tx-buf": ("tx_buf_bytes", _size(1, 1 << 28)),
    "time": ("start_event", _time),
    "stats": ("stats_s", _number(1, 86400)),
    "cert": ("certificate", _text),
    "key": ("key", _text),
    "ca": ("ca", _text),
    "server-name": ("server_name", _text),
    "alpn": ("alpn", _text),
    "connect-timeout": ("connect_timeout_s", _number(1, 3600)),
    "idle-timeout": ("idle_timeout_s", _number(1, 3600)),
}

_EQUALS: Final[dict[str, tuple[str, _Convert]]] = {
    "TX": ("tx_bytes", _tx),
    "RX": ("rx_bytes", _rx),
    "sclose": ("stream_close", _one_of("Y", "N", "W")),
    "qclose": ("connection_close", _one_of("Y", "N", "W")),
    "log": ("log_level", _number(0, 2)),
}
