"""Messages and commands that cost a worker more than the application that sends them."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hoststack.boundary import codec
from hoststack.boundary import messages as m
from hoststack.boundary.codec import FifosReleased
from hoststack.boundary.fifo_pool import BlockName
from hoststack.native.session._session import lib
from hoststack.quic.tls import TlsConfig
from tests.support.event_ring import RingEvent

_TLS: Final = TlsConfig.self_signed(["127.0.0.1"])
_NOBODY: Final = TlsConfig(verify=False)
#: TEST-NET-1 (RFC 5737): no machine answers there.
_SILENT: Final = ("192.0.2.1", 5000)
_HERE: Final = ("127.0.0.1", 1)
_PORT_0: Final = ("127.0.0.1", 0)
_PEM: Final = _TLS.certificate if isinstance(_TLS.certificate, bytes) else b""


@cache
def rsa_pair(bits: int) -> tuple[bytes, bytes]:
    """A certificate and its key."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        words = f"openssl req -x509 -newkey rsa:{bits} -nodes -days 9 -subj /CN=127.0.0.1"
        line = [*words.split(), "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(line, check=True, capture_output=True)
        return certificate.read_bytes(), key.read_bytes()


def false_rsa_pair(bits: int) -> tuple[bytes, bytes]:
    """A certificate, and a key that nobody checked: made in no time."""
    p, q = (secrets.randbits(bits // 2) | 3 << bits // 2 - 2 | 1 for _ in range(2))
    d = secrets.randbits(bits - 1) | 1
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1) | 1,
        dmq1=d % (q - 1) | 1,
        iqmp=3,
        public_numbers=rsa.RSAPublicNumbers(65537, p * q),
    )
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return _PEM, key.private_bytes(serialization.Encoding.PEM, *form)


def listen_with(token: int, host: str, certificate: bytes, key: bytes) -> bytes:
    """A Listen with a key that TlsConfig need not accept."""
    listen = codec.encode(m.Listen(token, (host, 0), _TLS, ("h",), None))
    fields = msgspec.msgpack.decode(listen[1:])
    fields[2][0] = [[certificate, key]]
    return listen[:1] + msgspec.msgpack.encode(fields)


def _connect(token: int, remote: tuple[str, int], tls: TlsConfig, **options: Any) -> bytes:
    alpn = options.pop("alpn", ("h",))
    return codec.encode(m.Connect(token, remote, "x", tls, alpn, None, **options))


def _many_releases(token: int) -> bytes:
    return codec.encode(FifosReleased((BlockName(0, 0, 4096),) * 5000))


#: Each makes a message with a token.
KINDS: Final[dict[str, Callable[[int], bytes]]] = {
    "statistics": lambda token: codec.encode(m.GetStatistics(token, 7)),
    "migrate": lambda token: codec.encode(m.Migrate(token, 7, None)),
    "releases": _many_releases,
    "connect": lambda token: _connect(token, _SILENT, _NOBODY),
    "connect, other protocols": lambda token: _connect(
        token, _SILENT, TlsConfig(), alpn=(f"h{token}",)
    ),
    "connect, many CAs": lambda token: _connect(
        token, _SILENT, TlsConfig(ca=_PEM * (60_000 // len(_PEM)))
    ),
    "connect tcp": lambda token: _connect(token, _HERE, _NOBODY, protocol="tcp"),
    "connect udp": lambda token: _connect(token, _HERE, _NOBODY, protocol="udp"),
    "listen": lambda token: codec.encode(m.Listen(token, _PORT_0, _TLS, ("h",), None)),
    "replace": lambda token: codec.encode(m.ReplaceTls(token, 7, _TLS, ("h",))),
    "replace, many": lambda token: codec.encode(
        m.ReplaceTls(token, 7, TlsConfig(certificates=_TLS.own * 60), ("h",))
    ),
    "listen tcp": lambda token: codec.encode(
        m.Listen(token, _PORT_0, _NOBODY, ("h",), None, "tcp")
    ),
    "listen rsa": lambda token: listen_with(token, _PORT_0[0], *rsa_pair(4096)),
    "bind": lambda token: codec.encode(m.Bind(token, _PORT_0, None)),
}
#: Each makes a command with a token.
COMMANDS: Final[dict[str, Callable[[int], RingEvent]]] = {
    "open stream": lambda token: RingEvent(7, lib.HS_COMMAND_OPEN, 0, (token,)),
    "noted": lambda token: RingEvent(6, lib.HS_COMMAND_NOTED),
}
