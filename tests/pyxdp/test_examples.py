"""The examples, run as they are."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyxdp
from tests.pyxdp.conftest import Veth

EXAMPLES = Path(pyxdp.__file__).parent / "examples"


@contextlib.contextmanager
def running(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.terminate()


def udp_packet(payload: bytes) -> bytes:
    header = bytes.fromhex("020000000002 020000000001 0800")
    ip = bytes.fromhex("4500 0000 0000 0000 40 11 0000 0a000001 0a000002")
    ports = bytes.fromhex("1111 2222")
    return header + ip + ports + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload


def test_udp_reflector(veth: Veth) -> None:
    with (
        running("udp_reflector.py", veth.right) as child,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as raw,
    ):
        assert child.stdout is not None
        assert child.stdout.readline().startswith("reflecting UDP on queue 0")
        raw.bind((veth.left, 0x0003))
        raw.settimeout(5)
        raw.send(bytes.fromhex("ffffffffffff 020000000001 0806") + bytes(46))  # not UDP: swallowed
        raw.send(udp_packet(b"hello"))
        answer = raw.recv(2048)
        while answer[:6] != bytes.fromhex("020000000001"):
            answer = raw.recv(2048)
        assert answer[6:12] == bytes.fromhex("020000000002")
        assert answer[26:34] == bytes.fromhex("0a000002 0a000001")
        assert answer[34:38] == bytes.fromhex("2222 1111")
        assert answer[42:] == b"hello"


def test_packet_counter(veth: Veth) -> None:
    with (
        running("packet_counter.py", veth.right) as child,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
    ):
        assert child.stdout is not None
        assert child.stdout.readline().startswith(f"counting on {veth.right} in native mode")
        raw.bind((veth.left, 0))
        for _ in range(3):
            raw.send(udp_packet(b"hello"))
        # One line a second: the first may be older than the packets.
        lines = [child.stdout.readline() for _ in range(2)]
        assert lines[-1] == f"3 packets, {3 * len(udp_packet(b'hello'))} bytes\n"


def test_example_errors_are_one_line(privileged: None) -> None:
    for name in ("packet_counter.py", "udp_reflector.py"):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), "nope0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "no interface 'nope0'" in done.stderr
