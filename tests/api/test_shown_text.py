"""What a peer, an application or a daemon says reaches no terminal and no log as it is."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import CloseInfo, ConnectError, ConnectionClosedError, TlsConfig, http3
from hoststack.api.daemon_client import admitted
from hoststack.api.errors import AttachError
from hoststack.boundary import attaching
from hoststack.boundary import messages as m
from hoststack.boundary.codec import decode_notice, encode
from hoststack.boundary.containment import fault_text
from hoststack.link.memory import MemoryNetwork
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import MAX_REASON_CHARACTERS
from hoststack.session.connector import _failure
from tests.support.attached import attached

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
TLS = TlsConfig.self_signed([SERVER])
TRUSTING = TlsConfig(ca=TLS.certificate)

FORGED = "\x1b[31mRED\r\nhoststack.daemon: forged\x85\x9b2J\u2028\u202e\u2066\0\x7f"
SHOWN = r"\x1b[31mRED\r\nhoststack.daemon: forged\x85\x9b2J\u2028\u202e\u2066\x00\x7f"


def on_both_sides(
    stack_of: str, main: Callable[[hoststack.Connection, hoststack.Connection], Any]
) -> None:
    """A connection's two ends; the client's stack is embedded, or attached to the embedded one."""

    async def run() -> None:
        network = MemoryNetwork()
        with trio.fail_after(60):
            async with (
                hoststack.open_stack(link=network.link(SERVER)) as server,
                hoststack.open_stack(link=network.link(CLIENT)) as embedded,
                attached([embedded]) as other,
                await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            ):
                client = embedded if stack_of == "embedded" else other
                async with client.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                    await main(connection, await listener.accept())

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("stack_of", ["embedded", "attached"])
def test_the_reason_of_a_close_is_raw_and_its_exception_is_not(stack_of: str) -> None:
    async def main(connection: hoststack.Connection, accepted: hoststack.Connection) -> None:
        accepted.close_now(7, FORGED)
        info = await connection.wait_closed()
        assert (info.code, info.reason) == (7, FORGED)
        with pytest.raises(ConnectionClosedError) as caught:
            await connection.open_stream()
        assert caught.value.reason == FORGED
        assert SHOWN in str(caught.value)
        assert str(caught.value).isprintable()

    on_both_sides(stack_of, main)


@pytest.mark.parametrize("stack_of", ["embedded", "attached"])
def test_a_reason_that_no_message_takes_is_made_to_fit(stack_of: str) -> None:
    async def main(connection: hoststack.Connection, accepted: hoststack.Connection) -> None:
        connection.close_now(7, "\ud800" + "x" * 10_000)
        info = await accepted.wait_closed()
        assert (info.code, info.by_peer) == (7, True)
        assert info.reason.startswith("?xxx")
        assert len(info.reason) <= MAX_REASON_CHARACTERS

    on_both_sides(stack_of, main)


@pytest.mark.parametrize("code", [0x128, 0x178, 2, 0x10A])
@pytest.mark.parametrize("by_peer", [False, True])
def test_why_a_handshake_failed(code: int, by_peer: bool) -> None:
    number, text = _failure((SERVER, 4433), CloseInfo(code, False, FORGED, by_peer))
    assert number
    assert text.isprintable()
    assert SHOWN in text or code == 0x178
    assert str(ConnectError(number, text)).isprintable()


def test_long_reasons_are_cut_where_they_become_messages() -> None:
    """An application in another process takes texts of 4096 characters."""
    info = CloseInfo(0, True, "é" * 20_000, True).within_bounds()
    assert len(info.reason) == MAX_REASON_CHARACTERS
    notice = m.Closed(1, info)
    assert decode_notice(encode(notice), Fifo) == notice  # type: ignore[arg-type]
    assert len(str(ConnectionClosedError(info))) < 2 * MAX_REASON_CHARACTERS


def test_what_a_daemon_refuses_with() -> None:
    refusal = attaching.encode(attaching.Refused(errno.EPERM, FORGED))
    with pytest.raises(AttachError) as caught:
        admitted("api.sock", refusal)
    assert SHOWN in str(caught.value)


def test_exceptions_of_an_application_in_a_log() -> None:
    assert SHOWN in fault_text(ValueError(FORGED))
    assert fault_text(UnicodeEncodeError("utf-8", "\ud800", 0, 1, FORGED)).isprintable()


def test_what_breaks_http3() -> None:
    assert SHOWN in str(http3.ProtocolError(0x101, FORGED))


def test_logs_of_what_a_worker_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as stack,
            attached([stack]) as other,
        ):
            router: Any = other._router
            (worker,) = router._application._workers.values()
            worker.give_up(ValueError(FORGED))
            with pytest.raises(ConnectError):
                async with other.connect(URI, tls=TRUSTING, alpn=["test"]):
                    raise AssertionError

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert SHOWN in caplog.text
    assert "\x1b" not in caplog.text
