"""What we use of aioquic's inside is there, and is what we take it for.

aioquic is pinned to 1.7; this says what to look at before the pin moves.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aioquic
import pytest
from aioquic import tls
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.recovery import QuicPacketNumberWindow, QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream

SOURCES = sorted((Path(__file__).parents[2] / "hoststack" / "quic").glob("aioquic_*.py"))


def _connection() -> QuicConnection:
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    connection.connect(("10.0.0.1", 1), now=0.0)
    return connection


@pytest.fixture(scope="module")
def objects() -> list[Any]:
    """One of each of the objects whose private members we touch."""
    connection = _connection()
    pair: CryptoPair = connection._cryptos[tls.Epoch.INITIAL]
    stream = QuicStream(stream_id=0)
    return [
        connection,
        connection._loss,
        connection._loss._cc,
        connection._network_paths[0],
        connection.tls,
        QuicPacketSpace(),
        QuicPacketNumberWindow(),
        pair,
        pair.send,
        pair.send.aead,
        pair.send.hp,
        stream,
        stream.sender,
        stream.receiver,
    ]


def _trees() -> Iterator[ast.AST]:
    for source in SOURCES:
        yield from ast.walk(ast.parse(source.read_text(encoding="utf-8")))


def _used() -> set[str]:
    """Private names that our sources read or write on any object, and overriding methods."""
    found = {
        node.attr
        for node in _trees()
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    }
    return found | {
        node.name
        for node in _trees()
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_handle_")
    }


def _ours() -> set[str]:
    """Private names that our own classes define."""
    found: set[str] = set()
    for node in _trees():
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_handle_"):
            found.add(node.name)
        targets = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if (
                isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            ):
                found.add(target.attr)
    return found


def test_the_version_is_the_one_that_was_looked_into() -> None:
    assert version("aioquic").startswith("1.7.")
    assert aioquic.__version__.startswith("1.7.")


def test_every_private_member_is_there(objects: list[Any]) -> None:
    missing = {
        name
        for name in _used() - _ours()
        if not any(hasattr(candidate, name) for candidate in objects)
    }
    assert not missing


def test_what_we_override_is_there(objects: list[Any]) -> None:
    """Methods and attributes that we define on subclasses of aioquic's, to change what it does."""
    for name in (
        "_replenish_connection_ids",
        "_parse_transport_parameters",
        "_idle_timeout",
        "_get_or_create_stream",
        "_handle_stream_frame",
        "_handle_reset_stream_frame",
        "_handle_stop_sending_frame",
        "_handle_max_data_frame",
        "_handle_max_stream_data_frame",
        "_handle_max_streams_bidi_frame",
        "_handle_max_streams_uni_frame",
        "_handle_connection_close_frame",
        "_write_connection_limits",
        "_write_stream_limits",
        "_on_max_stream_data_delivery",
        "_find_preferred_address",
    ):
        assert callable(getattr(QuicConnection, name)), name
    for name in ("next_send_time", "update_after_send", "update_rate"):
        assert callable(getattr(QuicPacketPacer, name)), name


def test_frame_handlers_are_a_table_of_pairs() -> None:
    table = _connection()._QuicConnection__frame_handlers  # type: ignore[attr-defined]
    for kind in (QuicFrameType.MAX_DATA, QuicFrameType.NEW_CONNECTION_ID, 0x08):
        handler, epochs = table[kind]
        assert callable(handler)
        assert tls.Epoch.ONE_RTT in epochs


def test_closing_states() -> None:
    assert {state.name for state in QuicConnectionState} >= {"CLOSING", "DRAINING", "TERMINATED"}
    connection = _connection()
    connection.close(error_code=5, frame_type=None, reason_phrase="why")
    event = connection._close_event
    assert event is not None
    assert (event.error_code, event.frame_type, event.reason_phrase) == (5, None, "why")
    # The first reason stays.
    connection.close(error_code=6)
    assert connection._close_event is event


def test_the_aead_is_cryptographys_and_the_nonce_a_number() -> None:
    pair = _connection()._cryptos[tls.Epoch.INITIAL]
    aead, header_protection = pair.send.aead, pair.send.hp
    assert isinstance(aead, AEAD)
    assert isinstance(header_protection, HeaderProtection)
    sealed = aead._aead.encrypt((aead._iv ^ 7).to_bytes(12, "big"), b"payload", b"header")
    assert sealed == aead.encrypt(b"payload", b"header", 7)
    # One call of the cipher makes the masks of many samples.
    mask = header_protection._encryptor.update(bytes(32))
    assert len(mask) == 32
    assert mask[:16] == mask[16:]


def test_a_window_of_packet_numbers_is_a_set() -> None:
    window = QuicPacketNumberWindow()
    window._received.update(range(3, 6))
    window.add(6)
    assert all(number in window for number in range(3, 7))
    assert 7 not in window


def test_cubic_counts_the_bytes_in_flight() -> None:
    cc = CubicCongestionControl(max_datagram_size=1200)
    assert cc.bytes_in_flight == 0
    assert cc.congestion_window > 0
    assert cc.ssthresh is None
    assert cc.last_ack == 0.0
