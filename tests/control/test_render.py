"""Answers of workers that no test here has, as text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

import hoststack
from hoststack.api.stack import stack_on
from hoststack.boundary.application import Application
from hoststack.control.grammar import Command, CommandError
from hoststack.control.merge import merge
from hoststack.control.render import render
from tests.control.conftest import Net


def test_show_xdp_where_the_program_is_another_process_s() -> None:
    command = Command("show xdp")
    answers = [
        {"worker": number, "link": "af_xdp", "sockets": {"rx_dropped": number}} for number in (1, 0)
    ]
    program = {
        "interface": "left",
        "mode": "native",
        "program_id": 7,
        "ports": [["10.0.0.1", 443]],
        "verdicts": {"redirected_by_cid": 3},
        "fill_levels": [5, 6],
    }
    assert render(command, merge(command, answers) | program).splitlines() == [
        "left: program id 7, native mode",
        "  ports 10.0.0.1:443",
        "  verdicts",
        f"    redirected_by_cid{3:>23}",
        "  FILL ring of queue 0: 5 frames",
        "  FILL ring of queue 1: 6 frames",
        "  AF_XDP sockets of thread 0",
        f"    rx_dropped{0:>30}",
        "  AF_XDP sockets of thread 1",
        f"    rx_dropped{1:>30}",
    ]


def test_show_quic_of_workers_that_count_other_things() -> None:
    """A kind of packet that one has not seen yet, and rows that an engine does not have."""
    command = Command("show quic")
    default = {"congestion_control": "cubic", "rx_fifo_bytes": 1, "tx_fifo_bytes": 2}
    common = {"engine": "native", "default": default}
    answers = [
        {**common, "worker": 0, "counters": {"turns": 1, "rx": {"initial": 2}, "in": [0, 5]}},
        {**common, "worker": 1, "counters": {"turns": 3, "rx": {"1rtt": 4}, "in": [1, 0]}},
    ]
    lines = render(command, merge(command, answers)).splitlines()
    assert lines[0] == "QUIC engine native, default cc cubic, fifo-size rx 1 tx 2"
    assert [line.split() for line in lines[1:]] == [
        ["Total", "Thread", "0", "Thread", "1"],
        ["turns", "4", "1", "3"],
        ["rx", "initial", "2", "2", "0"],
        ["rx", "1rtt", "4", "0", "4"],
        ["in", "0", "1", "0", "1"],
        ["in", "1", "5", "5", "0"],
    ]


@pytest.mark.parametrize("ran", [0, 2])
def test_clients_whose_worker_is_away_have_not_run(ran: int) -> None:
    command = Command("test echo clients", {"clients": 5})
    with pytest.raises(CommandError, match=f"^{5 - ran} of 5 clients had no worker"):
        merge(command, [{"worker": 1, "handshakes": ran}])


def test_an_endless_speed_is_not_shown() -> None:
    """On a clock that stood still."""
    command = Command("test echo clients")
    answer = {
        "worker": 0,
        "uri": "quic://10.0.0.1:1",
        "handshakes": 1,
        "handshake_seconds": 0.0,
        "streams": 1,
        "duplex": "half",
        "started": 0.0,
        "finished": 0.0,
        "tx_bytes": 8192,
        "rx_bytes": 0,
    }
    assert render(command, merge(command, [answer])).splitlines() == [
        "1 three-way handshakes in 0.00 seconds",
        "Test started at 0.000000",
        "Test finished at 0.000000",
        "8192 bytes (0 mbytes, 0 gbytes) in 0.00 seconds",
    ]


FORGED = "\x1b[31mRED\r\nforged\x9b2J\u2028\u202e"
SHOWN = r"\x1b[31mRED\r\nforged\x9b2J\u2028\u202e"


def test_names_from_outside_are_shown_escaped(
    play: Callable[[Callable[[Net], Awaitable[None]]], None],
) -> None:
    async def script(net: Net) -> None:
        layer = net.server.sides[0].worker.layer
        await net.server.ctl("test echo server uri quic://10.0.0.1:1234")
        application = Application(FORGED)
        application.namespace = FORGED
        net.server.sides[0].worker.attach(application)
        mine = stack_on(net.client.sides[0].worker, "mine")
        async with mine.connect(
            "quic://10.0.0.1:1234", tls=hoststack.TlsConfig(verify=False), alpn=["echo"]
        ) as connection:
            await connection.open_stream()
            await trio.sleep(1)
            for context in layer.connections():
                context.alpn = FORGED
            for line in (
                "show app",
                "show session",
                "show session verbose 2",
                "show session thread 0 index 2",
                "show quic verbose",
                "show errors",
                "show workers",
                "show udp",
                "session rule show",
            ):
                text = await net.server.ctl(line)
                assert all(part.isprintable() for part in text.split("\n")), line
                if line in ("show app", "show session thread 0 index 2"):
                    assert SHOWN in text

    play(script)
