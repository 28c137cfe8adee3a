"""Messages between processes: what is written is read, and rubbish is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoststack.boundary import messages as m
from hoststack.boundary.codec import (
    CodecError,
    FifosReleased,
    SegmentCame,
    SegmentGone,
    Unparsed,
    decode_notice,
    decode_request,
    encode,
)
from hoststack.boundary.fifo_pool import (
    BlockName,
    FifoPool,
    FifoSize,
    PoolExhaustedError,
    SharedFifos,
)
from hoststack.boundary.protocols import TcpConfig, UdpConfig
from hoststack.native.memory.fifo import Fifo
from hoststack.quic.seam import CloseInfo, Handshake, QuicConfig
from hoststack.quic.session_cache import Ticket
from hoststack.quic.tls import TlsConfig

TLS = TlsConfig.self_signed(["localhost"])
KNOWN = m.Known(Ticket(b"session", b"parameters", "h3", 2e9), b"")
WHOLE = Handshake("accepted", True, (b"leaf", b"ca"), "aes-128-gcm", "localhost", b"own")
HERE, THERE = ("127.0.0.1", 4433), ("::1", 1234)


def no_fifo(name: BlockName) -> Fifo:
    raise ValueError(f"there is no {name}")


@pytest.mark.parametrize(
    "request_",
    [
        m.Connect(1, THERE, "localhost", TlsConfig(verify=False), ("h3", "x"), QuicConfig()),
        m.Connect(1, HERE, "x", TlsConfig(), ("x",), None, KNOWN),
        m.Connect(1, HERE, "", TlsConfig(), (), TcpConfig(1, 2, 3), protocol="tcp"),
        m.Connect(1, HERE, "", TlsConfig(), (), UdpConfig(1, 2, 3), protocol="udp"),
        m.Bind(1, HERE, UdpConfig(1, 2, 3)),
        m.Cancel(3),
        m.Unlisten(1 << 61),
        m.CloseConnection(1, (1 << 62) - 1, "why"),
        m.UpdateKey(1),
        m.ReplaceTls(1, 2, TlsConfig(), ("h3",)),
        m.Migrate(1, 2, None),
        m.Migrate(1, 2, THERE),
        m.GetStatistics(1, 2),
        FifosReleased((BlockName(0, 4096, 1024),)),
    ],
    ids=lambda request: type(request).__name__,
)
def test_requests_arrive_as_they_were(request_: m.Request) -> None:
    assert decode_request(encode(request_)) == request_


def test_certificates_go_along_and_paths_do_not() -> None:
    sent = m.Listen(1, HERE, TLS, ("h3",), QuicConfig(idle_timeout_s=3))
    unparsed = decode_request(encode(sent))
    assert isinstance(unparsed, Unparsed)
    listen = unparsed.parse()
    assert listen.tls.chain == TLS.chain
    assert listen.config == sent.config
    data = encode(sent)
    pem = TLS.certificate
    assert isinstance(pem, bytes)
    assert data.count(pem[:64]) == 1


@pytest.mark.parametrize(
    "notice",
    [
        m.Failed(1, 111, "why"),
        m.Listening(1, 2, HERE),
        m.Connected(1, 2, HERE, THERE, "h3", WHOLE),
        m.Accepted(1, 2, HERE, THERE, None, Handshake()),
        m.Done(1),
        m.StreamsAvailable(1),
        m.HandshakeDone(1, Handshake()),
        m.Closed(1, CloseInfo(2, True, "why", True)),
        m.Statistics(1, {"rtt_s": 0.5, "lost": 3}),
        m.PathChanged(1, HERE, THERE),
        m.Learned(1, KNOWN),
        m.Learned(1, m.Known(None, b"token")),
        SegmentCame(3),
        SegmentGone(3),
    ],
    ids=lambda notice: type(notice).__name__,
)
def test_notices_arrive_as_they_were(notice: m.Notice) -> None:
    assert decode_notice(encode(notice), no_fifo) == notice


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x00",
        encode(m.Cancel(1)) + b"x",
        encode(m.Failed(1, 2, "a notice is no request")),
        encode(m.CloseConnection(1, 1 << 62, "beyond a variable-length integer")),
        encode(m.CloseConnection(-1, 0, "")),
        encode(m.CloseConnection(1, 0, "x" * 5000)),
        encode(m.Migrate(1, 2, ("127.0.0.1", 65536))),
        encode(m.Migrate(1, 2, ("no address", 1))),
        encode(m.Connect(1, ("localhost", 1), "x", TlsConfig(), (), QuicConfig())),
    ],
)
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_request(data)


@pytest.mark.parametrize("zone", ["", "\0", "é" * 70, "a。b", "a b", "a/b", "x" * 16, "..", "a%b"])
def test_zones_that_name_no_interface_are_left_out(zone: str) -> None:
    """The C library would look for them wherever it looks for names."""
    came = decode_request(encode(m.Bind(1, ("fe80::1%" + zone, 5), None)))
    assert came == m.Bind(1, ("fe80::1", 5), None)


@pytest.mark.parametrize("zone", ["eth0", "3", "eth0.100", "br-1_a"])
def test_zones_come_along(zone: str) -> None:
    request = m.Bind(1, ("fe80::1%" + zone, 5), None)
    assert decode_request(encode(request)) == request
    assert decode_request(encode(m.Bind(1, ("10.0.0.1%" + zone, 5), None))) == m.Bind(
        1, ("10.0.0.1", 5), None
    )


@pytest.mark.parametrize("field", ["idle_timeout_s", "rx_fifo_bytes", "max_streams_bidi"])
@pytest.mark.parametrize("value", [-1, 1e300, float("nan"), "x"])
def test_no_connection_is_like_that(field: str, value: object) -> None:
    good = encode(m.Connect(1, HERE, "x", TlsConfig(), (), QuicConfig()))
    fields = msgspec.msgpack.decode(good[1:])
    [config] = (each[0] for each in fields if isinstance(each, list) and len(each) == 3)
    config[field] = value
    with pytest.raises(CodecError):
        decode_request(good[:1] + msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("configs", [[None] * 3, [None, {}, {}], [{}, {}, {}]])
def test_a_request_has_the_settings_of_one_protocol(configs: list[object]) -> None:
    good = encode(m.Connect(1, HERE, "x", TlsConfig(), (), QuicConfig()))
    fields = msgspec.msgpack.decode(good[1:])
    [place] = (i for i, each in enumerate(fields) if isinstance(each, list) and len(each) == 3)
    fields[place] = configs
    with pytest.raises(CodecError):
        decode_request(good[:1] + msgspec.msgpack.encode(fields))


@given(st.binary(max_size=200))
def test_anything_else_is_refused_too(data: bytes) -> None:
    try:
        decode_request(data)
    except CodecError:
        return
    assert data[0] < 32  # by chance it was one


def test_fifos_lie_in_segments_that_both_map() -> None:
    segments: list[int] = []
    done: list[BlockName] = []
    theirs = SharedFifos(done.append)

    def send(number: int, fd: int) -> None:
        segments.append(number)
        theirs.add_segment(number, [fd])

    pool = FifoPool("app", 1 << 20, send, theirs.remove_segment)
    (fifo,) = pool.make([FifoSize(5000, 5000)])
    name = pool.name_of(fifo)
    (other,) = pool.make([FifoSize(1024, 1024)])
    notice = m.DatagramsReady(1, fifo, other, 100)
    read = decode_notice(encode(notice, pool.hand_out), theirs.open)
    assert isinstance(read, m.DatagramsReady)
    fifo.write(b"hello")
    assert read.rx.read(10) == b"hello"
    assert segments == [0]

    with pytest.raises(PoolExhaustedError, match="close streams"):
        pool.make([FifoSize(1 << 20, 1 << 20)])
    assert pool.used_bytes > 0
    del read, notice
    assert set(done) == {name, pool.name_of(other)}
    for each in done:
        pool.release(each)
    assert pool.used_bytes > 0  # the worker still has them
    del fifo, other
    assert pool.used_bytes == 0

    (again,) = pool.make([FifoSize(5000, 5000)])
    assert pool.name_of(again) == name
    assert again.readable == 0
    assert segments == [0]
    with pytest.raises(ValueError, match="outside"):
        theirs.open(BlockName(0, 64 << 20, 1024))
    with pytest.raises(ValueError, match="no segment"):
        theirs.open(BlockName(7, 0, 1024))
    pool.close()
