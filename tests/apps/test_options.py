"""The words of quic_echo: defaults, what they mean together, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from apps.quic_echo.options import Options, UsageError, parse_options, size_of


def parse(words: str) -> Options:
    return parse_options([*words.split(), "uri", "quic://127.0.0.1:1"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1337", 1337),
        ("64K", 65536),
        ("64Kb", 65536),
        ("10Mb", 10 << 20),
        ("1GB", 1 << 30),
        ("3g", 3 << 30),
        ("7b", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert size_of("TX", text) == count


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1T", "1 K", "٣", "1" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        size_of("TX", text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("client", {"connections": 1, "streams": 1, "tx_bytes": 65536, "rx_bytes": 65536}),
        ("client", {"stream_close": "Y", "connection_close": "Y", "link": "udp", "check": "off"}),
        ("client TX=3", {"tx_bytes": 3, "rx_bytes": 3}),
        ("client TX=3 RX=0", {"tx_bytes": 3, "rx_bytes": 0}),
        ("client TX=3 uni", {"tx_bytes": 3, "rx_bytes": 0}),
        ("client nclients 2/4", {"connections": 2, "streams": 4}),
        ("client nclient 3", {"connections": 3, "streams": 1}),
        ("client nclients 2 quic-streams 5", {"connections": 2, "streams": 5}),
        ("client nclients 1/0", {"end_event": "qconnected"}),
        ("client nclients 1/0 time start:exit", {"start_event": "start", "end_event": "exit"}),
        ("client quic-setup serverstream", {"tx_bytes": None, "rx_bytes": None, "streams": 1}),
        ("server", {"connections": None, "streams": None, "tx_bytes": None, "rx_bytes": None}),
        ("server", {"stream_close": "W", "connection_close": "W"}),
        ("server qclose=Y", {"streams": 1}),
        ("server TX=RX", {"tx_bytes": None}),
        ("server uni", {"tx_bytes": 0, "rx_bytes": None}),
        ("server quic-setup serverstream", {"tx_bytes": 65536, "streams": 1, "stream_close": "Y"}),
        ("client busy-poll 50", {"busy_poll_us": 50, "link": "udp"}),
        ("server interface a0", {"interface": "a0", "link": "af_xdp"}),
        ("server interface a0 link auto mode native", {"link": "auto", "mode": "native"}),
        ("server test-bytes", {"check": "count"}),
        ("server test-bytes:assert", {"check": "assert"}),
        ("server time sconnect:exit", {"start_event": "sconnect", "end_event": "exit"}),
        ("server fifo-size 64K rx-buf 1K tx-buf 2K", {"fifo_bytes": 65536, "rx_buf_bytes": 1024}),
        ("server log=2 stats 3 json", {"log_level": 2, "stats_s": 3, "is_json": True}),
    ],
)
def test_what_words_mean(words: str, expected: dict[str, Any]) -> None:
    options = parse(words)
    assert {field: getattr(options, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "say which side"),
        ("client server", "'server' contradicts"),
        ("client nclients 1 nclients 2", "'nclients' contradicts"),
        ("client nthreads 4", "'nthreads' is for applications of a daemon"),
        ("client socket-name x nthreads 4 nclients 3", "more threads than connections"),
        ("client TX", "'TX' is not known"),
        ("client TX=", "is no size"),
        ("client foo=1", "'foo=1' is not known"),
        ("client nclients 0", "from 1 to"),
        ("client nclients 1/x", "whole number"),
        ("client quic-setup client", "not one of default, serverstream"),
        ("client sclose=X", "not one of Y, N, W"),
        ("client time start", "is not START:END"),
        ("client time start:middle", "is not START:END"),
        ("client fifo-size 1", "out of range"),
        ("client log=3", "from 0 to 2"),
        ("client TX=RX", "for the side that accepts"),
        ("client uni RX=1", "nothing can come back"),
        ("client TX=0 sclose=W", "never notice the streams"),
        ("client uni sclose=W", "nothing to close"),
        ("client link af_xdp", "needs an interface"),
        ("client link memory", "not one of auto, af_xdp, udp"),
        ("client cert a key b", "for the server"),
        ("server cert a", "belong together"),
        ("server verify", "for the client"),
        ("server uni TX=1", "nothing can be sent"),
    ],
)
def test_what_is_refused(words: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(words)


def test_a_word_without_its_value() -> None:
    with pytest.raises(UsageError, match="'uri' needs a value"):
        parse_options(["client", "uri"])
    with pytest.raises(UsageError, match="say where"):
        parse_options(["client"])
