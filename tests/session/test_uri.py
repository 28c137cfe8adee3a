"""URIs: what is taken, what is refused, and that nothing else than UriError comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoststack.boundary.uri import Uri, UriError, parse_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quic://10.0.0.2:1234", Uri("quic", "10.0.0.2", 1234)),
        ("quic://10.0.0.2/1234", Uri("quic", "10.0.0.2", 1234)),
        ("quic://[fd00::1]:1234", Uri("quic", "fd00::1", 1234)),
        ("quic://[fd00:0:0::1]/1234", Uri("quic", "fd00::1", 1234)),
        ("quic://fd00::1/1234", Uri("quic", "fd00::1", 1234)),
        ("quic://localhost:0", Uri("quic", "localhost", 0)),
        ("quic://[fe80::1%eth0]:1234", Uri("quic", "fe80::1%eth0", 1234)),
        ("quic://[fe80::1%25eth0]:1234", Uri("quic", "fe80::1%eth0", 1234)),
        ("quic://[fe80:0::1%2]:1234", Uri("quic", "fe80::1%2", 1234)),
        ("quic://[fe80::1%25]:1234", Uri("quic", "fe80::1%25", 1234)),
        ("quic://a.example.:65535", Uri("quic", "a.example.", 65535)),
        ("quic://0.0.0.0:4433", Uri("quic", "0.0.0.0", 4433)),
    ],
)
def test_good(text: str, expected: Uri) -> None:
    assert parse_uri(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a URI"),
        ("10.0.0.2:1234", "not a URI"),
        ("http://10.0.0.2:1234", "scheme"),
        ("quic://10.0.0.2", "no port"),
        ("quic://10.0.0.2:", "port must be"),
        ("quic://10.0.0.2:http", "port must be"),
        ("quic://10.0.0.2:-1", "port must be"),
        ("quic://10.0.0.2:65536", "port must be"),
        ("quic://10.0.0.2:" + "9" * 10_000, "port must be"),
        ("quic://10.0.0.2:\u0661", "port must be"),
        ("quic://fd00::1:1234", "brackets"),
        ("quic://[fd00::1]", "no port"),
        ("quic://[fd00::1:1234", "no port"),
        ("quic://:1234", "neither an address nor a host name"),
        ("quic://256.1.1.1:1", "neither an address nor a host name"),
        ("quic://a b:1", "neither an address nor a host name"),
        ("quic://[zz::1]:1", "neither an address nor a host name"),
        ("quic://[fe80::1%]:1", "is no zone"),
        ("quic://[fe80::1%a b]:1", "is no zone"),
        ("quic://[fe80::1%" + "x" * 16 + "]:1", "is no zone"),
        ("quic://10.0.0.1%eth0:1", "is no zone"),
    ],
)
def test_bad(text: str, why: str) -> None:
    with pytest.raises(UriError, match=why) as caught:
        parse_uri(text)
    assert "quic://" in str(caught.value), "the message shows how to write one"


@given(st.text() | st.text(alphabet="quic:/[]0123456789.%af").map(lambda t: "quic://" + t))
def test_anything_parses_or_is_refused(text: str) -> None:
    try:
        uri = parse_uri(text)
    except UriError:
        return
    assert parse_uri(str(uri)) == uri
