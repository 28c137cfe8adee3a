"""`vcl_test_client -p QUIC|UDP|TCP HOST PORT`: moves bytes to a vcl_test_server, and measures."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from apps.vcl_test.data import Mover, move_all
from apps.vcl_test.options import OptionError, Options, buffer_bytes, number, parse
from apps.vcl_test.stats import Stats
from apps.vcl_test.wire import ALPN, Control, Test, WireError
from hoststack import vcl

#: UDP: after this silence the rest is considered lost.
_IDLE_S: Final = 1.0
_HELP: Final = """\
  #H        show this                #X        exit
  #V        toggle verbose           #C        show the settings
  #T:BYTES  write buffer             #R:BYTES  read buffer
  #N:COUNT  writes of each session   #I:COUNT  test sessions
  #U        run the uni test         #B        run the bi test
  anything else is sent, and comes back"""


class Worker:
    """One thread's sessions, and their results."""

    def __init__(self, options: Options, sessions: int) -> None:
        self._options = options
        self._count = sessions
        self.each: list[Stats] = []
        self.numbers: list[int] = []
        """The sessions whose results these are."""
        self.error: OSError | None = None

    def run_in_thread(self, start: threading.Barrier) -> None:
        try:
            with vcl.worker():
                self.run(start)
        except OSError as error:
            self.error = error
            start.abort()

    def run(self, start: threading.Barrier | None) -> None:
        """Run the sessions; raises OSError."""
        options = self._options
        out = memoryview(os.urandom(options.txbuf_bytes))
        rxbuf = memoryview(bytearray(options.rxbuf_bytes))
        with ExitStack() as stack:
            sessions = self._open(stack)
            if options.proto == "udp":
                out = out[: min(session.max_datagram_bytes for session in sessions)]
            movers = [
                Mover(s.sh, out, rxbuf, options.session_bytes, echoes=options.test == "bi")
                for s in sessions
            ]
            if start is not None:
                try:
                    start.wait()
                except threading.BrokenBarrierError:
                    return
            move_all(
                movers,
                idle_s=_IDLE_S if options.proto == "udp" else None,
                shows_increments=options.shows_increments and not options.is_json,
            )
            self.each = [mover.stats for mover in movers]
            self.numbers = [mover.sh for mover in movers]

    def _open(self, stack: ExitStack) -> list[vcl.Session]:
        options = self._options
        where = options.host, options.port + 1
        sessions: list[vcl.Session] = []
        connection: vcl.Session | None = None
        for number_ in range(self._count):
            if options.proto == "quic":
                if number_ % options.per_connection == 0:
                    connection = stack.enter_context(vcl.Session("quic", alpn=ALPN))
                    connection.connect(where)
                assert connection is not None
                session = stack.enter_context(connection.open_stream())
            else:
                session = stack.enter_context(vcl.Session(options.proto))  # type: ignore[arg-type]
                session.connect(where)
            session.attr(vcl.Attr.SET_FLAGS, os.O_NONBLOCK)
            sessions.append(session)
        return sessions


class Client:
    """The control session, and the tests that it runs."""

    def __init__(self, options: Options, control: Control) -> None:
        self.options = options
        self._control = control

    def run(self) -> dict[str, Any]:
        """Run one test. Raises OSError, WireError."""
        options = self.options
        if options.shows_config and not options.is_json:
            self.show_config()
        if options.test == "echo":
            return self._echo()
        total = options.session_bytes * options.sessions
        self._start(options.test, total)
        if options.workers == 1:
            worker = Worker(options, options.sessions)
            worker.run(None)
            workers = [worker]
        else:
            workers = self._run_threads()
        stats = Stats()
        for worker in workers:
            for each in worker.each:
                stats.add(each)
        is_full = options.test == "bi"
        found: dict[str, Any] = {
            "proto": options.proto,
            "test": options.test,
            "sessions": options.sessions,
            "client": stats.to_json(is_full_duplex=is_full),
            "server": self._stop(),
        }
        if options.is_verbose:
            found["each"] = [
                each.to_json(is_full_duplex=is_full) for w in workers for each in w.each
            ]
        if not options.is_json:
            self._show(stats, workers, found["server"])
        return found

    def _run_threads(self) -> list[Worker]:
        options = self.options
        share, more = divmod(options.sessions, options.workers)
        workers = [Worker(options, share + (i < more)) for i in range(options.workers)]
        barrier = threading.Barrier(len(workers))
        threads = [threading.Thread(target=w.run_in_thread, args=(barrier,)) for w in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            if worker.error is not None:
                raise worker.error
        return workers

    def _start(self, test: str, total: int) -> None:
        options = self.options
        asked = Test(options.proto, test, options.sessions, total, options.rxbuf_bytes)
        answer = self._control.ask({"cmd": "start", "test": asked.to_json()})
        if answer.get("ok") is not True:
            raise WireError(str(answer.get("why", "the server refuses")))

    def _stop(self) -> dict[str, Any]:
        """Return the server's counts, once it has everything; of datagrams some may be lost."""
        answer = self._control.ask({"cmd": "stop", "now": self.options.proto == "udp"})
        if not isinstance(answer.get("stats"), dict):
            raise WireError("the server sent an invalid answer")
        return dict(answer["stats"])

    def _show(self, stats: Stats, workers: list[Worker], server: dict[str, Any]) -> None:
        show = {"show_rx": self.options.test == "bi", "show_tx": True}
        if self.options.is_verbose:
            for worker in workers:
                for sh, one in zip(worker.numbers, worker.each, strict=True):
                    print("\n".join(one.lines(f"CLIENT (fd {sh}) RESULTS", **show)))
        print("\n".join(stats.lines("CLIENT RESULTS", **show)))
        print(
            f"  the server received {server['rx_bytes']} bytes in {server['seconds']:f} seconds"
            f" and {server['rx_xacts']} reads"
        )
        self.show_config()

    def _echo(self) -> dict[str, Any]:
        """Send the text on one session, and show what comes back."""
        data = self.options.text.encode()
        self._start("echo", len(data))
        options = replace(self.options, sessions=1)
        with ExitStack() as stack:
            (session,) = Worker(options, 1)._open(stack)
            session.attr(vcl.Attr.SET_FLAGS, 0)
            session.write_all(data)
            back = b""
            while len(back) < len(data):
                part = session.read()
                if not part:
                    raise OSError(errno.ECONNRESET, "the server ended the session too early")
                back += part
        self._stop()
        text = back.decode(errors="replace")
        if not self.options.is_json:
            print(f"CLIENT: sent {len(data)} bytes, received {len(back)}: {text!r}")
        return {"proto": options.proto, "test": "echo", "sent": data.decode(), "received": text}

    def show_config(self) -> None:
        """Print the settings."""
        print("\n".join(self.options.lines()))

    def ask(self) -> bool:
        """Run one line of the prompt; False at its end."""
        try:
            line = input("\nType some characters and hit <return>\n('#H' for help): ").strip()
        except EOFError:
            return False
        name, value = line[:3], line[3:]
        try:
            match name:
                case "#X":
                    return False
                case "#H":
                    print(_HELP)
                case "#V":
                    self.options.is_verbose = not self.options.is_verbose
                    self.show_config()
                case "#C":
                    self.show_config()
                case "#T:":
                    self.options.txbuf_bytes, self.options.bytes = buffer_bytes(value), None
                    self.show_config()
                case "#R:":
                    self.options.rxbuf_bytes = buffer_bytes(value)
                    self.show_config()
                case "#N:":
                    self.options.writes, self.options.bytes = number(value, 1, 1 << 40), None
                    self.show_config()
                case "#I:":
                    self.options.sessions = number(value, self.options.workers, 65536)
                    self.show_config()
                case "#U" | "#B":
                    self.options.test = "uni" if name == "#U" else "bi"
                    self.run()
                case _ if line:
                    self.options.test, self.options.text = "echo", line
                    self.run()
                case _:
                    print("Nothing to send! Please try again...")
        except OptionError as error:
            print(error)
        return True


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status, 1 if a test failed."""
    options = parse(words)
    if (rv := vcl.vppcom_app_create("vcl_test_client")) < 0:
        print(f"vcl_test_client: {vcl.vppcom_retval_str(rv)}", file=sys.stderr)
        return 1
    try:
        with vcl.Session("tcp") as session:
            session.connect((options.host, options.port))
            client = Client(options, Control(session))
            if options.test:
                found = client.run()
                if options.is_json:
                    print(json.dumps(found))
            if options.is_interactive or not (options.exits or options.test):
                while client.ask():
                    pass
    except (OSError, WireError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        print(f"vcl_test_client: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        vcl.vppcom_app_destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
