"""Requests in early data (RFC 8470): those that must not be replayed are too early."""

from __future__ import annotations

import pytest
import trio

from hoststack import QuicConfig, SessionCache, TlsConfig, http3
from tests.http3.peers import (
    POST,
    REQUEST,
    SERVER,
    URI,
    ask,
    greet,
    run,
    section,
    serving,
)

QUIC = QuicConfig(early_data=True)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_client_sends_early_what_may_be_replayed(method: str) -> None:
    seen: list[bool] = []

    async def handler(request: http3.Request) -> None:
        seen.append(request.may_be_replayed)
        await request.respond(200, [], await request.read())

    async def main() -> None:
        tls = TlsConfig(verify=False, sessions=SessionCache())
        async with serving(handler, quic=QUIC, delay_s=0.1) as stack:
            for _ in range(2):
                async with http3.open_client(stack, SERVER, tls=tls) as client:
                    is_early = client.connection.early_data == "pending"
                    async with await client.request(method, "/") as response:
                        assert response.status == 200
                    await client.connection.wait_handshake()
                    await trio.sleep(2)  # for a ticket
                    accepted = client.connection.early_data
            assert is_early == (accepted == "accepted")
            if is_early:
                assert seen == [False, method == "GET"]

    run(main, patience_s=0.05)


def test_a_server_does_not_process_what_must_not_be_replayed() -> None:
    methods: list[bytes] = []

    async def handler(request: http3.Request) -> None:
        methods.append(request.method)
        await request.respond(200)

    async def main() -> None:
        tls = TlsConfig(verify=False, sessions=SessionCache())
        answers: list[bytes] = []
        async with serving(handler, quic=QUIC, delay_s=0.1) as stack:
            for _ in range(2):
                async with stack.connect(URI, tls=tls, alpn=["h3"]) as connection:
                    is_early = connection.early_data == "pending"
                    await greet(connection)
                    streams = [await ask(connection, section(fields)) for fields in (REQUEST, POST)]
                    answers.extend([await stream.receive_some() for stream in streams])
                    await trio.sleep(2)
            if not is_early:
                pytest.skip("this engine accepts no early data")
        assert (sorted(methods[:2]), methods[2:]) == ([b"GET", b"POST"], [b"GET"])
        assert answers[0] == answers[1] == answers[2] != answers[3]

    run(main, patience_s=0.05)


def test_what_a_gateway_marks_as_early() -> None:
    async def main() -> None:
        async with (
            serving() as stack,
            http3.open_client(stack, SERVER, tls=TlsConfig(verify=False)) as client,
        ):
            early = [("early-data", "1")]
            assert (await client.request("GET", "/", early)).status == 200
            assert (await client.request("POST", "/", early)).status == 425

    run(main, patience_s=0.05)
