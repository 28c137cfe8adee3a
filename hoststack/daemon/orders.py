"""The messages between the supervisor and a worker process, over a SOCK_SEQPACKET socket pair.

Both are our programs, but a worker parses packets from the network: the supervisor validates
everything that it receives from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec

from hoststack.boundary.containment import fault_text
from hoststack.boundary.scope import Scope
from hoststack.link.base import KernelProtocol
from hoststack.worker.engines import ChosenEngine

_T = TypeVar("_T")


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first message, with the link's descriptors if it has some."""

    index: int
    workers: int
    generation: int
    """How many workers of this index there were before."""
    link: str
    description: dict[str, Any]
    """The link's description, as its `hand_over` returned it."""
    engine: ChosenEngine
    host: int
    rotation: int
    secret: bytes
    user: str | None
    """The user to become; None to stay as it is."""
    busy_poll_us: int
    namespaces: dict[str, str]
    """Secrets by ID."""


class Serve(msgspec.Struct, tag=True, frozen=True):
    """An application attached; its descriptors come along (boundary/attaching.py)."""

    number: int
    """For LetGo."""
    name: str
    uid: int
    pid: int
    fifo_bytes: int
    sessions: int
    namespace: str
    scopes: frozenset[Scope]
    group: tuple[str, str, int] | None


class Relink(msgspec.Struct, tag=True, frozen=True):
    """The interface was set up again: the link continues with the descriptors that come along."""

    description: dict[str, Any]
    """The link's description, as its `hand_over` returned it."""


class Command(msgspec.Struct, tag=True, frozen=True):
    """A command of the debug CLI."""

    number: int
    line: str


class CancelCommand(msgspec.Struct, tag=True, frozen=True):
    """The client that sent the command has disconnected."""

    number: int


class Ping(msgspec.Struct, tag=True, frozen=True):
    """A request to answer with Pong after the next engine run; a worker that does not hangs."""

    number: int


class Drain(msgspec.Struct, tag=True, frozen=True):
    """An order to accept no more connections, wait so long for the open ones, and end."""

    seconds: float


#: Text for applications and users.
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The worker serves; sent once."""

    link_name: _Text
    link_reason: _Text
    engine_name: _Text


class Answer(msgspec.Struct, tag=True, frozen=True):
    """A piece of a command's answer (hoststack/control/run.py)."""

    number: int
    piece: bytes
    is_last: bool


class Pong(msgspec.Struct, tag=True, frozen=True):
    """The engine has run since this ping."""

    number: int


class LetGo(msgspec.Struct, tag=True, frozen=True):
    """The worker serves an application no more, or never did."""

    number: int


class OpenPort(msgspec.Struct, tag=True, frozen=True):
    """A request for a port, over a socket pair of its own; the worker waits for the answer."""

    host: str
    port: int


class ClosePort(msgspec.Struct, tag=True, frozen=True):
    host: str
    port: int


class OpenSocket(msgspec.Struct, tag=True, frozen=True):
    """A request for a bound kernel socket; the worker waits for the answer."""

    protocol: KernelProtocol
    host: str
    port: int


class CloseSocket(msgspec.Struct, tag=True, frozen=True):
    """A notice that the worker is about to close a kernel socket."""

    protocol: KernelProtocol
    host: str
    port: int


class UseNeighbour(msgspec.Struct, tag=True, frozen=True):
    """A request to look for a neighbour, or confirm it; the worker waits for the answer."""

    host: str


class PortOpened(msgspec.Struct, tag=True, frozen=True):
    """The answer with the worker's socket: always to OpenSocket, else for a link over sockets."""

    host: str
    port: int


class NeighbourUsed(msgspec.Struct, tag=True, frozen=True):
    """The kernel looks for the neighbour."""


class PortRefused(msgspec.Struct, tag=True, frozen=True):
    errno: int
    text: str


Order = Start | Relink | Serve | Command | CancelCommand | Ping | Drain
Report = Ready | Answer | Pong | LetGo
PortRequest = OpenPort | ClosePort | OpenSocket | CloseSocket | UseNeighbour
PortAnswer = PortOpened | NeighbourUsed | PortRefused

_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_REPORTS: Final[msgspec.msgpack.Decoder[Report]] = msgspec.msgpack.Decoder(Report)
_PORT_REQUESTS: Final[msgspec.msgpack.Decoder[PortRequest]] = msgspec.msgpack.Decoder(PortRequest)
_PORT_ANSWERS: Final[msgspec.msgpack.Decoder[PortAnswer]] = msgspec.msgpack.Decoder(PortAnswer)


class ReportError(Exception):
    """A worker sent something that is no valid message."""


def encode(message: Order | Report | PortRequest | PortAnswer) -> bytes:
    return _ENCODER.encode(message)


def decode_order(data: bytes) -> Order:
    return _ORDERS.decode(data)


def decode_report(data: bytes) -> Report:
    """Decode a report; raises ReportError."""
    return _decoded(_REPORTS, data)


def decode_port_request(data: bytes) -> PortRequest:
    """Decode a port request; raises ReportError."""
    return _decoded(_PORT_REQUESTS, data)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise ReportError(fault_text(error)) from None


def decode_port_answer(data: bytes) -> PortAnswer:
    return _PORT_ANSWERS.decode(data)
