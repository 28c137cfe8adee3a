"""Peers whose TLS messages are not what QUIC allows (RFC 9001): each connection is closed with the
code that the RFC names, and no other connection is harmed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted
from aioquic.tls import Epoch, ExtensionType, HandshakeType

import hoststack
from hoststack import ConnectError, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.quic.test_stock_aioquic import (
    OURS,
    PORT,
    STOCK,
    TLS,
    URI,
    client_configuration,
    server_configuration,
)
from tests.support.stock_peer import StockPeer

pytestmark = pytest.mark.usefixtures("engine")

PROTOCOL_VIOLATION = 0x0A
TRANSPORT_PARAMETER_ERROR = 0x08
UNEXPECTED_MESSAGE = 0x10A
HANDSHAKE_FAILURE = 0x128
ILLEGAL_PARAMETER = 0x12F
DECODE_ERROR = 0x132
MISSING_EXTENSION = 0x16D
NO_APPLICATION_PROTOCOL = 0x178
PARAMETERS = int(ExtensionType.QUIC_TRANSPORT_PARAMETERS)
ALPN = int(ExtensionType.ALPN)

#: What a peer writes at a level, in place of what it would have written.
Change = Callable[[bytes], bytes]


def message(kind: int, content: bytes = b"") -> bytes:
    return bytes((kind,)) + len(content).to_bytes(3, "big") + content


def vector(data: bytes, length_bytes: int) -> bytes:
    return len(data).to_bytes(length_bytes, "big") + data


KEY_UPDATE = message(HandshakeType.KEY_UPDATE, b"\0")
RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
#: A HelloRetryRequest (RFC 8446 section 4.1.4) that asks for a share of P-384.
HELLO_RETRY = message(
    HandshakeType.SERVER_HELLO,
    b"\x03\x03"
    + RETRY_RANDOM
    + b"\0\x13\x01\0"
    + vector(b"\0\x2b\0\x02\x03\x04" + b"\0\x33\0\x02\0\x18", 2),
)
#: Of every type, and some that there are not.
ALL_TYPES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 20, 22, 23, 24, 25, 254, 255)


class Hello(NamedTuple):
    """A ClientHello or EncryptedExtensions, apart."""

    kind: int
    head: bytes
    extensions: list[tuple[int, bytes]]

    @classmethod
    def parse(cls, data: bytes) -> Hello:
        content = data[4:]
        at = 0
        if data[0] == HandshakeType.CLIENT_HELLO:
            at = 34
            at += 1 + content[at]
            at += 2 + int.from_bytes(content[at : at + 2], "big")
            at += 1 + content[at]
        buf = Buffer(data=content[at + 2 :])
        extensions = []
        while not buf.eof():
            kind = buf.pull_uint16()
            extensions.append((kind, buf.pull_bytes(buf.pull_uint16())))
        return cls(data[0], content[:at], extensions)

    def pack(self) -> bytes:
        packed = b"".join(kind.to_bytes(2, "big") + vector(d, 2) for kind, d in self.extensions)
        return message(self.kind, self.head + vector(packed, 2))


def first_and_rest(data: bytes) -> tuple[bytes, bytes]:
    end = 4 + int.from_bytes(data[1:4], "big")
    return data[:end], data[end:]


def in_hello(change: Callable[[Hello], Hello]) -> Change:
    """A change of the first message: ClientHello, or EncryptedExtensions."""

    def changed(data: bytes) -> bytes:
        first, rest = first_and_rest(data)
        return change(Hello.parse(first)).pack() + rest

    return changed


def extension(kind: int, *contents: Callable[[bytes], bytes]) -> Change:
    """In place of an extension of that type, one for each of `contents`."""

    def change(hello: Hello) -> Hello:
        made: list[tuple[int, bytes]] = []
        for there, data in hello.extensions:
            new = [content(data) for content in contents] if there == kind else [data]
            made += [(there, content) for content in new]
        return hello._replace(extensions=made)

    return in_hello(change)


def same(data: bytes) -> bytes:
    return data


def parameter(number: int, content: bytes) -> bytes:
    return encode_uint_var(number) + encode_uint_var(len(content)) + content


def added(number: int, content: bytes) -> Change:
    """One more transport parameter."""
    return extension(PARAMETERS, lambda data: data + parameter(number, content))


def session_id(hello: Hello) -> Hello:
    return hello._replace(head=hello.head[:34] + b"\x01x" + hello.head[35:])


def behind(more: bytes) -> Change:
    return lambda data: data + more


def before(more: bytes) -> Change:
    return lambda data: more + data


class Case(NamedTuple):
    name: str
    epoch: Epoch
    change: Change
    code: int


def of_both(epoch: Epoch) -> list[Case]:
    """What must be right in a ClientHello and in EncryptedExtensions alike."""

    def case(name: str, change: Change, code: int) -> Case:
        return Case(name, epoch, change, code)

    return [
        case("no parameters", extension(PARAMETERS), MISSING_EXTENSION),
        case("parameters twice", extension(PARAMETERS, same, same), ILLEGAL_PARAMETER),
        case("one twice", added(0x0F, b"12345678"), TRANSPORT_PARAMETER_ERROR),
        case("one cut off", extension(PARAMETERS, lambda d: d[:-1]), TRANSPORT_PARAMETER_ERROR),
        case(
            "no parameter at all", extension(PARAMETERS, lambda d: b""), TRANSPORT_PARAMETER_ERROR
        ),
        case("no ALPN", extension(ALPN), NO_APPLICATION_PROTOCOL),
        case("other ALPN", extension(ALPN, lambda d: b"\0\x04\x03abc"), NO_APPLICATION_PROTOCOL),
    ]


OF_CLIENTS = [
    *of_both(Epoch.INITIAL),
    Case("neither", Epoch.INITIAL, in_hello(lambda h: h._replace(extensions=[])), 0),
    Case("session id", Epoch.INITIAL, in_hello(session_id), PROTOCOL_VIOLATION),
    Case("server's", Epoch.INITIAL, added(0x00, bytes(8)), TRANSPORT_PARAMETER_ERROR),
    Case("server's token", Epoch.INITIAL, added(0x02, bytes(16)), TRANSPORT_PARAMETER_ERROR),
    Case("update first", Epoch.INITIAL, before(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("update behind", Epoch.INITIAL, behind(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("twice", Epoch.INITIAL, lambda data: data + data, UNEXPECTED_MESSAGE),
    Case("finished", Epoch.INITIAL, behind(message(20, bytes(32))), UNEXPECTED_MESSAGE),
    Case("part of another", Epoch.INITIAL, behind(b"\x0b"), UNEXPECTED_MESSAGE),
    Case("too large", Epoch.INITIAL, lambda data: b"\x01\xff\xff\xff" + data, DECODE_ERROR),
    Case("records", Epoch.INITIAL, before(b"\x16\x03\x01\0\x05"), UNEXPECTED_MESSAGE),
    Case("CCS", Epoch.HANDSHAKE, before(b"\x14\x03\x03\0\x01\x01"), DECODE_ERROR),
    Case("update then", Epoch.HANDSHAKE, behind(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("part of one", Epoch.HANDSHAKE, behind(KEY_UPDATE[:1]), UNEXPECTED_MESSAGE),
    Case("again", Epoch.HANDSHAKE, lambda data: data + data, UNEXPECTED_MESSAGE),
    *(
        Case(f"type {kind}", Epoch.HANDSHAKE, before(message(kind)), UNEXPECTED_MESSAGE)
        for kind in ALL_TYPES
        if kind not in (11, 15, 20)
    ),
]

OF_SERVERS = [
    *of_both(Epoch.HANDSHAKE),
    Case("update first", Epoch.INITIAL, before(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("update behind", Epoch.INITIAL, behind(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("extensions", Epoch.INITIAL, behind(message(8, b"\0\0")), UNEXPECTED_MESSAGE),
    Case("twice", Epoch.INITIAL, lambda data: data + data, UNEXPECTED_MESSAGE),
    Case("too large", Epoch.INITIAL, lambda data: b"\x02\xff\xff\xff" + data, DECODE_ERROR),
    Case("their id", Epoch.HANDSHAKE, added(0x10, bytes(8)), TRANSPORT_PARAMETER_ERROR),
    Case("update then", Epoch.HANDSHAKE, behind(KEY_UPDATE), UNEXPECTED_MESSAGE),
    Case("part of one", Epoch.HANDSHAKE, behind(KEY_UPDATE[:1]), UNEXPECTED_MESSAGE),
    Case("ticket", Epoch.HANDSHAKE, behind(message(4, bytes(13))), UNEXPECTED_MESSAGE),
    *(
        Case(f"type {kind}", Epoch.HANDSHAKE, before(message(kind)), UNEXPECTED_MESSAGE)
        for kind in ALL_TYPES
        if kind not in (8, 11, 13, 15, 20)
    ),
]


def changing(epoch: Epoch, change: Change) -> Callable[[QuicConnection], None]:
    """For StockPeer.prepare: change what is first written at a level."""

    def prepare(quic: Any) -> None:
        initialize = quic._initialize

        def initialize_and_wrap(peer_cid: bytes) -> None:
            initialize(peer_cid)
            handle = quic.tls.handle_message

            def handle_and_change(data: bytes, output: dict[Epoch, Buffer]) -> None:
                handle(data, output)
                written = output[epoch].data
                if written:
                    output[epoch].seek(0)
                    output[epoch].push_bytes(change(written))

            quic.tls.handle_message = handle_and_change

        quic._initialize = initialize_and_wrap

    return prepare


@contextmanager
def no_trace(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A connection that breaks on a message is closed, and its trace logged: here none does."""
    caplog.set_level(logging.ERROR, "hoststack")
    yield
    assert [record.exc_text for record in caplog.records] == []


def run(main: Callable[[], Any]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def be_refused(network: MemoryNetwork, number: int, case: Case) -> int:
    """Be such a client; the code that the server closes with."""
    link = network.link(f"10.1.0.{number + 1}")
    peer = StockPeer(link)
    peer.prepare = changing(case.epoch, case.change)
    await peer.connect(client_configuration(), OURS, PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        end = await peer.wait_for(ConnectionTerminated)
        nursery.cancel_scope.cancel()
    link.close()
    return end.error_code


def test_clients_whose_messages_a_server_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=1)
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            for number, case in enumerate(OF_CLIENTS):
                code = await be_refused(network, number, case)
                assert code == case.code or not case.code, (case.name, hex(code))
            client = hoststack.open_stack(link=network.link("10.9.9.9"))
            async with (
                client as good,
                good.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as there,
                await listener.accept() as here,
            ):
                assert here.alpn == there.alpn == "test"

    with no_trace(caplog):
        run(main)


async def be_refused_by(stack: Stack, network: MemoryNetwork, number: int, case: Case) -> int:
    """Be such a server; the code that our client closes with, which it also says."""
    link = network.link(f"10.2.0.{number + 1}")
    peer = StockPeer(link, PORT)
    peer.prepare = changing(case.epoch, case.change)
    peer.accept(server_configuration())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        with pytest.raises(ConnectError) as caught:
            async with stack.connect(
                f"quic://10.2.0.{number + 1}:{PORT}", tls=TlsConfig(verify=False), alpn=["test"]
            ):
                pass
        end = await peer.wait_for(ConnectionTerminated)
        nursery.cancel_scope.cancel()
    link.close()
    assert "\n" not in str(caught.value)
    return end.error_code


def test_servers_whose_messages_a_client_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=2)
        async with hoststack.open_stack(link=network.link(OURS)) as stack:
            for number, case in enumerate(OF_SERVERS):
                code = await be_refused_by(stack, network, number, case)
                assert code == case.code, (case.name, hex(code))

    with no_trace(caplog):
        run(main)


def test_a_second_hello_retry_request(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    if engine == "aioquic":
        pytest.skip("aioquic knows no HelloRetryRequest")

    async def main() -> None:
        network = MemoryNetwork(seed=3)
        async with hoststack.open_stack(link=network.link(OURS)) as stack:
            twice = Case("", Epoch.INITIAL, lambda data: HELLO_RETRY + HELLO_RETRY, 0)
            code = await be_refused_by(stack, network, 0, twice)
            assert code in (UNEXPECTED_MESSAGE, ILLEGAL_PARAMETER), hex(code)

    with no_trace(caplog):
        run(main)


# --- after the handshake -------------------------------------------------------------------------


#: A ticket (RFC 8446 section 4.6.1) with a limit of early data.
LIMITED_TICKET = message(
    HandshakeType.NEW_SESSION_TICKET,
    bytes(8)
    + vector(b"", 1)
    + vector(b"ticket", 2)
    + vector(b"\0\x2a" + vector(b"\0\0\x40\0", 2), 2),
)
EMPTY_TICKET = message(
    HandshakeType.NEW_SESSION_TICKET, bytes(8) + vector(b"", 1) + vector(b"", 2) + vector(b"", 2)
)


def late(engine: str, *, from_server: bool) -> Iterator[tuple[bytes, int]]:
    """What a peer may write in 1-RTT packets, and what it is told."""
    for kind in ALL_TYPES:
        if from_server and kind == HandshakeType.NEW_SESSION_TICKET:
            continue
        is_request = from_server and kind == HandshakeType.CERTIFICATE_REQUEST
        code = PROTOCOL_VIOLATION if is_request else UNEXPECTED_MESSAGE
        yield message(kind, b"\0"), code
        yield bytes((kind,)), code
    if from_server:
        if engine == "native":  # aioquic's client keeps no tickets unless it is asked to
            yield LIMITED_TICKET, PROTOCOL_VIOLATION
            yield EMPTY_TICKET, DECODE_ERROR
        yield message(HandshakeType.NEW_SESSION_TICKET, bytes(3)), DECODE_ERROR
        yield b"\x04\xff\xff\xff", DECODE_ERROR


def write_late(peer: StockPeer, data: bytes) -> None:
    assert peer.quic is not None
    peer.quic._crypto_streams[Epoch.ONE_RTT].sender.write(data)
    peer.poke()


@pytest.mark.parametrize("from_server", [False, True], ids=["clients", "servers"])
def test_messages_after_the_handshake(
    from_server: bool, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def one(stack: Stack, network: MemoryNetwork, host: str, data: bytes) -> int:
        link = network.link(host)
        peer = StockPeer(link, PORT if from_server else 0)
        async with trio.open_nursery() as nursery:
            if from_server:
                peer.accept(server_configuration())
                nursery.start_soon(be_closed, stack, f"quic://{host}:{PORT}")
            else:
                await peer.connect(client_configuration(), OURS, PORT)
            nursery.start_soon(peer.run)
            await peer.wait_for(HandshakeCompleted)
            await trio.sleep(0.1)
            # A part of a message is enough, and so is one in parts.
            write_late(peer, data[:1])
            await trio.sleep(0.1)
            write_late(peer, data[1:])
            end = await peer.wait_for(ConnectionTerminated)
            nursery.cancel_scope.cancel()
        link.close()
        return end.error_code

    async def be_closed(stack: Stack, uri: str) -> None:
        async with stack.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
            await connection.wait_closed()

    async def main() -> None:
        network = MemoryNetwork(seed=4)
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            for number, (data, code) in enumerate(late(engine, from_server=from_server)):
                got = await one(stack, network, f"10.3.0.{number + 1}", data)
                assert got == code, (data, hex(got))

    with no_trace(caplog):
        run(main)


@pytest.mark.parametrize("offset", [1 << 20, 1 << 30, (1 << 62) - 4])
def test_a_crypto_frame_far_ahead(offset: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=5)
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
            trio.open_nursery() as nursery,
        ):
            peer = StockPeer(network.link(STOCK))
            await peer.meet(client_configuration(), OURS, PORT)
            peer.send(peer.seal(b"\x06" + encode_uint_var(offset) + encode_uint_var(8) + bytes(8)))
            nursery.start_soon(peer.run)
            end = await peer.wait_for(ConnectionTerminated)
            # CRYPTO_BUFFER_EXCEEDED, FRAME_ENCODING_ERROR
            assert end.error_code == (0x0D if offset < 1 << 61 else 0x07)
            nursery.cancel_scope.cancel()

    with no_trace(caplog):
        run(main)


# --- what is allowed -----------------------------------------------------------------------------


def test_a_hello_in_many_packets() -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=6)
        grease = in_hello(lambda h: h._replace(extensions=[(0x1A1A, bytes(9000)), *h.extensions]))
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            # aioquic's hash is of what it meant to send, so it ends at the server's Finished, which
            # is after the server has taken the hello.
            code = await be_refused(network, 0, Case("", Epoch.INITIAL, grease, 0))
            assert code not in (DECODE_ERROR, UNEXPECTED_MESSAGE), hex(code)

    run(main)


# --- a HelloRetryRequest -------------------------------------------------------------------------


def with_share_of_x448(data: bytes) -> bytes:
    """A ClientHello with a key share of a group that the server has not, and others to choose."""
    group = b"\0\x1e"
    share = extension(51, lambda d: vector(group + vector(bytes(56), 2), 2))
    groups = extension(10, lambda d: vector(group + d[2:], 2))
    return share(groups(data))


RETRIED = {
    "no parameters": (extension(PARAMETERS), MISSING_EXTENSION),
    "no ALPN": (extension(ALPN), NO_APPLICATION_PROTOCOL),
    "early data": (
        in_hello(lambda h: h._replace(extensions=[(42, b""), *h.extensions])),
        ILLEGAL_PARAMETER,
    ),
    "another update": (behind(KEY_UPDATE), UNEXPECTED_MESSAGE),
    "a third": (lambda data: data + data, UNEXPECTED_MESSAGE),
    "the same share": (with_share_of_x448, HANDSHAKE_FAILURE),
}


@pytest.mark.parametrize("name", RETRIED)
def test_a_hello_after_a_retry_request(
    name: str, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    if engine == "aioquic":
        pytest.skip("aioquic sends no HelloRetryRequest")
    change, code = RETRIED[name]
    hellos = []

    def prepare(quic: Any) -> None:
        initialize = quic._initialize

        def initialize_and_wrap(peer_cid: bytes) -> None:
            initialize(peer_cid)
            handle = quic.tls.handle_message

            def handle_or_retry(data: bytes, output: dict[Epoch, Buffer]) -> None:
                initial = output[Epoch.INITIAL]
                if not data:
                    handle(data, output)
                    hellos.append(initial.data)
                    initial.seek(0)
                    initial.push_bytes(with_share_of_x448(hellos[0]))
                elif data[6:38] == RETRY_RANDOM:
                    hellos.append(data)
                    initial.push_bytes(change(hellos[0]))

            quic.tls.handle_message = handle_or_retry

        quic._initialize = initialize_and_wrap

    async def main() -> None:
        network = MemoryNetwork(seed=7)
        async with (
            hoststack.open_stack(link=network.link(OURS)) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
            trio.open_nursery() as nursery,
        ):
            peer = StockPeer(network.link(STOCK))
            peer.prepare = prepare
            await peer.connect(client_configuration(), OURS, PORT)
            nursery.start_soon(peer.run)
            end = await peer.wait_for(ConnectionTerminated)
            assert len(hellos) == 2
            assert end.error_code == code, hex(end.error_code)
            nursery.cancel_scope.cancel()

    with no_trace(caplog):
        run(main)
