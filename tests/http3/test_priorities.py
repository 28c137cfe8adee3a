"""Priorities (RFC 9218): what is sent first."""

from __future__ import annotations

import pytest
import trio

from hoststack import QuicConfig, http3
from hoststack.http3 import Http3Config
from tests.http3.peers import SMALL, run, talking

#: Much more than the 90 KB that leave in one burst.
CONTENT = bytes(1_000_000)


async def content(request: http3.Request) -> None:
    await request.respond(200, [], CONTENT)


async def _race(client: http3.ClientConnection, *priorities: str) -> list[dict[int, int]]:
    """Ask for responses with these priorities; at each end, what each response had brought."""
    received = dict.fromkeys(range(len(priorities)), 0)
    ends: list[dict[int, int]] = []

    async def one(index: int, priority: str) -> None:
        headers = [("priority", priority)] if priority else []
        async with await client.request("GET", "/", headers) as response:
            async for chunk in response:
                received[index] += len(chunk)
        ends.append({**received, -1: index})

    async with trio.open_nursery() as nursery:
        for index, priority in enumerate(priorities):
            nursery.start_soon(one, index, priority)
            await trio.sleep(0.001)
    return ends


@pytest.mark.parametrize(
    "priorities", [("u=7", "u=0"), ("u=5", ""), ("", "u=1"), ("u=3, i", "u=2")]
)
def test_the_more_urgent_response_comes_first(priorities: tuple[str, str]) -> None:
    async def main() -> None:
        async with talking(content, delay_s=0.005) as client:
            first, _ = await _race(client, *priorities)
            assert first[-1] == 1
            assert first[0] < len(CONTENT) / 2

    run(main)


def test_responses_of_one_urgency_come_one_by_one() -> None:
    async def main() -> None:
        async with talking(content, delay_s=0.005) as client:
            first, _, last = await _race(client, "u=3", "u=3", "u=3")
            assert (first[-1], last[-1]) == (0, 2)
            assert first[2] < len(CONTENT) / 2

    run(main)


def test_incremental_responses_share() -> None:
    async def main() -> None:
        async with talking(content, delay_s=0.005) as client:
            first, *_ = await _race(client, "u=3, i", "u=3, i", "u=3, i")
            assert min(first[index] for index in range(3)) > len(CONTENT) / 2

    run(main)


def test_a_client_that_does_not_read_the_most_urgent_response() -> None:
    """It gets the other one all the same."""

    async def main() -> None:
        async with talking(content, quic=SMALL) as client:
            urgent = await client.request("GET", "/", [("priority", "u=0")])
            async with await client.request("GET", "/", [("priority", "u=7")]) as other:
                assert await other.read() == CONTENT
            await urgent.aclose()

    run(main)


def test_what_a_program_sees_and_overrules() -> None:
    seen: list[tuple[int, bool]] = []

    async def handler(request: http3.Request) -> None:
        seen.append(request.priority)
        request.set_priority(1, is_incremental=True)
        seen.append(request.priority)
        with pytest.raises(ValueError, match="urgency"):
            request.set_priority(8)
        await request.respond(200)

    async def main() -> None:
        async with talking(handler) as client:
            await client.request("GET", "/", [("priority", "u=5, i")])
            await client.request("GET", "/")

    run(main)
    assert seen == [(5, True), (1, True), (3, False), (1, True)]


def test_a_client_that_changes_its_mind() -> None:
    seen: list[tuple[int, bool]] = []

    async def handler(request: http3.Request) -> None:
        await request.send_headers(200)
        await request.receive_some()
        await trio.sleep(1)
        seen.append(request.priority)
        await request.send_eof()

    async def main() -> None:
        config = Http3Config()
        async with (
            talking(handler, config, quic=QuicConfig()) as client,
            await client.open("POST", "/") as response,
        ):
            await response.wait_headers()
            response.update_priority(6, is_incremental=True)
            await response.send_all(b"go on")
            assert await response.read() == b""

    run(main)
    assert seen == [(6, True)]
