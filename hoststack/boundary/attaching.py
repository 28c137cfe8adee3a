"""How an application attaches to a daemon, over the daemon's SOCK_SEQPACKET socket.

The application sends Attach. The daemon answers Refused, or Attached and then a WorkerOffered for
each worker, with four descriptors: a channel for messages, a segment with two event rings, a socket
to wake the worker, and a socket with which the worker wakes the application. The application is
attached as long as this connection is open. When a worker dies the daemon sends WorkerLost, and
another WorkerOffered for its successor. Waiting may precede all of these.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from hoststack.boundary.containment import fault_text
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope

#: Version of this protocol; the daemon refuses others.
PROTOCOL_VERSION: Final = 1
#: Default path of the daemon's socket.
DEFAULT_PATH: Final = "/run/hoststack/api.sock"
#: Interval of Waiting.
WAITING_S: Final = 2.0
#: Channel, rings, socket to wake the worker, socket that wakes the application.
WORKER_FDS: Final = 4

#: A name that is safe in logs and in names of memfds.
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{1,64}\Z")]


class Attach(msgspec.Struct, tag=True, frozen=True):
    """Request of an application to be served."""

    version: int
    name: _Name
    namespace: _Name = DEFAULT_NAMESPACE
    secret: Annotated[str, msgspec.Meta(max_length=256)] = ""
    scopes: frozenset[Scope] = frozenset({"global"})
    shares_listeners: bool = False


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The daemon refused the application; `text` is one line for the user."""

    errno: int
    text: str


class Attached(msgspec.Struct, tag=True, frozen=True):
    """The daemon serves the application with this number of workers."""

    workers: int
    link_name: str
    link_reason: str
    engine_name: str


class WorkerOffered(msgspec.Struct, tag=True, frozen=True):
    """A worker, with its descriptors."""

    index: int


class WorkerLost(msgspec.Struct, tag=True, frozen=True):
    """A worker died, and its sessions with it."""

    index: int


class WorkerLeft(msgspec.Struct, tag=True, frozen=True):
    """A worker serves the application no more, though it lives: the application violated the
    protocol, or there is no room for it."""

    index: int


class Waiting(msgspec.Struct, tag=True, frozen=True):
    """The answer to the request has to wait for a worker; sent every WAITING_S until then."""


Answer = Refused | Attached | WorkerOffered | WorkerLost | WorkerLeft | Waiting

_T = TypeVar("_T")

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final = msgspec.msgpack.Decoder(Attach)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def encode(message: Attach | Answer) -> bytes:
    return _ENCODER.encode(message)


class GreetingError(ValueError):
    """The received bytes are not a message of this protocol."""


def decode_attach(data: bytes) -> Attach:
    """Decode an Attach; raises GreetingError for anything else."""
    return _decode(_REQUESTS, data)


def decode_answer(data: bytes) -> Answer:
    """Decode an Answer; raises GreetingError for anything else."""
    return _decode(_ANSWERS, data)


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except Exception as error:  # for example RecursionError for deep nesting
        raise GreetingError(fault_text(error)) from None
