"""Makes tests/fuzz/corpus: `python -m tests.fuzz.make_corpus`.

Small inputs that reach what a fuzzer would look for in vain, and those with which one found faults.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Final

from tests.fuzz.targets import CORPUS
from tests.support import packets

#: Inputs that ended a process once; what was wrong is in the log of the files that changed.
FOUND: Final = {
    "http3": {
        "hidden_content": (
            "2400001f94000500283f0700006f0000410000000500283f0700006f010061500059ce"
            "803a012a00283f0000000000002f6f3a00003a"
        ),
        "value_of_one_nul": (
            "55380000000050559eaef3f301a7737373737373737373737373737373737373737373"
            "73737373737373737373737373f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3"
            "f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f32655550040559e850023d3"
            "00"
        ),
    },
    "turn": {"client_returns": "00950030197009"},
    "handshake": {
        "early_keys_twice": "58000503390100",
        "large_initial_and_ping": "3ff82d2d2d2d2d454e4420338f0100",
    },
    "plaintext": {
        "key_update_early": "741500000a0e005249" + 26 * "00" + "654168564054" + "45",
        "connection_id_retired_early": "33e88032083f020100" + "1405ff",
        "handshake_done_early": "01a80081010000151e",
    },
}


def frames() -> Iterator[bytes]:
    payload = b"\x40" + bytes(30)
    udp = packets.udp(payload)
    v4, v6 = packets.ipv4(udp), packets.ipv6(udp)
    plain = [
        packets.ethernet(v4),
        packets.ethernet(v6, packets.IPV6),
        packets.ethernet(v4, tags=(0x8100,)),
        packets.ethernet(v6, packets.IPV6, (0x88A8, 0x8100)),
        packets.ethernet(v4, tags=(0x88A8, 0x8100, 0x8100)),
        packets.ethernet(v4) + bytes(18),  # padded by the driver
        packets.ethernet(packets.ipv4(udp, options=bytes(8))),
        packets.ethernet(packets.ipv4(udp, fragment=0x2000)),
        packets.ethernet(packets.ipv4(udp, ihl=4)),
        packets.ethernet(packets.ipv4(udp, total=2000)),
        packets.ethernet(packets.ipv4(udp, protocol=6)),
        packets.ethernet(packets.ipv4(packets.udp(b"", length=7))),
        packets.ethernet(packets.ipv4(packets.udp(payload, length=600))),
        packets.ethernet(packets.ipv6(udp, length=600), packets.IPV6),
        packets.ethernet(packets.ipv6(udp, follows=packets.FRAGMENT), packets.IPV6),
        packets.ethernet(bytes(28), packets.ARP),
        v4,
    ]
    for kinds in ((packets.HOP_BY_HOP,), (packets.ROUTING, packets.DESTINATION), (60,) * 9):
        inner = udp
        follows = packets.UDP
        for kind in kinds:
            inner, follows = packets.extension(follows, 16) + inner, kind
        plain.append(packets.ethernet(packets.ipv6(inner, follows=follows), packets.IPV6))
    left = packets.extension(packets.UDP, segments_left=1) + udp
    plain.append(packets.ethernet(packets.ipv6(left, follows=packets.ROUTING), packets.IPV6))
    yield from (b"\0" + frame for frame in plain)
    for at in (0, 64, 300):  # bursts: descriptors, and a UMEM in which a frame lies
        good = struct.pack("!HH", at, len(plain[0]))
        wide = struct.pack("!HQH", 0x8000, 1 << 63, 20) + struct.pack("!HQ", 0x4000, 1 << 31)
        yield b"\4" + good + good + wide + bytes(at) + plain[0]


def fifo() -> Iterator[bytes]:
    def write(n: int) -> bytes:
        return b"\0" + struct.pack("!H", n)

    def put(n: int, ahead: int) -> bytes:
        return b"\0" + struct.pack("!HH", n, ahead)

    def read(n: int) -> bytes:
        return b"\3" + struct.pack("!H", n)

    def look(n: int, ahead: int) -> bytes:
        return b"\2" + struct.pack("!HH", n, ahead)

    def drop(ahead: int) -> bytes:
        return b"\4" + struct.pack("!H", ahead)

    def near(offset: int, *, index: int, of_producer: bool) -> bytes:
        return bytes((15 if of_producer else 7, index << 2, 128 + offset))

    def anything(value: int, index: int) -> bytes:
        return bytes((7, 1 | index << 2)) + struct.pack("!Q", value)

    truth, arm, written, by_offset = b"\6", b"\5", b"\0", b"\0"
    for bits in (0, 3, 8, 10):
        size = 1 << bits
        in_order = written + bytes((bits << 1,))
        around = write(size) + look(size, 0) + read(size // 2 + 1) + write(size) + look(size, 1)
        yield in_order + around + arm + drop(1) + read(size)
        holes = put(1, 1) + put(1, 3) + put(2, 2) + put(1, 0) + put(size, 0)
        yield by_offset + bytes((bits << 1 | 1,)) + holes + read(3) + put(size + 1, 0)
        for index in (0, 1):
            for offset in (-1, 1, min(size, 100), min(size, 100) + 1):
                for of_producer in (False, True):
                    lie = near(offset, index=index, of_producer=of_producer)
                    after = write(size) + read(size) + look(size, 0) + drop(1) + truth + write(3)
                    yield in_order + write(size // 2) + lie + after + read(size)
            for value in ((1 << 64) - 1, 1 << 63, (1 << 63) - 1, (1 << 62) + 3):
                yield in_order + write(size) + anything(value, index) + read(9) + write(9) + drop(2)
    for bits in (1, 3, 7):
        size = 1 << bits
        message = b"\0" + struct.pack("!H", max(size // 2 - 1, 0))
        some = bytes((2, bits)) + message * 2 + b"\1" + message + b"\1\1"
        yield some
        for index in (0, 1, 32, 33):  # indices, and where the first lengths lie
            lie = bytes((7, 3 | (index & 63) << 2)) + struct.pack("!Q", 0xFFFF_FFFF_0000_FFFF)
            yield some + message + lie + b"\1\2\1" + message
    for bits in (0, 2):
        size = 1 << bits
        ring = bytes((1, bits)) + b"\0" * (size + 1) + bytes((size << 2 | 1,)) + b"\0\0\5"
        yield ring
        for index in (0, 1):
            for value in (0, (1 << 64) - 1, size + 1, 1 << 63):
                lie = bytes((3, 1 | index << 2)) + struct.pack("!Q", value)
                yield ring + lie + b"\0\5\0\x25" + b"\2\0\5"


class Program:
    """An input of the session target: operations, as that names them."""

    def __init__(self, remote: int = 0, order: int = 0, first: int = 0, ring: int = 0) -> None:
        """`remote` has a bit for each application, `order` is that in which all ends, and the rings
        have 2 << `ring` events."""
        self.data = bytes((first | remote << 2 | ring << 5, order))

    def _more(self, *data: int) -> Program:
        self.data += bytes(data)
        return self

    def connection(self, *, in_python: bool = False, shared: bool = False) -> Program:
        """Of the first application."""
        kind = in_python << 6 | shared << 7
        return self._more(0x16, kind + -kind % 3)

    def peer_opens(self, how: int = 0, connection: int = 0) -> Program:
        """`how`: 1 unidirectional, 2 without memory, 4 unreported."""
        return self._more(0x20, connection, how)

    def opens(self, how: int = 0, connection: int = 0) -> Program:
        """`how`: 1 unidirectional, 2 without credit, 4 in vain."""
        return self._more(0x22, connection, how)

    def on_connection(self, *names: str) -> Program:
        codes = {"accept": 3, "announce": 4, "close": 5, "count": 6, "drop": 7}
        for name in names:
            self._more(0x20 | codes[name], 0)
        return self

    def report(self, *names: str, stream: int = 0) -> Program:
        bits = ("opened", "readable", "writable", "reset", "stopped", "finished", "over")
        return self._more(0x40, stream, sum(1 << bits.index(name) for name in names))

    def peer_sends(self, how: int = 64, stream: int = 0) -> Program:
        """With its end if `how` is a multiple of 8."""
        return self._more(0x41, stream, how)

    def transport_sends(self, how: int = 64, stream: int = 0) -> Program:
        return self._more(0x42, stream, how)

    def scribbles(self, *data: int, stream: int = 0) -> Program:
        return self._more(0x43, stream, *data)

    def end(self, name: str, how: int = 0, stream: int = 0) -> Program:
        names = (
            *("read", "write", "finish", "close", "reset", "stop", "close_receiving"),
            *("wait", "cut", "state", "drop"),
        )
        return self._more(0xC0 + names.index(name), stream, how)

    def application(self, name: str, *data: int) -> Program:
        """`follow` and `tell` are the worker's, `hear` and `settle` the application's, and `events`
        is all of them; the application is the first."""
        names = (
            *("follow", "command", "wakes", "leave", "most", "release", "", "", "tell", "hear"),
            *("settle", "ping", "scribble", "segment", "push", "events"),
        )
        which = {"release": 0x81, "most": 12, "follow": 0}.get(name, 0xFC)
        return self._more(0x10 | names.index(name), which, *data)

    def collect(self) -> Program:
        return self._more(1)

    def look(self) -> Program:
        return self._more(0)


def session() -> Iterator[bytes]:
    for remote in (0, 1):
        for in_python in (False, True):
            for order in (0, 1, 4, 8, 15):

                def start() -> Program:
                    made = Program(remote, order, order & 3)  # noqa: B023
                    return made.connection(in_python=in_python)  # noqa: B023

                whole = start().on_connection("announce").peer_opens().peer_sends()
                whole.application("events").on_connection("accept").end("read", 255).end("write", 9)
                whole.application("events").end("read", 1).end("finish").transport_sends()
                whole.report("finished", "over").look().application("wakes").application("events")
                yield whole.end("close").end("drop").collect().look().data
                late = start().peer_opens(1).peer_sends().report("over").look()
                late.on_connection("announce", "accept").application("events")
                yield late.on_connection("accept").end("read", 255).end("state").data
                own = start().on_connection("announce").application("events").opens()
                own.application("events").end("write", 255).end("wait")
                own.end("cut", 1).end("stop").end("close").report("stopped", "finished", "over")
                yield own.application("events").application("wakes").collect().data
                cut = start().on_connection("announce").opens(1).peer_opens().application("events")
                cut.on_connection("accept").end("write", 255, 0).end("reset", 7, 1).on_connection(
                    "close", "count", "drop"
                )
                yield cut.application("wakes").application("leave").collect().data
    refused = Program().application("most").connection().on_connection("announce")
    yield refused.opens(2).opens(4).peer_opens().peer_opens(1).peer_opens().look().data
    hostile = Program(1).connection().on_connection("announce").application("events")
    hostile.peer_opens(2).opens(4).application("events").opens().application("events")
    yield hostile.scribbles(3, 255, 255, stream=1).transport_sends(stream=1).look().data
    for ring in range(4):
        for kind in range(1, 10):
            for order in (0, 5, 0x48, 0x61):
                full = Program(1, order, ring=ring).connection().on_connection("announce")
                full.application("ping").peer_opens().application("events").peer_opens(1)
                full.opens(1).opens().application("tell").peer_sends().peer_sends(stream=1)
                full.application("push").application("hear").application("settle")
                full.on_connection("accept", "accept").end("write", 200).end("close")
                full.application("command", kind, 0).application("command", kind | 0x30, 0)
                full.application("follow").application("tell").end("drop").end("drop", stream=1)
                full.report("finished", "over").report("over", stream=1).collect()
                yield full.application("settle").application("segment").data
    for words in range(0, 40, 8):
        broken = Program(1, words).connection().on_connection("announce").application("events")
        broken.opens().peer_opens().application("scribble", 1 | words, *(200 + words,) * 8)
        yield broken.application("events").application("events").data


def found_session() -> dict[str, bytes]:
    """What the session target found."""

    def start(remote: int = 0) -> Program:
        return Program(remote).connection().on_connection("announce")

    faults = {
        "no_wake_up_yet": Program().application("wakes"),
        "streams_of_a_dropped_connection": start()
        .on_connection("drop")
        .collect()
        .peer_opens()
        .report("over")
        .peer_opens(),
        "never_announced": Program(1).connection().peer_opens(),
        "closed_after_its_end": start(1)
        .peer_opens()
        .report("over")
        .application("events")
        .on_connection("close")
        .application("events"),
        "opened_twice": start()
        .peer_opens()
        .report("opened")
        .on_connection("accept", "accept")
        .collect(),
        "connection_dropped_first": start(1)
        .peer_opens()
        .application("events")
        .on_connection("drop")
        .end("drop"),
        "dropped_untaken": start(1)
        .peer_opens()
        .application("events")
        .end("drop")
        .on_connection("accept"),
        "signal_of_this_process": start()
        .peer_opens()
        .application("events")
        .on_connection("drop")
        .collect(),
        "application_left": start(1).peer_opens().application("release"),
        "announced_to_no_one": Program(1)
        .connection()
        .peer_opens()
        .application("release")
        .on_connection("announce"),
        "never_reported": start().peer_opens(4),
    }
    return {name: program.data for name, program in faults.items()}


class News:
    """An input of the attached target: what the worker tells, and what the application does."""

    def __init__(self, ring: int = 3, order: int = 0) -> None:
        """The rings have 1 << `ring` events."""
        self.data = bytes((ring, order))

    def _more(self, *data: int) -> News:
        self.data += bytes(data)
        return self

    def opened(self, stream: int = 0, rx: int = 1, tx: int = 9, *, own: bool = False) -> News:
        """Of the first connection; `rx` and `tx` are segment << 6 | page << 3 | size."""
        return self._more(0, not own, stream, rx, tx)

    def happened(self, events: int, stream: int = 0) -> News:
        return self._more(2, events, stream)

    def anything(self, kind: int, *data: int) -> News:
        return self._more(4, kind, *data)

    def scribbles(self, how: int, value: int, word: int = 0) -> News:
        return self._more(5, how & ~1, value, word)

    def obeys(self, count: int = 7) -> News:
        return self._more(6, count)

    def take(self) -> News:
        return self._more(0x18, 1)

    def settle(self, how: int = 0) -> News:
        return self._more(0x1D, how)

    def segment(self, how: int) -> News:
        return self._more(0x1C, how)

    def gone(self, *, freed: bool = False) -> News:
        return self._more(0x1E, 0x66 + freed)

    def connection(self, name: str = "new") -> News:
        return self._more(9, ("accept", "new", "gone", "count", "drop").index(name))

    def end(self, name: str, more: int = 0, which: int = 0) -> News:
        names = (
            *("read", "write", "finish", "close", "reset", "stop", "close_receiving"),
            *("wait", "cut", "state", "drop"),
        )
        more_of = (more,) if name in ("read", "write") else ()
        return self._more(8 | which << 1, names.index(name), *more_of)


def attached() -> Iterator[bytes]:
    for order in range(8):
        for ring in (0, 1, 3):
            start = News(ring, order).connection().opened().take().connection("accept")
            yield start.scribbles(4, 200, 0).end("read", 201).end("write", 200).end("read", 40).data
            full = start.opened(2, own=True).take().end("write", 9).end("finish").end("drop")
            full.end("finish").obeys().settle().happened(0x20).take().opened(4).take()
            yield full.connection("gone").settle().obeys().connection("drop").settle(0x80).data
    for rx in (1, 0x39, 0x2F, 0x81, 0xC1, 255):
        yield News().connection().opened(0, rx, 9).take().connection("accept").end("read", 9).data
        outside = News().connection().opened(0, 1, rx).take().connection("accept")
        yield outside.end("write", 200).end("close").end("drop").settle().data
    again = News(1).connection().opened().take().connection("accept").end("close").opened().take()
    yield (
        again.connection("accept").end("reset").end("drop").end("write", 9).end("drop").take().data
    )
    segments = News().connection().opened().take().segment(0x81).connection("accept").end("read", 1)
    yield segments.end("close").opened(2).take().segment(1).opened(4).take().connection("drop").data
    for kind in range(8):
        yield News().connection().anything(kind | 0x88, *range(56)).take().settle().data
    for word in (0, 1, 8):
        for how in (0, 2):
            yield News(2).connection().scribbles(how, 200, word).opened().take().settle().data
    yield News().connection().opened().take().gone().connection("accept").end("close").data
    freed = News().connection().opened().opened(2).take().connection("accept").connection("accept")
    yield freed.gone(freed=True).end("write", 9).connection("gone").end("close").end("drop").data


#: One of each frame type (RFC 9000 section 19), where a stream is meant: 0.
FRAMES: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "01",
        "0200000000",
        "03000000000102 03",
        "0204000200010000",
        "04004400 4400",
        "050007",
        "0500 c000000000000007",
        "060005 68656c6c6f",
        "0705 746f6b656e",
        "0800 68656c6c6f",
        "0a0405 68656c6c6f",
        "0e004000 05 68656c6c6f",
        "0f0040000001 65",
        "0b0203 656e64",
        "10800fffff",
        "11004400",
        "1220",
        "13d000000000000001",
        "1410",
        "150010",
        "1610",
        "1710",
        "180500 0c" + 12 * "63" + 16 * "74",
        "18010108" + 8 * "64" + 16 * "75",
        "1900",
        "1a" + 8 * "31",
        "1b" + 8 * "32",
        "1c000000",
        "1d0005 68656c6c6f",
        "1e",
        "300102",
        "3105 68656c6c6f",
        "4021",
        "00",
    )
)


def stops() -> Iterator[bytes]:
    rng = random.Random(1)
    yield from FRAMES
    stop = FRAMES[5]
    for frame in FRAMES:
        yield frame + stop
    for _ in range(10):
        yield b"".join(rng.sample(FRAMES[:-2], 6)) + stop


def tokens() -> Iterator[bytes]:
    prefix = bytes((12,)) + b"destination!"  # lengths are within the fuzzer's 21
    source = bytes((8,)) + b"thesourc"
    own = bytes((0x80 | 64,)) + bytes(1)  # a multiple of 21 and a bit more: one of ours
    for shape in (0, 1, 2, 4, 8):
        for version in (0, 1, 2, 3):
            for token in (
                b"\0\0\0",  # none
                b"\x01\0",
                b"\x05\0",  # of another address
                b"\x02\0" + prefix,
                b"\x0a\0" + prefix + b"\5\1",  # with one byte changed
                b"\x01\xff",  # too old
                b"\x82\0" + prefix + b"\x10",  # cut off
            ):
                if shape in (0, 1) or token == b"\0\0\0":
                    yield bytes((shape, 0x40, 1, 0, version)) + prefix + source + token
    for how in (0, 1, 8, 0x18, 0x38):
        yield bytes((0, how | 0x40, 1, 0, 0)) + prefix + source + b"\2\0" + prefix
        for fill in (0, 20, 22, 43, 60, 250):
            yield bytes((0, how | 0x80, 1, 0xC0, fill)) + b"whatever follows" + own
    for how in (0, 8, 0x18, 0x38):  # a version of nobody's, long enough for an answer and not
        for padded in (0x80, 0):
            start = bytes((0, how, 0, padded, 30)) + b"\xc0\x1a\x2a\x3a\x4a\4dcid\4scid"
            yield start + bytes(16)
    many = bytes((0x80, 0, 0xC0, 60)) + b"twenty bytes of a cid"[:20]
    yield b"\0" + many * 20
    yield b"\0" + bytes((0, 0, 0x80, 30)) + b"\xc0\1\2\3\4\x20" + bytes(24)
    yield b"\0" + bytes((0, 0, 0x80, 6)) + b"\xff\0\0\0\1\xff"


#: Bytes of the turn's inputs: what becomes of a datagram (enum action) in the low half.
PASS, DROP, DUPLICATE, DELAY, FLIP, CUT, JOIN, GROW = range(8)
REPLAY, REBIND, APPLICATION, INJECT, MARK, UNKNOWN, WAIT = range(8, 15)


def turn() -> Iterator[bytes]:
    def act(action: int, amount: int = 0) -> bytes:
        return bytes((amount << 4 | action,))

    one = {
        "drop": act(DROP) * 3,
        "duplicate": act(DUPLICATE, 5) * 2,
        "late": act(DELAY, 9) + act(DELAY, 2) + act(PASS),
        "flip": act(FLIP) + b"\0\3\x80" + act(FLIP, 1) + b"\0\x20\1\0\0\x40",
        "cut": act(CUT) + b"\0\x14" + act(CUT) + b"\1\0",
        "join": act(JOIN) + act(JOIN),
        "grow": act(GROW, 4) + b"more",
        "replay": act(REPLAY, 2) + b"\0" + act(REPLAY, 1) + b"\1",
        "rebind": act(REBIND, 1) + act(PASS, 6) + act(REBIND, 2),
        "reset": act(APPLICATION, 0) + b"\0" + act(APPLICATION, 0) + b"\1",
        "stop": act(APPLICATION, 1) + b"\0" + act(APPLICATION, 1) + b"\3",
        "migrate": act(APPLICATION, 6) + b"\2" + act(PASS, 8) + act(APPLICATION, 6) + b"\4",
        "stay": act(APPLICATION, 6) + b"\2" + act(APPLICATION, 7) + b"\0",
        "key": act(APPLICATION, 2) + b"\0" + act(PASS, 9) + act(APPLICATION, 2) + b"\1",
        "close": act(APPLICATION, 3) + b"\1",
        "pause": act(APPLICATION, 4) + b"\1" + act(PASS, 9) + act(APPLICATION, 4) + b"\1",
        "scribble": act(APPLICATION, 5) + b"\x18" + bytes(7) + b"\xff",
        "inject": act(INJECT, 1) + b"\x8d\xc0\0\0\0\1\4dcid\4scid",
        "negotiate": act(INJECT, 0) + b"\x12\xc0\0\0\0\0\4dcid\4scid",
        "mark": act(MARK, 3) + act(PASS, 5) + act(MARK, 1),
        "unknown": act(UNKNOWN) * 2,
        "wait": act(WAIT, 4) + act(DROP) + act(WAIT, 15),
    }
    shapes = ((0x00, 0x95), (0x65, 0x1A), (0x89, 0xF4))  # the second: from the handshake on
    for i, actions in enumerate(one.values()):
        for a, b in shapes[i % 2 :]:
            yield bytes((a, b, i % 16)) + act(PASS, i % 5) + actions + act(PASS, 3) + actions


#: Of the handshake's inputs: what becomes of a TLS message (enum action), and what is offered.
MESSAGE_ACTIONS: Final = range(8)
#: TLS messages, whole and cut: KeyUpdate, ticket, CertificateRequest, EndOfEarlyData, a hello.
MESSAGES: Final = [
    b"\x18\0\0\1\0",
    b"\x18\0\0\1\1",
    b"\x18",
    b"\4\0\0\x0f" + bytes(8) + b"\0\0\2ab\0\0",
    b"\4\0\0\x17" + bytes(8) + b"\0\0\2ab\0\x08\0\x2a\0\4\xff\xff\xff\xff",
    b"\x0d\0\0\3\0\0\0",
    b"\5\0\0\0",
    b"\1\0\0\4" + bytes(4),
    b"\x14\0\0\x20" + bytes(32),
    b"\xff\xff\xff\xff",
]


def handshake() -> Iterator[bytes]:
    for side in (0, 1):
        for offers in range(16):
            for resumes in (0, 8):
                shape = bytes((side | resumes | offers << 4, 0))
                yield shape + bytes((offers, 3, 0x39, 1, 0))
        for action in MESSAGE_ACTIONS:
            for which in range(4):
                rest = b"\5\x18\0\0\1\0\0\0"
                shape = bytes((side | (which & 1) << 1 | (which & 2) << 2, 0))
                yield shape + bytes(which) + bytes((action,)) + rest
        for message in MESSAGES:
            # in the handshake, before and behind a message of its own, and after it
            sized = bytes((len(message),)) + message
            yield bytes((side, 0, 3)) + sized
            yield bytes((side, 0, 0, 4)) + sized
            yield bytes((side, 3)) + bytes(8) + b"\1" + sized
            yield bytes((side, 6)) + bytes(8) + b"\1" + sized
    parameters = (b"\x0f\0", b"\1\4\xbf\xff\xff\xff", b"\x11\x08\0\0\0\1\x6b\x33\x43\xcf", b"\0\0")
    for parameter in parameters:
        for side in (0, 1):
            yield bytes((side | 0x40, 0, 1, len(parameter))) + parameter


def plaintext() -> Iterator[bytes]:
    rng = random.Random(2)
    for i, frame in enumerate(FRAMES):
        # the hostile side, after the handshake; put in front of what its packet has
        start = bytes((0x80 | i & 1, i % 3 << 2, i % 16, 0x10 | i % 5))
        yield start + bytes((len(frame),)) + frame
        yield start + bytes((3 * len(frame),)) + frame * 3
    for level in range(6):  # the handshake's own packets
        for side in (0, 1):
            yield bytes((side, 0, 3, level, 5)) + b"\6\0\2\xff\xff"
            yield bytes((side, 0, 0, 0x30 | level, 3, 0, 9)) + b"\1\2\4"
    for _ in range(12):
        strikes = (bytes((0x10 | rng.randrange(4), len(f))) + f for f in rng.sample(FRAMES, 4))
        shape = bytes((0x80 | rng.randrange(64), rng.randrange(64), rng.randrange(4)))
        yield shape + b"".join(strikes)


def strangers() -> Iterator[bytes]:
    payloads = (b"\0\1", b"\1\1", b"\2\1", b"\4\1\5\1\6\2\0\x40", b"\x40\1", b"\x80\0\x20\1")
    for shape in (0, 1):
        for payload in payloads:
            for flow in (0, 4, 0x20, 0x10, 0x40, 0x84):
                frames = b"".join(bytes((flow, who)) + payload for who in range(0, 64, 9))
                yield bytes((shape,)) + (bytes((7,)) + frames + b"\1") * 3


def http3() -> Iterator[bytes]:
    """Programs of fuzz_http3.c: two peers, and an application that answers."""
    server, client = b"\x01", b"\x00"
    a_request, unidirectional = b"\x00\x00", b"\x01\x00"
    control, encoder, decoder, settings, priority = 0, 1, 2, 5, 7
    get, post, with_entry, response, trailers, data, entry = 14, 15, 16, 18, 21, 22, 26

    def piece(stream: int, *numbers: int) -> bytes:
        return b"".join(bytes([0x03, stream, number]) for number in numbers)

    def respond(stream: int, *, is_last: bool = False) -> bytes:
        return bytes([0x08, stream, 0x80 if is_last else 0])

    def content(stream: int, size_bytes: int, *, is_last: bool = False) -> bytes:
        return bytes([0x09, stream]) + struct.pack("!H", size_bytes << 1 | is_last)

    def end(stream: int) -> bytes:
        return bytes([0x06, stream])

    greeting = unidirectional + piece(0, control, settings)
    greeting += unidirectional + piece(1, encoder) + unidirectional + piece(2, decoder)
    asked = greeting + a_request + piece(3, get) + end(3)
    yield server + asked + respond(3, is_last=True) + b"\x0c\x03"
    sessions = bytes([0x81])
    yield sessions + asked + unidirectional + piece(4, 32, 22) + a_request + piece(5, 33, 22)
    yield bytes([0xC1]) + asked + a_request + piece(4, 31, 30) + bytes([0x0A, 0, 9]) + end(4)
    yield bytes([0x80]) + greeting + a_request + a_request + piece(4, 34) + end(3)
    yield (
        server
        + asked
        + respond(3)
        + content(3, 3000)
        + b"\x0a\x03\xff"
        + content(3, 5, is_last=True)
    )
    yield server + asked + respond(3) + content(3, 3000) + b"\x8f\x03" + b"\x0e\x03\x85"
    yield server + greeting + a_request + piece(3, post, data, trailers) + end(3) + b"\x08\x03\x02"
    yield server + greeting + a_request + piece(3, with_entry) + piece(1, entry) + respond(3)
    yield server + greeting + a_request + piece(3, with_entry) + b"\x0c\x03" + piece(1, entry)
    yield server + greeting + piece(0, priority, priority + 1, priority, priority + 2)
    yield server + asked + b"\x8d\x00" + a_request + piece(4, get) + b"\x0d\x00"
    yield server + greeting + a_request + piece(3, get) + b"\x07\x03" + b"\x0c\x03"
    yield client + greeting + a_request + b"\x08\x03\x83" + piece(3, response, data) + end(3)
    yield client + greeting + a_request + b"\x08\x03\x03" + content(3, 9000) + piece(0, 11, 12)
    yield client + greeting + a_request + b"\x08\x03\x83" + piece(3, 19, response, trailers)


def seeds() -> dict[str, dict[str, bytes]]:
    """The whole corpus: for each target, files by name."""
    made = {}
    core = (frames, fifo, session, attached, http3)
    for make in (*core, stops, tokens, strangers, turn, handshake, plaintext):
        files = {f"seed_{i:03}": data for i, data in enumerate(make())}
        for name, text in FOUND.get(make.__name__, {}).items():
            files[f"found_{name}"] = bytes.fromhex(text)
        made[make.__name__] = files
    made["session"] |= {f"found_{name}": data for name, data in found_session().items()}
    return made


def main() -> None:
    for target, files in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
