"""An echo server with VCL's epoll: `python -m apps.vcl_epoll_server quic://ADDRESS:PORT` serves the
streams of any number of connections in one thread."""

import errno
import os
import select
import sys

from hoststack import TlsConfig
from hoststack import vcl as v

BUFFER = memoryview(bytearray(256 << 10))


def check(rv: int, what: str = "VCL") -> int:
    if rv < 0:
        raise OSError(-rv, f"{what}: {os.strerror(-rv)}")
    return rv


def watch(vep: int, session: int, flags: int, op: int = v.EPOLL_CTL_ADD) -> None:
    check(v.vppcom_epoll_ctl(vep, op, session, v.EpollEvent(flags, session)))


def echo(vep: int, stream: int, waiting: dict[int, memoryview]) -> None:
    """Echo until there is nothing to read, or no room to write; the next event continues."""
    while True:
        if stream in waiting:
            count = v.vppcom_session_write(stream, waiting[stream])
            if count == -errno.EAGAIN:
                return watch(vep, stream, select.EPOLLOUT, v.EPOLL_CTL_MOD)
            waiting[stream] = waiting[stream][max(count, 0) :]
            if count >= 0 and waiting[stream]:
                continue
            del waiting[stream]
            watch(vep, stream, select.EPOLLIN, v.EPOLL_CTL_MOD)
        else:
            count = v.vppcom_session_read(stream, BUFFER)
            if count > 0:
                waiting[stream] = memoryview(bytes(BUFFER[:count]))
            elif count == -errno.EAGAIN:
                return None
        if count <= 0:  # the end, or the peer is gone
            v.vppcom_session_close(stream)
            return None


def main(uri: str) -> None:
    check(v.vppcom_app_create("vcl_epoll_server"), "no application")
    tls = TlsConfig.self_signed(["localhost"])
    listener = v.Session("quic", alpn=["echo"], nonblocking=True).sh
    check(v.vppcom_session_tls_add_cert(listener, tls.certificate))  # type: ignore[arg-type]
    check(v.vppcom_session_tls_add_key(listener, tls.key))  # type: ignore[arg-type]
    check(v.vppcom_session_bind(listener, uri), uri)
    check(v.vppcom_session_listen(listener), uri)
    print("port", v.vppcom_session_attr(listener, v.Attr.GET_LCL_ADDR)[1], flush=True)
    vep = check(v.vppcom_epoll_create())
    watch(vep, listener, select.EPOLLIN)
    waiting: dict[int, memoryview] = {}
    acceptors, events = {listener}, list[v.EpollEvent]()
    while check(v.vppcom_epoll_wait(vep, events, 256, -1), "waiting"):
        for session in (event.data for event in events):
            if session not in acceptors:
                echo(vep, session, waiting)
            elif (accepted := v.vppcom_session_accept(session, flags=os.O_NONBLOCK)) >= 0:
                watch(vep, accepted, select.EPOLLIN)
                if v.vppcom_session_is_connectable_listener(accepted):
                    acceptors.add(accepted)
            elif accepted != -errno.EAGAIN:
                acceptors.discard(session)
                v.vppcom_session_close(session)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m apps.vcl_epoll_server quic://ADDRESS:PORT")
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        v.vppcom_app_destroy()
    except OSError as error:
        sys.exit(f"vcl_epoll_server: {error.strerror}")
