"""What we use of aioquic's inside is there, and does what we need.

pyproject.toml allows a range of versions; this runs with each of them that is tested.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream

SOURCES = sorted((Path(__file__).parents[2] / "hoststack" / "quic" / "aioquic").glob("*.py"))


def _connection() -> QuicConnection:
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    connection.connect(("10.0.0.1", 1), now=0.0)
    return connection


@pytest.fixture(scope="module")
def objects() -> list[Any]:
    """One of each of the objects whose private members we touch."""
    connection = _connection()
    stream = QuicStream(stream_id=0)
    return [
        connection,
        connection._loss,
        connection._loss._cc,
        connection._network_paths[0],
        connection.tls,
        QuicPacketSpace(),
        stream,
        stream.sender,
        stream.receiver,
    ]


def _trees() -> Iterator[ast.AST]:
    assert SOURCES
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


def test_every_private_member_is_there(objects: list[Any]) -> None:
    missing = {
        name
        for name in _used() - _ours()
        if not any(hasattr(candidate, name) for candidate in objects)
    }
    assert not missing


@pytest.mark.parametrize(
    ("owner", "name", "arguments"),
    [
        (QuicConnection, "_replenish_connection_ids", []),
        (QuicConnection, "_idle_timeout", []),
        (QuicConnection, "_initialize", ["peer_cid"]),
        (QuicConnection, "_alpn_handler", ["alpn_protocol"]),
        (QuicConnection, "_parse_transport_parameters", ["data", "from_session_ticket"]),
        (QuicConnection, "_handle_ack_frame", ["context", "frame_type", "buf"]),
        (QuicConnection, "_handle_crypto_frame", ["context", "frame_type", "buf"]),
        (QuicConnection, "_handle_stream_frame", ["context", "frame_type", "buf"]),
        (QuicConnection, "_write_connection_limits", ["builder", "space"]),
        (QuicConnection, "_write_stream_limits", ["builder", "space", "stream"]),
        (QuicPacketRecovery, "on_packet_sent", ["packet", "space"]),
        (tls.Context, "_server_handle_hello", ["input_buf", "initial_buf", "handshake_buf"]),
    ],
)
def test_what_we_override_is_there(owner: type, name: str, arguments: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *arguments]


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


def test_the_senders_buffer_begins_where_all_is_acknowledged() -> None:
    sender = QuicStream(stream_id=0).sender
    sender.write(bytes(300))
    for _ in range(3):
        assert sender.get_frame(100) is not None
    sender.on_data_delivery(QuicDeliveryState.ACKED, 100, 200, False)
    assert sender._buffer_start == 0
    sender.on_data_delivery(QuicDeliveryState.ACKED, 0, 100, False)
    assert sender._buffer_start == 200


def test_the_receivers_pieces_are_those_beyond_the_first_gap() -> None:
    receiver = QuicStream(stream_id=0).receiver
    for offset in (3, 5, 7):
        assert receiver.handle_frame(QuicStreamFrame(data=b"x", offset=offset)) is None
    assert len(receiver._ranges) == 3
    receiver.handle_frame(QuicStreamFrame(data=b"0123", offset=0))
    assert (receiver.starting_offset(), len(receiver._ranges)) == (4, 2)


def test_each_epoch_has_its_packets_and_its_keys() -> None:
    connection = _connection()
    assert set(connection._cryptos) == set(tls.Epoch)
    assert set(connection._spaces) == set(tls.Epoch) - {tls.Epoch.ZERO_RTT}


def test_cubic_counts_the_bytes_in_flight() -> None:
    cc = CubicCongestionControl(max_datagram_size=1200)
    assert cc.bytes_in_flight == 0
    assert cc.congestion_window > 0
    assert cc.ssthresh is None
