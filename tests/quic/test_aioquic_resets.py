"""Stateless resets by the aioquic engine: when they are sent, and which are heeded."""

from __future__ import annotations

import os
from typing import Final, cast

import pytest

from hoststack.link.base import Endpoint, Path
from hoststack.quic.aioquic.connection import HostConnection
from hoststack.quic.aioquic.resets import StatelessResets
from hoststack.quic.cid import CidGenerator
from hoststack.quic.seam import CidConfig

new_cid = CidGenerator(CidConfig(host=7, worker=3))
SECRET: Final = bytes(range(32))
HERE, THERE = Endpoint("10.0.0.2", 1), Endpoint("10.0.0.1", 443)


def packet(cid: bytes, size: int = 100) -> bytes:
    return (b"\x4f" + cid + os.urandom(size))[:size]


@pytest.fixture
def resets() -> StatelessResets:
    return StatelessResets(SECRET, new_cid.prefix)


def test_the_answer_is_smaller_and_ends_with_the_token(resets: StatelessResets) -> None:
    cid = new_cid()
    for size in range(13, 100):
        answer = resets.answer(packet(cid, size), now=float(size))
        if size <= 21:
            assert answer is None, "there would be no smaller one"
            continue
        assert answer is not None
        assert 21 <= len(answer) < size
        assert answer[0] & 0xC0 == 0x40
        assert answer.endswith(resets.token(cid))


def test_a_token_is_of_one_connection_id_and_one_secret(resets: StatelessResets) -> None:
    cid = new_cid()
    assert StatelessResets(SECRET, new_cid.prefix).token(cid) == resets.token(cid)
    assert StatelessResets(bytes(32), new_cid.prefix).token(cid) != resets.token(cid)
    assert resets.token(new_cid()) != resets.token(cid)


def test_connection_ids_of_others_are_not_answered(resets: StatelessResets) -> None:
    assert resets.answer(packet(CidGenerator(CidConfig(host=7, worker=4))()), 0.0) is None
    assert resets.answer(packet(bytes(12)), 0.0) is None


def test_so_many_a_second_and_no_more(resets: StatelessResets) -> None:
    for second in range(3):
        answers = [resets.answer(packet(new_cid()), 10.0 + second) for _ in range(1000)]
        assert len([answer for answer in answers if answer is not None]) == 64


class Client:
    def __init__(self, token: bytes) -> None:
        self.peer_reset_token = token


def test_a_reset_is_heeded_from_where_the_server_is(resets: StatelessResets) -> None:
    path, elsewhere = Path(HERE, THERE), Path(HERE, Endpoint("10.0.0.3", 443))
    one, other, unknown = (
        cast(HostConnection, Client(token)) for token in (b"a" * 16, b"b" * 16, b"")
    )
    for client in (unknown, one, other):
        resets.add(client, path)
    assert resets.find(bytes(5) + b"b" * 16, path, 0.0) is other
    assert resets.find(bytes(5) + b"b" * 16, elsewhere, 0.0) is None
    assert resets.find(bytes(4) + b"b" * 16, path, 0.0) is None, "too short"
    assert resets.find(bytes(5) + b"c" * 16, path, 0.0) is None
    resets.remove(other, path)
    resets.remove(other, path)
    assert resets.find(bytes(5) + b"b" * 16, path, 0.0) is None
    assert resets.find(bytes(5) + b"a" * 16, path, 0.0) is one


def test_a_flood_of_what_may_be_resets_costs_so_much_and_no_more(resets: StatelessResets) -> None:
    path = Path(HERE, THERE)
    clients = [cast(HostConnection, Client(bytes([i]) * 16)) for i in range(100)]
    for client in clients:
        resets.add(client, path)
    for _ in range(1000):
        assert resets.find(os.urandom(40), path, 5.0) is None
    reset = bytes(5) + bytes([7]) * 16
    assert resets.find(reset, path, 5.9) is None
    assert resets.find(reset, path, 6.0) is clients[7]
