"""Hoststack: a QUIC host stack for Linux, driven from Python. See README.md and docs/."""

from hoststack.api.attach import attach
from hoststack.api.connection import Connection
from hoststack.api.errors import (
    AttachError,
    ConnectError,
    ConnectionClosedError,
    EndpointError,
    ErrorKind,
    LinkError,
    ListenError,
    MigrationError,
    NamespaceError,
    RuleError,
    StreamResetError,
    StreamStoppedError,
    TlsConfigError,
    UriError,
)
from hoststack.api.incoming import Incoming
from hoststack.api.listener import Listener
from hoststack.api.stack import EmbeddedStack, Stack, open_stack
from hoststack.api.stream import ReceiveStream, SendStream, Stream
from hoststack.boundary.protocols import TcpConfig, UdpConfig
from hoststack.quic.certificate import Certificate
from hoststack.quic.seam import ABORTED_CODE, CloseInfo, FifoConfig, QuicConfig
from hoststack.quic.session_cache import SessionCache
from hoststack.quic.tls import TlsConfig
from hoststack.sizes import parse_size
from hoststack.text import printable

__all__ = [
    "ABORTED_CODE",
    "AttachError",
    "Certificate",
    "CloseInfo",
    "ConnectError",
    "Connection",
    "ConnectionClosedError",
    "EmbeddedStack",
    "EndpointError",
    "ErrorKind",
    "FifoConfig",
    "Incoming",
    "LinkError",
    "ListenError",
    "Listener",
    "MigrationError",
    "NamespaceError",
    "QuicConfig",
    "ReceiveStream",
    "RuleError",
    "SendStream",
    "SessionCache",
    "Stack",
    "Stream",
    "StreamResetError",
    "StreamStoppedError",
    "TcpConfig",
    "TlsConfig",
    "TlsConfigError",
    "UdpConfig",
    "UriError",
    "attach",
    "open_stack",
    "parse_size",
    "printable",
]
