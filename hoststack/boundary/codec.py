"""Messages between an application and a worker in two processes, as bytes.

A message is one octet for its kind, followed by its fields in msgpack. The decoder checks types,
ranges and lengths against the annotations in boundary/messages.py.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address
from typing import Annotated, Any, Final, NamedTuple, cast

import msgspec

from hoststack.boundary import messages as m
from hoststack.boundary.containment import fault_text
from hoststack.boundary.fifo_pool import BlockName
from hoststack.boundary.protocols import Config, TcpConfig, UdpConfig, protocol_of
from hoststack.link.zones import is_zone
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.certificate import Certificate
from hoststack.quic.seam import QuicConfig
from hoststack.quic.tls import TlsConfig

#: Most bytes of one message. A certificate chain is the largest part of any.
MAX_MESSAGE_BYTES: Final = 1 << 16


class CodecError(ValueError):
    """The received bytes are not a valid message."""


@dataclass(frozen=True, slots=True)
class SegmentCame:
    """A new segment for FIFOs; its descriptor accompanies the message."""

    number: int


@dataclass(frozen=True, slots=True)
class SegmentGone:
    """A segment has no FIFOs left, and will get no new ones."""

    number: int


@dataclass(frozen=True, slots=True)
class FifosReleased:
    """The application no longer uses these FIFOs of datagrams."""

    names: tuple[BlockName, ...]


class _TlsForm(NamedTuple):
    """A TlsConfig with its files read, so that the worker opens no path of the application's."""

    certificates: tuple[tuple[bytes, bytes], ...]
    """Each with its key."""
    ca: bytes | None
    verify: bool
    server_name: str | None
    client_certificates: str
    ciphers: tuple[str, ...]


class _ConfigForm(NamedTuple):
    """The settings of one protocol; msgpack has no tag that names it."""

    quic: QuicConfig | None = None
    tcp: TcpConfig | None = None
    udp: UdpConfig | None = None

    def config(self) -> Config:
        """Return the settings; raises ValueError."""
        [config] = (each for each in self if each is not None)
        return config


class Unparsed(NamedTuple):
    """A request with certificates or keys that have yet to be parsed, which may take long."""

    request: m.WithKeys
    """It lacks these."""
    tls: _TlsForm

    @property
    def token(self) -> int:
        return self.request.token

    def parse(self) -> m.WithKeys:
        """Return the whole request, from any thread; raises TlsConfigError."""
        pairs = tuple(Certificate(*pair) for pair in self.tls.certificates)
        return replace(self.request, tls=TlsConfig(**self.tls._asdict() | {"certificates": pairs}))


ToWorker = m.Request | FifosReleased
ToApplication = m.Notice | SegmentCame | SegmentGone

_TO_WORKER: Final = typing.get_args(ToWorker)
_TO_APPLICATION: Final = typing.get_args(ToApplication)
# RFC 9000 section 16: the range of a variable-length integer.
_NUMBER: Final = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]
_TEXT: Final = Annotated[str, msgspec.Meta(max_length=4096)]
_LEAVES: Final[dict[Any, Any]] = {
    int: _NUMBER,
    str: _TEXT,
    TlsConfig: _TlsForm,
    Fifo: BlockName,
}
_ENDPOINT: Final = tuple[str, int]
_CONFIGS: Final = {*typing.get_args(Config), type(None)}


def _form(annotation: Any) -> Any:
    """Return the wire type for a field's annotation."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return _LEAVES.get(annotation, annotation)
    origin = typing.get_origin(annotation)
    if origin is dict:  # of statistics, which may be negative
        return annotation
    if set(arguments) == _CONFIGS:
        return _ConfigForm | None
    inner = tuple(_form(argument) for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[inner]  # noqa: UP007
    return origin[inner]


class _Kind:
    """Encoding and decoding of one message class."""

    def __init__(self, class_: type, tag: int) -> None:
        self.class_ = class_
        self.tag = bytes([tag])
        hints = typing.get_type_hints(class_)
        self.names = [field.name for field in fields(class_)]
        self.decoder = msgspec.msgpack.Decoder(
            tuple[tuple(_form(hints[name]) for name in self.names)]  # type: ignore[misc]
        )
        self.endpoints = [
            index
            for index, name in enumerate(self.names)
            if _ENDPOINT in (hints[name], *typing.get_args(hints[name]))
        ]
        arguments = [set(typing.get_args(hints[name])) for name in self.names]
        self.config = arguments.index(_CONFIGS) if _CONFIGS in arguments else None


_KINDS: Final = [_Kind(class_, tag) for tag, class_ in enumerate(_TO_WORKER + _TO_APPLICATION)]
_BY_CLASS: Final = {kind.class_: kind for kind in _KINDS}
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(
    message: ToWorker | ToApplication, name_of: Callable[[Fifo], BlockName] | None = None
) -> bytes:
    """Return the bytes of a message; `name_of` returns the names of the FIFOs in it."""
    kind = _BY_CLASS[type(message)]
    values = [getattr(message, name) for name in kind.names]
    for index, value in enumerate(values):
        if isinstance(value, Fifo):
            assert name_of is not None
            values[index] = name_of(value)
        elif isinstance(value, TlsConfig):
            values[index] = _tls_form(value)
        elif index == kind.config and value is not None:
            values[index] = _ConfigForm(**{protocol_of(value): value})
    return kind.tag + _ENCODER.encode(values)


def decode_request(data: bytes) -> ToWorker | Unparsed:
    """Decode a message from an application; raises CodecError."""
    return cast(ToWorker | Unparsed, _decode(data, 0, len(_TO_WORKER), None))


def decode_notice(data: bytes, open_fifo: Callable[[BlockName], Fifo]) -> ToApplication:
    """Decode a message from a worker; raises CodecError."""
    return cast(ToApplication, _decode(data, len(_TO_WORKER), len(_KINDS), open_fifo))


def _decode(
    data: bytes, first: int, end: int, open_fifo: Callable[[BlockName], Fifo] | None
) -> object:
    if not data or not first <= data[0] < end:
        raise CodecError("a message of an unknown kind")
    kind = _KINDS[data[0]]
    try:
        values = list(kind.decoder.decode(memoryview(data)[1:]))
        for index in kind.endpoints:
            if values[index] is not None:
                values[index] = _endpoint(*values[index])
        pem: _TlsForm | None = None
        for index, value in enumerate(values):
            if isinstance(value, _TlsForm):
                has_pem = any((value.certificates, value.ca))
                pem = value if has_pem else None
                values[index] = TlsConfig() if has_pem else TlsConfig(**value._asdict())
            elif isinstance(value, _ConfigForm):
                values[index] = value.config()
            elif isinstance(value, BlockName) and open_fifo is not None:
                values[index] = open_fifo(value)
        message = kind.class_(*values)
        return message if pem is None else Unparsed(message, pem)
    except Exception as error:
        # Any exception here is the sender's fault: RecursionError for deep nesting, MemoryError.
        raise CodecError(f"{kind.class_.__name__}: {fault_text(error)}") from None


def _endpoint(host: str, port: int) -> tuple[str, int]:
    if port > 65535:
        raise ValueError(f"there is no port {port}")
    address, _, zone = host.partition("%")
    # Check the zone: the C library would look up any text in the DNS.
    has_zone = ip_address(address).version == 6 and is_zone(zone)
    return str(ip_address(address)) + (f"%{zone}" if has_zone else ""), port


def _tls_form(tls: TlsConfig) -> _TlsForm:
    return _TlsForm(
        certificates=tuple((each.chain_pem(), each.key_pem()) for each in tls.own),
        ca=tls.ca_pem,
        verify=tls.verify,
        server_name=tls.server_name,
        client_certificates=tls.client_certificates,
        ciphers=tls.ciphers,
    )
