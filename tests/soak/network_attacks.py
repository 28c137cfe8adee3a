"""Attacks from the network: each runs until a moment of time.monotonic() and returns what it did.

`ATTACKS` names them; `python -m tests.soak.network_attacks NAME HOST QUIC_PORT UDP_PORT SECONDS
IFNAME MACS` runs one in a process of its own, in whatever network namespace it is started.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aioquic.tls as tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicConnection

from tests.soak.hostile_client import HostileClient, configuration, first_flight
from tests.support.checksummed import udp_frame

ALPN: Final = ["test"]
#: TLS handshake messages that no client may send after its Finished (RFC 9001, RFC 8446).
TLS_MESSAGES: Final = {
    "key_update": bytes.fromhex("1800000100"),
    "end_of_early_data": bytes.fromhex("05000000"),
    "client_hello": bytes.fromhex("01000004") + bytes(4),
    "new_session_ticket": bytes.fromhex("04000004") + bytes(4),
    "certificate_request": bytes.fromhex("0d00000b00000800000000000000"),
    "hello_request": bytes(4),
    "long": bytes.fromhex("18ffffff") + bytes(1000),
}


@dataclass(frozen=True)
class Target:
    """Where the server is, and how a raw frame gets there."""

    host: str
    quic_port: int
    udp_port: int
    ifname: str
    macs: bytes

    @property
    def place(self) -> tuple[str, int]:
        return self.host, self.quic_port


@contextmanager
def patched(name: str, replacement: Callable[..., None]) -> Iterator[None]:
    """One of aioquic's functions of `aioquic.tls` replaced."""
    original = getattr(tls, name)
    setattr(tls, name, replacement)
    try:
        yield
    finally:
        setattr(tls, name, original)


def hellos_without_parameters(target: Target, end: float) -> Counter[str]:
    """ClientHellos without quic_transport_parameters, or with bytes that are none."""
    done: Counter[str] = Counter()
    push, rng = tls.push_client_hello, random.Random(1)

    def broken(buffer: Any, hello: Any) -> None:
        kept = rng.choice([[], hello.other_extensions * 2, [(0x39, rng.randbytes(40))]])
        hello.other_extensions = kept
        push(buffer, hello)

    with patched("push_client_hello", broken):
        while time.monotonic() < end:
            with HostileClient(target.place, ALPN) as client:
                client.run(0.1)
                done["closed" if client.is_closed else "unanswered"] += 1
    return done


def no_alpn(target: Target, end: float) -> Counter[str]:
    """Clients that offer no application protocol, or one that the server does not have."""
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        for alpn in (None, ["nothing"], ["x" * 200]):
            with HostileClient(target.place, alpn) as client:
                done["served" if client.handshake() else "refused"] += 1
    return done


def tls_messages(target: Target, end: float) -> Counter[str]:
    """TLS messages in CRYPTO frames after the handshake."""
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        for name, message in TLS_MESSAGES.items():
            with HostileClient(target.place, ALPN) as client:
                if client.handshake():
                    client.run(0.05)
                    stream = client.quic._crypto_streams[tls.Epoch.ONE_RTT]
                    stream.sender.write(message)
                    client.run(0.5)
                    done[f"{name} {'closed' if client.is_closed else 'ignored'}"] += 1
    return done


def random_frames(target: Target, end: float) -> Counter[str]:
    """Frames of all types with random contents, in packets that are well encrypted."""
    done: Counter[str] = Counter()
    rng = random.Random(2)
    while time.monotonic() < end:
        with HostileClient(target.place, ALPN) as client:
            if not client.handshake():
                continue
            for _ in range(20):
                data = encode_uint_var(rng.choice([0, 1, 7, 64, 1 << 40, (1 << 62) - 1]))
                data += rng.randbytes(rng.randrange(30))
                client.frames.append((rng.randrange(0x40), data))
                client.run(0.01)
                done["frames"] += 1
    return done


def rapid_reset(target: Target, end: float) -> Counter[str]:
    """Streams of one byte that are reset at once, as many as the limit allows."""
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        with HostileClient(target.place, ALPN) as client:
            if not client.handshake():
                continue
            while not client.is_closed and time.monotonic() < end:
                for stream_id in client.open_streams(100, b"x"):
                    client.quic.reset_stream(stream_id, 7)
                    client.quic.stop_stream(stream_id, 7)
                    done["streams"] += 1
                client.run(0.01)
    return done


def slow_loris(target: Target, end: float) -> Counter[str]:
    """Connections whose streams all send one byte and then nothing."""
    with ExitStack() as stack:
        clients = []
        for _ in range(40):
            client = stack.enter_context(HostileClient(target.place, ALPN))
            if client.handshake():
                client.open_streams(128, b"x")
                clients.append(client)
        while time.monotonic() < end:
            for client in clients:
                client.run(0.005)
        return Counter(connections=len(clients))


def half_open(target: Target, end: float) -> Counter[str]:
    """Handshakes that are never finished, from a real address that answers Retry."""
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(16)
        ]
        for each in sockets:
            each.setblocking(False)
        waiting: dict[bytes, QuicConnection] = {}
        while time.monotonic() < end:
            quic = QuicConnection(configuration=configuration(ALPN))
            quic.connect(target.place, now=time.time())
            sender = sockets[done["initials"] % len(sockets)]
            _send_all(sender, quic, target.place)
            done["initials"] += 1
            waiting[quic.host_cid] = quic
            with suppress(BlockingIOError):
                while True:
                    data, address = sender.recvfrom(2048)
                    again = waiting.pop(data[6 : 6 + data[5]], None)
                    if data[0] & 0xF0 == 0xF0 and again is not None:
                        again.receive_datagram(data, address, now=time.time())
                        _send_all(sender, again, target.place)
                        done["after Retry"] += 1
            if len(waiting) > 2000:
                waiting.clear()
    return done


def _send_all(sender: socket.socket, quic: QuicConnection, place: tuple[str, int]) -> None:
    for data, _ in quic.datagrams_to_send(now=time.time()):
        with suppress(BlockingIOError, ConnectionRefusedError):
            sender.sendto(data, place)


def swapped_initials(target: Target, end: float) -> Counter[str]:
    """ClientHellos of two datagrams: the second first, the second alone, the first alone."""
    done: Counter[str] = Counter()
    names = [f"a-protocol-{number:03}-{'x' * 60}" for number in range(14)]
    orders: list[Callable[[list[bytes]], list[bytes]]] = [
        lambda flight: flight[::-1],
        lambda flight: flight[1:],
        lambda flight: flight[:1],
        lambda flight: flight[1:] * 3,
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while time.monotonic() < end:
            order = orders[done["flights"] % len(orders)]
            for data in order(first_flight(target.place, [*names, *ALPN])):
                with suppress(ConnectionRefusedError):
                    sender.sendto(data, target.place)
            done["flights"] += 1
            time.sleep(0.01)  # a rate, not a wait: 100 flights a second
    return done


def close_reasons(target: Target, end: float) -> Counter[str]:
    """Connections that are closed with terminal escapes and forged lines of a log as the reason."""
    done: Counter[str] = Counter()
    for reason in _cycle(
        ["\x1b[31mRED\r\nhoststack.daemon: worker 0 died", "\x9b2J", "\u202e\u2028", "x" * 900]
    ):
        if time.monotonic() > end:
            break
        with HostileClient(target.place, ALPN) as client:
            if client.handshake():
                client.open_streams(1, b"x")
                client.run(0.02)
                client.quic.close(error_code=7, reason_phrase=reason)
                client.run(0.05)
                done["closed"] += 1
    return done


def _cycle(values: list[str]) -> Iterator[str]:
    while True:
        yield from values


def noise(target: Target, end: float) -> Counter[str]:
    """Random datagrams, and first flights with some of their bytes changed."""
    done: Counter[str] = Counter()
    rng = random.Random(3)
    flight = first_flight(target.place, ALPN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while time.monotonic() < end:
            data = bytearray(rng.choice([rng.randbytes(rng.randrange(1, 1400)), *flight]))
            for _ in range(rng.randrange(4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if len(data) > 5 and rng.random() < 0.2:
                struct.pack_into("!I", data, 1, rng.choice([0, 2, 0x1A2A3A4A]))
            with suppress(ConnectionRefusedError):
                sender.sendto(data, target.place)
            done["datagrams"] += 1
            if done["datagrams"] % 32 == 0:
                time.sleep(0.01)
    return done


# --- from addresses that are not the sender's ---------------------------------------------------


def _spoofed(target: Target, rng: random.Random, payload: bytes, port: int, **sums: bool) -> bytes:
    source = f"10.77.{rng.randrange(256)}.{rng.randrange(3, 255)}"
    return udp_frame(
        payload,
        macs=target.macs,
        hosts=(source, target.host),
        ports=(rng.randrange(1024, 65536), port),
        **sums,
    )


def _blast(target: Target, end: float, make: Callable[[random.Random], bytes]) -> Counter[str]:
    done: Counter[str] = Counter()
    rng = random.Random(4)
    frames = [make(rng) for _ in range(2000)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((target.ifname, 0))
        while time.monotonic() < end:
            for frame in rng.sample(frames, 32):
                with suppress(OSError):  # a full queue loses it
                    sender.send(frame)
            done["frames"] += 32
            time.sleep(0.02)  # a rate, not a wait: some 1,500 a second
    return done


def spoofed_initials(target: Target, end: float) -> Counter[str]:
    """Initials of random sources, of versions that are there and such that are not."""
    (initial, *_) = first_flight(target.place, ALPN)

    def make(rng: random.Random) -> bytes:
        data = bytearray(initial)
        data[6:14] = rng.randbytes(8)
        if rng.random() < 0.3:
            struct.pack_into("!I", data, 1, 0x1A2A3A4A)
        return _spoofed(target, rng, bytes(data), target.quic_port)

    return _blast(target, end, make)


def spoofed_udp(target: Target, end: float) -> Counter[str]:
    """Datagrams of random sources to the port of a UDP listener."""
    return _blast(target, end, lambda rng: _spoofed(target, rng, bytes(20), target.udp_port))


def wrong_sums(target: Target, end: float) -> Counter[str]:
    """Datagrams with wrong checksums, and from sources that can't be."""

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return _spoofed(target, rng, b"wrong", target.udp_port, is_sum_right=False)
        source = rng.choice(["127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", target.host])
        port = rng.choice([target.udp_port, target.quic_port])
        return udp_frame(
            b"martian", macs=target.macs, hosts=(source, target.host), ports=(5000, port)
        )

    return _blast(target, end, make)


ATTACKS: Final[dict[str, Callable[[Target, float], Counter[str]]]] = {
    attack.__name__: attack
    for attack in (
        hellos_without_parameters,
        no_alpn,
        tls_messages,
        random_frames,
        rapid_reset,
        slow_loris,
        half_open,
        swapped_initials,
        close_reasons,
        noise,
        spoofed_initials,
        spoofed_udp,
        wrong_sums,
    )
}


def main() -> None:
    name, host, quic_port, udp_port, seconds, ifname, macs = sys.argv[1:]
    target = Target(host, int(quic_port), int(udp_port), ifname, bytes.fromhex(macs))
    done = ATTACKS[name](target, time.monotonic() + float(seconds))
    print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in sorted(done.items())))


if __name__ == "__main__":
    main()
