"""What the supervisor and a worker process tell each other, over a SOCK_SEQPACKET socket pair.

Both are ours, but a worker reads packets from anywhere: the supervisor believes it nothing that
could harm the others.
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
    """The first message. With the link's descriptors, where it has some."""

    index: int
    workers: int
    generation: int
    """How many workers of this index there were before."""
    link: str
    description: dict[str, Any]
    """Of the link, as its `hand_over` gave it."""
    engine: ChosenEngine
    host: int
    rotation: int
    secret: bytes
    user: str | None
    """Whom to become; None to stay who we are."""
    busy_poll_us: int
    namespaces: dict[str, str]
    """Secrets by id."""


class Serve(msgspec.Struct, tag=True, frozen=True):
    """An application attached; its descriptors come along (boundary/attaching.py)."""

    name: str
    fifo_bytes: int
    sessions: int
    namespace: str
    scopes: frozenset[Scope]
    group: tuple[str, str, int] | None


class Relink(msgspec.Struct, tag=True, frozen=True):
    """The interface was set up anew: the link goes on with the descriptors that come along."""

    description: dict[str, Any]
    """Of the link, as its `hand_over` gave it."""


class Command(msgspec.Struct, tag=True, frozen=True):
    """A command of the debug CLI."""

    number: int
    line: str


class CancelCommand(msgspec.Struct, tag=True, frozen=True):
    """Whoever gave the command is gone."""

    number: int


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Answer with Pong after the next turn: whoever does not for long hangs."""

    number: int


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Take no new connections, give the open ones so long, and end."""

    seconds: float


#: Shown to applications and users.
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Ready(msgspec.Struct, tag=True, frozen=True):
    """A worker serves; said once."""

    link_name: _Text
    link_reason: _Text
    engine_name: _Text


class Answer(msgspec.Struct, tag=True, frozen=True):
    """A piece of a command's answer (hoststack/control/run.py)."""

    number: int
    piece: bytes
    is_last: bool


class Pong(msgspec.Struct, tag=True, frozen=True):
    """The worker has turned since this ping."""

    number: int


class OpenPort(msgspec.Struct, tag=True, frozen=True):
    """A worker wants a port; over a socket pair of its own, and it waits for the answer."""

    host: str
    port: int


class ClosePort(msgspec.Struct, tag=True, frozen=True):
    host: str
    port: int


class OpenSocket(msgspec.Struct, tag=True, frozen=True):
    """A worker wants a socket of the kernel's, bound; it waits for it."""

    protocol: KernelProtocol
    host: str
    port: int


class CloseSocket(msgspec.Struct, tag=True, frozen=True):
    """A worker is about to close one."""

    protocol: KernelProtocol
    host: str
    port: int


class UseNeighbour(msgspec.Struct, tag=True, frozen=True):
    """A worker sends to a neighbour: the kernel is to look for it, or confirm it. It waits."""

    host: str


class PortOpened(msgspec.Struct, tag=True, frozen=True):
    """With the worker's socket, for a link over sockets, and always in answer to OpenSocket."""

    host: str
    port: int


class NeighbourUsed(msgspec.Struct, tag=True, frozen=True):
    """The kernel looks for it."""


class PortRefused(msgspec.Struct, tag=True, frozen=True):
    errno: int
    text: str


Order = Start | Relink | Serve | Command | CancelCommand | Ping | Drain
Report = Ready | Answer | Pong
PortRequest = OpenPort | ClosePort | OpenSocket | CloseSocket | UseNeighbour
PortAnswer = PortOpened | NeighbourUsed | PortRefused

_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_REPORTS: Final[msgspec.msgpack.Decoder[Report]] = msgspec.msgpack.Decoder(Report)
_PORT_REQUESTS: Final[msgspec.msgpack.Decoder[PortRequest]] = msgspec.msgpack.Decoder(PortRequest)
_PORT_ANSWERS: Final[msgspec.msgpack.Decoder[PortAnswer]] = msgspec.msgpack.Decoder(PortAnswer)


class ReportError(Exception):
    """What a worker said is nothing that workers say."""


def encode(message: Order | Report | PortRequest | PortAnswer) -> bytes:
    return _ENCODER.encode(message)


def decode_order(data: bytes) -> Order:
    return _ORDERS.decode(data)


def decode_report(data: bytes) -> Report:
    """Raises ReportError."""
    return _decoded(_REPORTS, data)


def decode_port_request(data: bytes) -> PortRequest:
    """Raises ReportError."""
    return _decoded(_PORT_REQUESTS, data)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise ReportError(fault_text(error)) from None


def decode_port_answer(data: bytes) -> PortAnswer:
    return _PORT_ANSWERS.decode(data)
