"""Datagrams with made-up source addresses, to an application that also serves QUIC."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import trio

import hoststack
from hoststack import Connection, TlsConfig
from tests.daemon.conftest import PATIENCE_S, MakeDaemon
from tests.daemon.echoing import TLS, ask, echo

SOURCES = 1500


def made_up() -> Iterator[socket.socket]:
    """As many sources as one wants; all of 127.0.0.0/8 is this machine."""
    for number in range(SOURCES):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.bind((f"127.77.{number >> 8}.{number & 0xFF}", 0))
            yield source


def test_the_application_goes_on(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--fifo-memory-bytes", str(64 << 20), "--max-sessions", "64")

    async def answer(connection: Connection) -> None:
        async for datagram in connection.datagrams():
            await connection.send_datagram(datagram)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, name="attacked") as stack,
                hoststack.attach(daemon.api, name="client") as client,
                trio.open_nursery() as nursery,
            ):

                async def listen(uri: str) -> hoststack.Listener:
                    handler = answer if uri.startswith("udp") else echo
                    tls, alpn = (TLS, ["test"]) if uri.startswith("quic") else (None, [])
                    listener: hoststack.Listener = await nursery.start(
                        lambda task_status: stack.serve(
                            uri, handler, tls=tls, alpn=alpn, task_status=task_status
                        )
                    )
                    return listener

                udp = await listen("udp://127.0.0.1:0")
                quic = await listen("quic://127.0.0.1:0")
                uri = f"quic://127.0.0.1:{quic.local[1]}"
                async with (
                    client.connect(f"udp://127.0.0.1:{udp.local[1]}") as honest,
                    client.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as before,
                ):
                    for _ in range(2):
                        await honest.send_datagram(b"honest")
                        assert await honest.receive_datagram() == b"honest"
                    for number, source in enumerate(made_up()):
                        source.sendto(b"x" * 20, udp.local)
                        # This is the application, too: it looks at its notices now and then.
                        if number % 500 == 499:
                            assert await ask(before, b"still here") == b"still here"
                    async with client.connect(
                        uri, tls=TlsConfig(verify=False), alpn=["test"]
                    ) as after:
                        for _ in range(8):
                            assert await ask(after, b"hello") == b"hello"
                    await honest.send_datagram(b"still here")
                    assert await honest.receive_datagram() == b"still here"
                nursery.cancel_scope.cancel()

    trio.run(main)
    errors = daemon.ctl("show errors")
    assert re.search(r"\d+ +session +refused_udp_peers", errors), errors
    assert "refused_max_sessions" not in errors
    assert "refused_fifo_memory" not in errors
    assert "Traceback" not in daemon.log
