"""UDP ports that several workers share: SO_REUSEPORT, and a classic-BPF program that picks the
worker whose connection ID a datagram carries.

The process that makes the group holds all of its sockets. The kernel numbers them in the order of
binding, which is the workers' order; if one were closed, the last one would get its number. The
replacement of a dead worker inherits its socket, with the datagrams that wait in it. The program
needs no privilege. For datagrams without a connection ID of ours it returns a number that no socket
has, and the kernel falls back to its hash of addresses and ports (net/core/sock_reuseport.c).
"""

from __future__ import annotations

import ctypes
import socket
from typing import Final

from hoststack.link.base import Endpoint
from hoststack.link.kernel.sockets import bind_error
from hoststack.link.udp.link import bind, unbound_socket
from hoststack.native.wire._wire import lib

_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h
_SO_LOCK_FILTER: Final = 44
_NO_SOCKET: Final = 0xFFFFFFFF
_LONG_HEADER: Final = 0x80
_LONG_CID_LENGTH_OFFSET: Final = 5

# linux/bpf_common.h
_LD_B: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_LD_H: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LD_LEN: Final = 0x80  # BPF_LD | BPF_W | BPF_LEN
_JEQ: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET_K: Final = 0x06
_RET_A: Final = 0x16


class _Filter(ctypes.Structure):
    """struct sock_filter (linux/filter.h)."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("count", ctypes.c_uint16), ("filters", ctypes.POINTER(_Filter)))


def _worker_of_cid(start: int, host: int, rotation: int) -> list[tuple[int, int, int, int]]:
    """Return code that yields the worker of our connection ID at offset `start`, if it is ours.

    Jumps are relative: every check that succeeds falls through to the last instruction but one.
    """
    first = rotation << lib.HS_CID_ROTATION_SHIFT | (lib.HS_CID_BYTES - 1)
    return [
        (_LD_LEN, 0, 0, 0),
        (_JGE, 0, 6, start + lib.HS_CID_BYTES),
        (_LD_B, 0, 0, start),
        (_JEQ, 0, 4, first),
        (_LD_H, 0, 0, start + lib.HS_CID_HOST_OFFSET),
        (_JEQ, 0, 2, host),
        (_LD_B, 0, 0, start + lib.HS_CID_WORKER_OFFSET),
        (_RET_A, 0, 0, 0),
        (_RET_K, 0, 0, _NO_SOCKET),
    ]


def steering_filter(host: int, rotation: int) -> list[tuple[int, int, int, int]]:
    """Return the program, as (code, jump if true, jump if false, constant): RFC 8999's headers."""
    short = _worker_of_cid(1, host, rotation)
    length = [
        (_LD_B, 0, 0, _LONG_CID_LENGTH_OFFSET),
        (_JEQ, 1, 0, lib.HS_CID_BYTES),
        (_RET_K, 0, 0, _NO_SOCKET),
    ]
    long = _worker_of_cid(_LONG_CID_LENGTH_OFFSET + 1, host, rotation)
    return [
        (_LD_B, 0, 0, 0),
        (_JSET, len(short), 0, _LONG_HEADER),
        *short,
        *length,
        *long,
    ]


class UdpGroup:
    """Ports shared by several workers, with one socket for each worker."""

    def __init__(self, workers: int, *, host: int = 0, rotation: int = 0) -> None:
        self._workers = workers
        self._filter = steering_filter(host, rotation)
        self._ports: dict[Endpoint, list[socket.socket]] = {}

    @property
    def sockets_of_port(self) -> int:
        """How many descriptors an open port uses."""
        return self._workers

    def open_port(self, endpoint: Endpoint) -> Endpoint:
        """Open a UDP endpoint for all workers; port 0 picks a free one. Raises LinkError."""
        sockets: list[socket.socket] = []
        try:
            endpoint = self._find_free(endpoint)
            for _ in range(self._workers):
                sockets.append(self._bind(endpoint))
            self._attach(sockets[0])
            for each in sockets:
                # Each worker has one of the sockets: unlocked, it could replace the program
                # and steer the others' datagrams to itself.
                each.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        except OSError as error:
            for each in sockets:
                each.close()
            raise bind_error(error, endpoint) from None
        self._ports[endpoint] = sockets
        return endpoint

    def close_port(self, endpoint: Endpoint) -> None:
        """Close an endpoint; no effect if it is not open."""
        for each in self._ports.pop(endpoint, ()):
            each.close()

    def socket_of(self, worker: int, endpoint: Endpoint) -> int:
        """Return a worker's socket on an open port; the group still owns it."""
        return self._ports[endpoint][worker].fileno()

    def close(self) -> None:
        """Close all ports; idempotent."""
        for endpoint in list(self._ports):
            self.close_port(endpoint)

    def _find_free(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with a port picked if it has none. With SO_REUSEPORT, sockets of one
        user share a port, even one that the kernel picks: this one must belong to no other program
        and to no other group of ours."""
        with unbound_socket(endpoint) as probe:
            bind(probe, endpoint)
            return Endpoint(endpoint.host, probe.getsockname()[1])

    def _bind(self, endpoint: Endpoint) -> socket.socket:
        made = unbound_socket(endpoint)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bind(made, endpoint)
        except BaseException:
            made.close()
            raise
        return made

    def _attach(self, first: socket.socket) -> None:
        """Attach the program; one socket's program serves the whole group."""
        filters = (_Filter * len(self._filter))(*(_Filter(*each) for each in self._filter))
        program = bytes(_Program(len(filters), filters))
        first.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
