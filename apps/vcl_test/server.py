"""`vcl_test_server [-p QUIC|UDP|TCP] [port]`: counts what clients send, and echoes it."""

from __future__ import annotations

import argparse
import functools
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from apps.vcl_test.stats import Stats
from apps.vcl_test.wire import ALPN, Control, Test, WireError
from hoststack import TlsConfig, vcl

DEFAULT_PORT: Final = 22000
_AT_ONCE: Final = 16
_MOST_BUFFER_BYTES: Final = 8 << 20
_CTRL, _DATA, _CTRL_LISTENER, _DATA_LISTENER, _CONNECTION = range(5)


class Data:
    """A client's data session."""

    def __init__(self, session: vcl.Session, proto: str) -> None:
        self.session = session
        self.proto = proto
        self.waiting = memoryview(b"")
        self.wants: int = select.EPOLLIN


class Server:
    """All sessions of one worker."""

    def __init__(self, proto: str, host: str, port: int, is_verbose: bool) -> None:
        self._proto = proto
        self._is_verbose = is_verbose
        self._vep = vcl.vppcom_epoll_create()
        self._test: Test | None = None
        self._owner: Control | None = None
        """The client whose test runs."""
        self._stats = Stats()
        self._start_s: float | None = None
        """When the first of its bytes arrived."""
        self._is_asked = False
        """Whether the owner waits for the counts."""
        self._buffer = bytearray(1 << 20)
        self._kinds: dict[int, int] = {}
        self._sessions: dict[int, vcl.Session] = {}
        self._controls: dict[int, Control] = {}
        self._data: dict[int, Data] = {}
        self.control_port = self._listen("tcp", host, port, _CTRL_LISTENER)
        self._listen(proto, host, self.control_port + 1, _DATA_LISTENER)

    def _listen(self, proto: str, host: str, port: int, kind: int) -> int:
        """Listen; return the port. Raises OSError."""
        session = vcl.Session(proto, alpn=ALPN, nonblocking=True)  # type: ignore[arg-type]
        if proto == "quic":
            session.use_certificate(*_certificate())
        session.bind((host, port))
        session.listen()
        self._add(session, kind)
        return session.local[1]

    def _add(self, session: vcl.Session, kind: int) -> None:
        self._kinds[session.sh], self._sessions[session.sh] = kind, session
        event = vcl.EpollEvent(select.EPOLLIN, session.sh)
        vcl.vppcom_epoll_ctl(self._vep, vcl.EPOLL_CTL_ADD, session.sh, event)

    def _drop(self, sh: int) -> None:
        del self._kinds[sh]
        control = self._controls.pop(sh, None)
        if control is not None and control is self._owner:
            self._end_test()
        self._data.pop(sh, None)
        self._sessions.pop(sh).close()

    def run(self) -> None:
        """Serve for ever; raises OSError for a fatal error."""
        events: list[vcl.EpollEvent] = []
        while True:
            found = vcl.vppcom_epoll_wait(self._vep, events, 64, -1)
            if found < 0:
                raise OSError(-found, os.strerror(-found))
            for event in events:
                if event.data in self._kinds:
                    self._handle(event.data, event.events)

    def _handle(self, sh: int, flags: int) -> None:
        kind, session = self._kinds[sh], self._sessions[sh]
        try:
            if kind == _CTRL:
                self._hear(self._controls[sh])
            elif kind == _DATA:
                self._move(self._data[sh], flags)
            else:
                self._accept(session, kind)
        except BlockingIOError:
            pass
        except (OSError, WireError) as error:
            if kind in (_CTRL_LISTENER, _DATA_LISTENER):
                raise  # the listener is closed: no more clients
            if self._is_verbose and not (kind == _CONNECTION and not flags & select.EPOLLERR):
                print(f"vcl_test_server: session {sh}: {error}", flush=True)
            self._drop(sh)

    def _accept(self, listener: vcl.Session, kind: int) -> None:
        accepted = listener.accept(os.O_NONBLOCK)
        if kind == _CTRL_LISTENER:
            self._add(accepted, _CTRL)
            self._controls[accepted.sh] = Control(accepted)
        elif accepted.is_connectable_listener:
            self._add(accepted, _CONNECTION)
        else:
            self._add(accepted, _DATA)
            self._data[accepted.sh] = Data(accepted, self._proto)

    # --- the control session ---

    def _hear(self, control: Control) -> None:
        data = control.session.read()
        if not control.feed(data):
            self._drop(control.session.sh)
            return
        while (message := control.next_line()) is not None:
            match message.get("cmd"):
                case "start":
                    self._begin_test(control, _test_of(message))
                case "stop" if control is self._owner:
                    self._is_asked = True
                    self._answer_if_done(is_last=bool(message.get("now")))
                case _:
                    raise WireError("the command is unknown")

    def _begin_test(self, control: Control, test: Test) -> None:
        why = ""
        if self._owner not in (None, control):
            why = "another client's test is running: try again when it is over"
        elif test.proto != self._proto:
            why = f"the server was started with -p {self._proto.upper()}: start the client so, too"
        if why:
            control.send({"ok": False, "why": why})
            return
        self._test, self._owner = test, control
        self._stats, self._start_s = Stats(), None
        self._buffer = bytearray(min(max(test.rxbuf_bytes, 128), _MOST_BUFFER_BYTES))
        control.send({"ok": True})

    def _end_test(self) -> None:
        """Close the test's sessions that have no end of their own."""
        self._test = self._owner = None
        self._is_asked = False
        if self._proto == "udp":
            for sh in list(self._data):
                self._drop(sh)

    def _answer_if_done(self, *, is_last: bool = False) -> None:
        """Answer a client that stops, when all that it sent has arrived."""
        if not self._is_asked or self._test is None or self._owner is None:
            return
        if self._stats.rx_bytes >= self._test.total_bytes or is_last:
            is_full = self._test.test != "uni"
            self._owner.send({"stats": self._stats.to_json(is_full_duplex=is_full)})
            shown = self._stats.lines("SERVER RESULTS", show_rx=True, show_tx=is_full)
            print("\n".join(shown), flush=True)
            self._end_test()

    def _count(self, count: int) -> None:
        """Count received bytes."""
        now = time.perf_counter()
        if self._start_s is None:
            self._start_s = now
        self._stats.took(count, len(self._buffer))
        self._stats.seconds = now - self._start_s

    # --- data sessions ---

    def _move(self, data: Data, flags: int) -> None:
        for _ in range(_AT_ONCE):
            if data.waiting and not self._write(data):
                return
            try:
                count = data.session.read_into(self._buffer)
            except BlockingIOError:
                self._stats.rx_eagain += 1
                return
            if not count and data.proto != "udp":
                self._end(data)
                return
            self._count(count)
            if self._test is not None and self._test.test != "uni":
                data.waiting = memoryview(bytes(memoryview(self._buffer)[:count]))
                if not self._write(data):
                    return
            self._answer_if_done()

    def _write(self, data: Data) -> bool:
        """Write; return whether everything is written, else the rest follows when there is room."""
        try:
            while data.waiting:
                count = data.session.write(data.waiting)
                self._stats.gave(count, len(data.waiting))
                data.waiting = data.waiting[count:]
        except BlockingIOError:
            self._stats.tx_eagain += 1
            self._want(data, select.EPOLLOUT)
            return False
        self._want(data, select.EPOLLIN)
        return True

    def _want(self, data: Data, flags: int) -> None:
        if flags == data.wants:
            return
        data.wants = flags
        event = vcl.EpollEvent(flags, data.session.sh)
        vcl.vppcom_epoll_ctl(self._vep, vcl.EPOLL_CTL_MOD, data.session.sh, event)

    def _end(self, data: Data) -> None:
        self._drop(data.session.sh)
        self._answer_if_done()


def _test_of(message: dict[str, object]) -> Test:
    try:
        return Test(**message["test"])  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise WireError(f"the test is invalid: {error}") from None


@functools.cache
def _certificate() -> tuple[bytes, bytes]:
    """Return a self-signed certificate: VCL's clients check none unless configured to."""
    tls = TlsConfig.self_signed(["localhost"])
    assert isinstance(tls.certificate, bytes)
    assert isinstance(tls.key, bytes)
    return tls.certificate, tls.key


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vcl_test_server", description=__doc__)
    parser.add_argument("-p", dest="proto", metavar="PROTO", default="TCP", help="QUIC, UDP, TCP")
    parser.add_argument("-6", dest="is_ipv6", action="store_true", help="listen on IPv6")
    parser.add_argument("-B", dest="host", metavar="ADDRESS", help="listen only on this address")
    parser.add_argument("-V", dest="is_verbose", action="store_true", help="say why sessions end")
    parser.add_argument("port", nargs="?", type=int, default=DEFAULT_PORT)
    given = parser.parse_args(words)
    if given.proto.lower() not in ("quic", "udp", "tcp"):
        parser.error(f"-p {given.proto}: use QUIC, UDP or TCP")
    if not 0 < given.port < 65535:
        parser.error("the port and the one above it must be from 1 to 65535")
    return given


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, which end it with 0; return 1 for an error."""
    given = _parse(words)
    proto = given.proto.lower()
    host = given.host or ("::" if given.is_ipv6 else "0.0.0.0")
    if (rv := vcl.vppcom_app_create("vcl_test_server")) < 0:
        print(f"vcl_test_server: {vcl.vppcom_retval_str(rv)}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        server = Server(proto, host, given.port, given.is_verbose)
        print(
            f"vcl_test_server: {given.proto.upper()} data on {host} port {given.port + 1}, "
            f"control on port {given.port}",
            flush=True,
        )
        server.run()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it ends already
        return 0
    except OSError as error:
        print(f"vcl_test_server: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        vcl.vppcom_app_destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
