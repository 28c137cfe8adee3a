"""Messages that are no requests, and descriptors not asked for, end their application alone."""

from __future__ import annotations

import gc
import socket
from contextlib import suppress

import msgspec
import pytest
import trio
import trio.testing

from hoststack.boundary import codec
from hoststack.boundary import messages as m
from hoststack.boundary.codec import (
    FifosReleased,
    SegmentCame,
    encode,
)
from hoststack.quic.seam import CloseInfo
from tests.daemon.faulty import HOST, Bench, on_bench
from tests.support.open_files import open_files


def request_of(kind: type, *fields: bytes) -> bytes:
    """A message of a kind with these fields, which are msgpack already."""
    (tag,) = (each.tag for each in codec._KINDS if each.class_ is kind)
    return tag + bytes([0x90 | len(fields)]) + b"".join(fields)


E = msgspec.msgpack.encode
DEEP = b"\x91" * 30_000 + b"\x01"
NO_REQUESTS = {
    "deep configuration": request_of(m.Bind, E(5), E([HOST, 0]), b"\x81\xa2zz" + DEEP),
    "deep field": request_of(m.Bind, E(5), DEEP, E(None)),
    "deep tuple": request_of(FifosReleased, DEEP),
    "as deep as may be": request_of(m.Cancel, b"\x91" * 60_000),
    "huge array": request_of(FifosReleased, b"\xdd\xff\xff\xff\xff"),
    "huge text": request_of(m.CloseConnection, E(1), E(0), b"\xdb\xff\xff\xff\xff"),
    "huge token": request_of(m.Cancel, E((1 << 64) - 1)),
    "negative token": request_of(m.Cancel, E(-1)),
    "no number": request_of(m.Cancel, E(float("nan"))),
    "a surrogate": request_of(m.CloseConnection, E(1), E(0), b"\xa3\xed\xa0\x80"),
    "an extension": request_of(m.Cancel, E(msgspec.msgpack.Ext(1, b"x"))),
    "no port": request_of(m.Bind, E(5), E([HOST, 65536]), E(None)),
    "no address": request_of(m.Bind, E(5), E(["x" * 4000, 1]), E(None)),
    "a field too many": request_of(m.Cancel, E(1), E(1)),
    "a field too few": request_of(m.Cancel),
    "something behind": encode(m.Cancel(1)) + b"x",
    "a notice": encode(m.Closed(1, CloseInfo(0, True, "", True))),
    "a segment": encode(SegmentCame(1)),
    "no kind": b"\xff",
    "empty": b"",
    "too long": bytes(70_000),
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_a_message_that_is_none_detaches(what: str) -> None:
    async def main(bench: Bench) -> None:
        assert await bench.thrown_out(NO_REQUESTS[what])
        # Also where it comes at once with others.
        assert await bench.thrown_out(encode(m.Cancel(1)), NO_REQUESTS[what], encode(m.Cancel(2)))
        assert await bench.is_well()

    on_bench(main)


@pytest.mark.parametrize(
    "config",
    [
        {"idle_timeout_s": float("nan")},
        {"idle_timeout_s": float("inf")},
        {"idle_timeout_s": -1.0},
        {"handshake_timeout_s": float("nan")},
        {"handshake_timeout_s": float("inf")},
        {"rx_fifo_bytes": (1 << 64) - 1},
        {"rx_fifo_bytes": -1},
        {"congestion_control": "\x1b[31m"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["Listen", "Bind", "Connect"])
def test_numbers_that_are_none_end_nobody_else(kind: str, config: dict[str, object]) -> None:
    none_at_all = E([None, None, None, False, None, "none", []])
    fields = {
        "Listen": (E(5), E([HOST, 0]), none_at_all, E(["x"]), E(config), E("quic")),
        "Bind": (E(5), E([HOST, 0]), E(config)),
        "Connect": (
            E(5), E([HOST, 9]), E("x"), none_at_all, E(["x"]), E(config), E(None), E("quic"),
        ),
    }  # fmt: skip

    async def main(bench: Bench) -> None:
        async with bench.application() as (_, other):
            other.channel.send(request_of(getattr(m, kind), *fields[kind]))
            await trio.testing.wait_all_tasks_blocked()
        assert await bench.is_well()

    on_bench(main)


def test_descriptors_of_an_application_do_not_stay() -> None:
    async def flood(bench: Bench, data: bytes, allowed: int) -> None:
        with socket.socket() as file:
            async with bench.application() as (_, other):
                with suppress(OSError):
                    socket.send_fds(other.channel._socket, [data], [file.fileno()] * 253)
                await trio.testing.wait_all_tasks_blocked()
                assert open_files() < allowed

    async def main(bench: Bench) -> None:
        assert await bench.is_well()
        gc.collect()
        before = open_files()
        for data in (b"", b"\xff", encode(m.Cancel(1)), bytes(70_000)):
            await flood(bench, data, before + 100)  # its own ends, and not the 253
        assert await bench.is_well()
        gc.collect()
        assert open_files() <= before + 5

    on_bench(main)
