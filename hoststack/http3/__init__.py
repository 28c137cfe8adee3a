"""HTTP/3 (RFC 9114) servers and clients in trio; hoststack.http3.aio has them for asyncio."""

from hoststack.http3.about_client import Response
from hoststack.http3.about_connection import ALPN
from hoststack.http3.about_server import Request, answer
from hoststack.http3.client import ClientConnection, client_on, open_client
from hoststack.http3.config import Http3Config
from hoststack.http3.errors import (
    ClosedCriticalStreamError,
    DatagramError,
    ErrorCode,
    ExcessiveLoadError,
    FrameError,
    FrameUnexpectedError,
    GoingAwayError,
    Http3Error,
    IdError,
    MessageError,
    MissingSettingsError,
    NotSupportedError,
    ProtocolError,
    QpackDecoderStreamError,
    QpackDecompressionError,
    QpackEncoderStreamError,
    SessionRefusedError,
    SettingsError,
    StreamCreationError,
)
from hoststack.http3.server import ServerConnection, serve, serve_connection
from hoststack.http3.webtransport.session import Session, SessionClosedError, SessionEnd
from hoststack.http3.webtransport.wire import WebTransportCode

__all__ = [
    "ALPN",
    "ClientConnection",
    "ClosedCriticalStreamError",
    "DatagramError",
    "ErrorCode",
    "ExcessiveLoadError",
    "FrameError",
    "FrameUnexpectedError",
    "GoingAwayError",
    "Http3Config",
    "Http3Error",
    "IdError",
    "MessageError",
    "MissingSettingsError",
    "NotSupportedError",
    "ProtocolError",
    "QpackDecoderStreamError",
    "QpackDecompressionError",
    "QpackEncoderStreamError",
    "Request",
    "Response",
    "ServerConnection",
    "Session",
    "SessionClosedError",
    "SessionEnd",
    "SessionRefusedError",
    "SettingsError",
    "StreamCreationError",
    "WebTransportCode",
    "answer",
    "client_on",
    "open_client",
    "serve",
    "serve_connection",
]
