"""From a new session to one that listens, or transfers data: bind, listen, accept, connect."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hoststack.api.resolving import in_order
from hoststack.boundary import messages as m
from hoststack.boundary.protocols import CONFIGS, PROTOCOLS, Config, UdpConfig
from hoststack.boundary.uri import UriError, parse_uri
from hoststack.quic.certificate import TlsConfigError
from hoststack.quic.seam import FifoConfig, QuicConfig
from hoststack.quic.tls import TlsConfig
from hoststack.vcl.errors import error
from hoststack.vcl.session import NOWHERE, Address, Kind, State, VclSession

if TYPE_CHECKING:
    from hoststack.vcl.worker import VclWorker

#: Streams that a peer may open in a QUIC connection; VCL programs have no way to set this.
STREAMS_PER_CONNECTION: Final = 1024


def resolve(session: VclSession, where: object) -> tuple[Address, str]:
    """Return the first address of an endpoint, and its host name; see `resolve_all`."""
    addresses, name = resolve_all(session, where)
    return addresses[0], name


def resolve_all(session: VclSession, where: object) -> tuple[list[Address], str]:
    """Return the addresses of an endpoint, in the order to try them, and the host name.

    `where` is (host, port), a URI of the session's protocol, or an object with `ip` and `port`.
    Raises EINVAL, EADDRNOTAVAIL.
    """
    host: object
    port: object
    if isinstance(where, str):
        try:
            uri = parse_uri(where, PROTOCOLS)
        except UriError as caught:
            raise error(errno.EINVAL, str(caught)) from None
        if uri.scheme != session.protocol:
            raise error(errno.EINVAL, f"{where} is not for a session of {session.protocol}")
        host, port = uri.host, uri.port
    elif isinstance(where, tuple) and len(where) >= 2:
        host, port = where[:2]
    else:
        host, port = getattr(where, "ip", None), getattr(where, "port", None)
    if not isinstance(host, str) or not isinstance(port, int) or not 0 <= port <= 65535 or not host:
        raise error(errno.EINVAL, f"{where!r} is not an endpoint")
    try:
        return [(ipaddress.ip_address(host).compressed, port)], host
    except ValueError:
        pass
    try:
        hosts = in_order(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))
    except (OSError, UnicodeError):
        hosts = []
    if not hosts:
        raise error(errno.EADDRNOTAVAIL, f"{host!r} has no known address")
    return [(each, port) for each in hosts], host


def bind(worker: VclWorker, session: VclSession, where: object) -> None:
    """Bind a session to an address.

    Raises EINVAL for a session that is bound or connected already, and what the stack raises for
    the address.
    """
    address, _ = resolve(session, where)
    if session.kind is not Kind.NEW or session.state is not State.CREATED or session.bound:
        raise error(errno.EINVAL, "it is bound, or in use, already")
    session.bound = session.local = address
    if PROTOCOLS[session.protocol].unconnected:
        try:
            open_endpoint(worker, session)
        except OSError:
            session.bound, session.local = None, NOWHERE
            raise


def open_endpoint(worker: VclWorker, session: VclSession, peer_host: str = "0.0.0.0") -> None:
    """Open a UDP session's port: datagrams are received from now on. Raises OSError."""
    local = session.bound or ("::" if ":" in peer_host else "0.0.0.0", 0)
    session.has_addresses = True
    session.state = State.CONNECTING
    config = UdpConfig(*_fifo_sizes(worker, session))
    worker.call(session, lambda token: m.Bind(token, local, config))
    _wait_until_ready(worker, session)


def _wait_until_ready(
    worker: VclWorker, session: VclSession, timeout_s: float | None = None
) -> None:
    """Wait for a request; raises its error, or ETIMEDOUT. The default timeout is the session's."""
    timeout_s = worker.config.session_timeout_s if timeout_s is None else timeout_s
    if not worker.wait(lambda: session.state is not State.CONNECTING, timeout_s):
        worker.give_up(session)
        session.state, session.error = State.FAILED, errno.ETIMEDOUT
    if session.state is State.FAILED:
        _raise_failure(worker, session)


def _raise_failure(worker: VclWorker, session: VclSession) -> None:
    """Raise a failed request's error once, and reset the session: the program may try again."""
    worker.forget_handles(session)
    worker.disown(session)
    session.state, session.kind, session.has_addresses = State.CREATED, Kind.NEW, False
    session.set_stream(None)
    number, session.error = session.error, 0
    if number:  # else an attribute has returned it already
        raise error(number)


def listen(worker: VclWorker, session: VclSession) -> None:
    """Listen on the address that the session is bound to. Raises EINVAL, EDESTADDRREQ."""
    if session.state is State.LISTENING:
        return
    if session.bound is None:
        raise error(errno.EDESTADDRREQ, "bind it first")
    local = session.bound
    if session.kind is Kind.DATAGRAMS:
        local = session.local
        _give_back_port(worker, session)
    elif session.kind is not Kind.NEW or session.state is not State.CREATED:
        raise error(errno.EINVAL)
    tls = _tls(worker, session)
    if PROTOCOLS[session.protocol].tls and tls.certificate is None:
        raise error(errno.EINVAL, "a listener needs a certificate and its key")
    alpn = _alpn(worker, session)
    session.state = State.CONNECTING
    worker.call(
        session,
        lambda token: m.Listen(token, local, tls, alpn, _config(worker, session), session.protocol),
    )
    _wait_until_ready(worker, session)


def _give_back_port(worker: VclWorker, session: VclSession) -> None:
    """Close a UDP session's port, so that its listener can open it."""
    worker.side.request(m.CloseConnection(session.handle, 0, ""))
    worker.wait(lambda: session.state is State.CLOSED, worker.config.session_timeout_s)
    worker.forget_handles(session)
    session.set_stream(None)
    session.kind, session.state, session.has_addresses = Kind.NEW, State.CREATED, False


def accept(worker: VclWorker, session: VclSession, flags: int) -> VclSession:
    """Return the next connection of a listener, or stream of a connection.

    Raises EAGAIN, EBADFD for a session that is neither, and the error that ended it.
    """
    if not session.is_listener and session.kind is not Kind.CONNECTION:
        raise error(errno.EBADFD)
    if not session.has_offers:
        worker.pump()
    if not session.has_offers and session.is_nonblocking and session.state is not State.CLOSED:
        raise error(errno.EAGAIN)
    if not worker.wait(
        lambda: session.has_offers or session.state is State.CLOSED,
        worker.config.accept_timeout_s,
    ):
        raise error(errno.EAGAIN, "nothing to accept within the timeout")
    if not session.has_offers:
        raise error(session.end_errno or errno.ECONNRESET)
    if session.accepted:
        accepted = session.accepted.popleft()
        worker.take(accepted)
    else:
        accepted = worker.accept_stream(session)
    accepted.is_nonblocking = bool(flags & socket.SOCK_NONBLOCK)
    accepted.is_offered, accepted.is_counted = False, True
    session.n_accepted += 1
    return accepted


def connect(worker: VclWorker, session: VclSession, where: object) -> None:
    """Connect. A blocking session tries a name's addresses one after the other, each for a share of
    its timeout; a non-blocking one tries only the first.

    Raises EINPROGRESS for a non-blocking session, EALREADY while it connects, EINVAL for a
    listener, ENOTSUP for a bound one whose protocol can't choose its port, and the error of the
    last address.
    """
    remotes, name = resolve_all(session, where)
    if session.state is State.CONNECTING:
        worker.pump()
        if session.state is State.CONNECTING:
            raise error(errno.EALREADY)
    if session.state is State.FAILED:
        _raise_failure(worker, session)
    if session.kind is Kind.DATAGRAMS and session.has_addresses:
        session.remote = remotes[0]  # from now on this is its only peer
        return
    if session.state is State.READY:
        return
    if session.state is not State.CREATED:
        raise error(errno.EINVAL if session.is_listener else errno.ENOTCONN)
    if session.bound is not None:
        raise error(errno.ENOTSUP, f"a bound session of {session.protocol} can't connect")
    _begin_connect(worker, session, remotes.pop(0), name)
    if session.is_nonblocking:
        raise error(errno.EINPROGRESS)
    timeout_s = worker.config.session_timeout_s / (1 + len(remotes))
    while remotes:
        with contextlib.suppress(OSError):
            _wait_until_ready(worker, session, timeout_s)
            return
        _begin_connect(worker, session, remotes.pop(0), name)
    _wait_until_ready(worker, session, timeout_s)


def _begin_connect(worker: VclWorker, session: VclSession, remote: Address, name: str) -> None:
    tls, alpn = _tls(worker, session), _alpn(worker, session)
    session.remote, session.state = remote, State.CONNECTING
    worker.call(
        session,
        lambda token: m.Connect(
            token,
            remote,
            name,
            tls,
            alpn,
            _config(worker, session),
            protocol=session.protocol,
        ),
    )


def stream_connect(worker: VclWorker, session: VclSession, connection: VclSession) -> None:
    """Open a stream in a connection. Raises ENOTSUP if it has none, ENOTCONN, EINPROGRESS."""
    if PROTOCOLS[session.protocol].streams != "many" or connection.protocol != session.protocol:
        raise error(errno.ENOTSUP, f"{connection.protocol} has no streams to open")
    if session.state is State.CONNECTING:
        worker.pump()
        if session.state is State.CONNECTING:
            raise error(errno.EALREADY)
    if session.state is State.FAILED:
        _raise_failure(worker, session)
    if session.state is State.READY:
        return
    if session.state is not State.CREATED:
        raise error(errno.EINVAL)
    if not connection.is_connectable_listener:
        raise error(errno.ENOTCONN)
    worker.adopt(connection, session)
    session.handle = connection.handle
    session.local, session.remote = connection.local, connection.remote
    session.state = State.CONNECTING
    worker.open_stream(session, connection.handle)
    if session.is_nonblocking:
        raise error(errno.EINPROGRESS)
    _wait_until_ready(worker, session)


def _config(worker: VclWorker, session: VclSession) -> Config:
    sizes = _fifo_sizes(worker, session)
    if session.protocol != "quic":
        return CONFIGS[session.protocol](*sizes)
    return QuicConfig(
        *sizes,
        connection_window_bytes=max(QuicConfig().connection_window_bytes, sizes[0]),
        max_streams_bidi=STREAMS_PER_CONNECTION,
    )


def _fifo_sizes(worker: VclWorker, session: VclSession) -> tuple[int, int]:
    """Return the sizes of the rx and the tx FIFO, in bytes."""
    default = FifoConfig()
    return (
        session.rx_fifo_bytes or worker.config.rx_fifo_bytes or default.rx_fifo_bytes,
        session.tx_fifo_bytes or worker.config.tx_fifo_bytes or default.tx_fifo_bytes,
    )


def _tls(worker: VclWorker, session: VclSession) -> TlsConfig:
    """Return the session's TLS settings; raises EINVAL for an invalid certificate or key."""
    if not PROTOCOLS[session.protocol].tls:
        return TlsConfig()
    try:
        return _made_tls(session.certificate, session.key, worker.config.tls_ca)
    except (TlsConfigError, ValueError, OSError) as caught:
        raise error(errno.EINVAL, str(caught)) from None


def _alpn(worker: VclWorker, session: VclSession) -> tuple[str, ...]:
    """Return the session's application protocols; raises EINVAL if QUIC has none."""
    if not PROTOCOLS[session.protocol].tls:
        return ()
    names = session.alpn or worker.config.alpn
    if not names:
        raise error(
            errno.EINVAL,
            "QUIC needs an application protocol (ALPN): name it in the configuration, as in "
            "`alpn h3`, or with vcl.Session(alpn=...)",
        )
    return names


@lru_cache(maxsize=64)
def _made_tls(certificate: bytes | None, key: bytes | None, ca: str | None) -> TlsConfig:
    # VPP's servers have self-signed certificates, and its clients check none.
    trusted = Path(ca).read_bytes() if ca is not None else None
    return TlsConfig(certificate=certificate, key=key, ca=trusted, verify=ca is not None)
