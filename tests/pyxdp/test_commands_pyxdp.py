"""The `pyxdp` command over a veth pair: what one end replays, the other captures and counts."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pyxdp.tools import Capture, FlowCounter, Packet, PcapngWriter, read_packets
from pyxdp.tools.main import main
from pyxdp.tools.replay import at_bits, at_packets, replay
from tests.pyxdp.conftest import Veth
from tests.pyxdp.frames import udp4

PYXDP = (sys.executable, "-m", "pyxdp.tools.main")
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "pyxdp" / "examples"


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line_of(stream: object) -> str:
    assert isinstance(stream, io.TextIOBase)
    return str(stream.readline())


def send(interface: str, *packets: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for packet in packets:
            raw.send(packet)


def write_file(path: Path, *packets: bytes, apart_ns: int = 0) -> str:
    with path.open("wb") as file:
        writer = PcapngWriter(file, "test")
        for number, data in enumerate(packets):
            writer.write(Packet(10**18 + number * apart_ns, data, len(data)))
    return str(path)


def test_what_is_replayed_is_captured(
    veth: Veth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More packets than a burst, of all sizes that the interface takes; and those of a filter."""
    payloads = [bytes([number]) * (number * 12) for number in range(120)]
    packets = [udp4(1000 + number, 4433, each) for number, each in enumerate(payloads)]
    path = write_file(tmp_path / "all.pcapng", *packets)
    before_ns = time.time_ns()
    with Capture(veth.right, "udp dst port 4433 and not src port 1001") as capture:
        assert main(["replay", "-i", veth.left, path, "--top-speed", "--loop", "2"]) == 0
        got: list[Packet] = []
        while len(got) < 238:
            came = capture.wait(5)
            assert came, f"{len(got)} packets came"
            got += came
        assert (capture.seen, capture.lost, capture.read()) == (238, 0, [])
    assert [packet.data for packet in got] == [packets[0], *packets[2:]] * 2
    assert all(len(packet.data) == packet.length_bytes for packet in got)
    assert all(before_ns - 10**9 < packet.time_ns < time.time_ns() + 10**9 for packet in got)
    assert f"pyxdp: 240 packets, {2 * sum(map(len, packets))} bytes in " in capsys.readouterr().err


def test_packets_go_on_and_are_cut_short(veth: Veth) -> None:
    with (
        Capture(veth.right, snap_bytes=20) as capture,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as raw,
    ):
        raw.bind((veth.right, 0x0003))
        raw.settimeout(5)
        send(veth.left, udp4())
        assert raw.recv(100) == udp4()
        [packet] = capture.wait(5)
        assert (packet.data, packet.length_bytes) == (udp4()[:20], 60)


def test_lost_packets_are_counted(veth: Veth, tmp_path: Path) -> None:
    """The ring buffer has 8 MiB, and nothing reads it."""
    packets = [Packet(0, udp4(payload=bytes(1400)), 1442)] * 6500
    with Capture(veth.right, "udp") as capture:
        replay(veth.left, packets)
        assert capture.seen == 6500
        assert 0 < capture.lost < 2000
        kept = sum(len(capture.read()) for _ in range(20))
        assert kept == capture.seen - capture.lost


def test_flows(veth: Veth) -> None:
    with FlowCounter(veth.right, "udp") as counter:
        send(veth.left, udp4(1), udp4(2), udp4(2), udp4(2, payload=bytes(58)))
        first, second = counter.flows()
        assert str(first) == "udp 10.0.0.1:2 > 10.0.0.2:4433"
        assert (first.packets, first.size_bytes, first.source_port) == (3, 220, 2)
        assert (second.packets, second.source_port) == (1, 1)


def test_of_too_many_flows_the_oldest_are_forgotten(veth: Veth) -> None:
    with FlowCounter(veth.right, "udp", most_flows=64) as counter:
        send(veth.left, *(udp4(port) for port in range(1, 1000)))
        flows = counter.flows()
        assert 0 < len(flows) <= 1000
        assert any(flow.source_port == 999 for flow in flows)


@pytest.mark.parametrize("pace", [at_packets(200), at_bits(200 * 60 * 8)], ids=["pps", "bps"])
def test_rates(veth: Veth, pace: object) -> None:
    """Never faster than asked for; how much slower is the machine's affair."""
    assert callable(pace)
    sent = replay(veth.left, [Packet(0, udp4(), 60)] * 21, pace)
    assert sent.packets == 21
    assert sent.seconds >= 0.099


def test_as_recorded(veth: Veth, tmp_path: Path) -> None:
    path = write_file(tmp_path / "slow.pcapng", *[udp4()] * 3, apart_ns=40_000_000)
    with open(path, "rb") as file:
        assert replay(veth.left, read_packets(file)).seconds >= 0.08


def test_capture_command(veth: Veth, tmp_path: Path) -> None:
    """It ends by itself after -c; what it wrote is what came."""
    path = tmp_path / "out.pcapng"
    words = ("capture", "-i", veth.right, "-w", str(path), "-c", "2", "udp", "port", "4433")
    with running(*PYXDP, *words) as child:
        assert line_of(child.stderr).startswith(f"pyxdp: capturing on {veth.right} in native mode")
        send(veth.left, udp4(1, 2), udp4(3), udp4(4), udp4(5))
        assert child.wait(20) == 0
        assert line_of(child.stderr) == "pyxdp: 2 packets captured, 0 lost\n"
    with path.open("rb") as file:
        assert [packet.data for packet in read_packets(file)] == [udp4(3), udp4(4)]


def test_capture_to_the_screen_ends_with_ctrl_c(veth: Veth) -> None:
    with running(*PYXDP, "capture", "-i", veth.right, "--mode", "generic") as child:
        assert "generic mode" in line_of(child.stderr)
        send(veth.left, udp4())
        assert " udp 10.0.0.1:1000 > 10.0.0.2:4433 60 bytes\n" in line_of(child.stdout)
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0
        assert "1 packets captured, 0 lost" in line_of(child.stderr)


def test_count_command(veth: Veth) -> None:
    """It counts from its first line on."""
    words = ("count", "-i", veth.right, "--every", "0.05", "udp")
    with running(*PYXDP, *words) as child:
        assert "counting on" in line_of(child.stderr)
        send(veth.left, udp4(), udp4())
        while (line := line_of(child.stdout)) == "0 flows, 0 packets\n":
            pass
        assert line == "1 flows, 2 packets\n"
        line = " ".join(line_of(child.stdout).split())
        assert line == "2 packets 120 bytes udp 10.0.0.1:1000 > 10.0.0.2:4433"


def test_examples(veth: Veth, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    sent = write_file(tmp_path / "in.pcapng", udp4(), udp4(7))
    with running(sys.executable, str(EXAMPLES / "capture.py"), veth.right, str(path), "udp") as one:
        assert line_of(one.stdout).startswith("capturing")
        send(veth.left, udp4())
        # The file is not buffered.
        with path.open("rb") as file:
            deadline_s = time.monotonic() + 20
            while os.fstat(file.fileno()).st_size < 150 and time.monotonic() < deadline_s:
                os.sched_yield()
            assert [packet.data for packet in read_packets(file)] == [udp4()]
    with running(sys.executable, str(EXAMPLES / "flow_counter.py"), veth.right, "port 7") as other:
        assert line_of(other.stdout).startswith("counting")
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "replay.py"), veth.left, sent, "1000"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("2 packets in ")
        expected = "udp 10.0.0.1:7 > 10.0.0.2:4433: 1 packets, 60 bytes\n"
        assert line_of(other.stdout) == expected


def says(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """A command's exit status and its one line."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return status, text.splitlines()[-1] if status == 2 else text.removesuffix("\n")


def test_bad_input(veth: Veth, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_file(tmp_path / "good.pcapng", udp4())
    large = write_file(tmp_path / "large.pcapng", udp4(), udp4(payload=bytes(1600)))
    broken = tmp_path / "broken.pcapng"
    broken.write_bytes(Path(good).read_bytes()[:-3])
    check = partial(says, capsys)

    for command in (("capture",), ("count",), ("replay", good)):
        status, line = check(command[0], "-i", "nope0", *command[1:])
        assert (status, line.count("\n")) == (1, 0)
        assert line.startswith("pyxdp: there is no interface 'nope0'")
    assert check("capture", "-i", veth.right, "udp prot 1")[0] == 2
    assert check("count", "-i", veth.right, "port", "x")[1].startswith("pyxdp: filter 'port x': ")
    status, line = check("capture", "-i", veth.right, "-w", str(tmp_path / "no" / "file"))
    assert (status, line) == (1, f"pyxdp: {tmp_path}/no/file: No such file or directory")
    assert check("capture", "-i", veth.right, "-s", "9217")[0] == 1
    assert check("capture", "-i", veth.right, "-c", "0")[0] == 2

    assert "cut off" in check("replay", "-i", veth.left, str(broken))[1]
    assert "/no: No such file" in check("replay", "-i", veth.left, f"{tmp_path}/no")[1]
    assert check("replay", "-i", veth.left, "--queue", "7", good)[0] == 1
    assert check("replay", "-i", veth.left, "--pps", "0", good)[0] == 2
    assert check("replay", "-i", veth.left, "--pps", "1e3", good)[0] == 2
    status, line = check("replay", "-i", veth.left, large)
    assert status == 1
    assert line == f"pyxdp: packet 2 has 1642 bytes; {veth.left} sends 14 to 1518"
    with FlowCounter(veth.right):
        status, line = check("capture", "-i", veth.right)
        assert status == 1
        assert "carries the XDP program 'count_flows'" in line


def test_without_capabilities(veth: Veth, tmp_path: Path) -> None:
    """Also as root, as in a container."""
    file = write_file(tmp_path / "good.pcapng", udp4())
    capture, replaying = ("capture", "-i", veth.right), ("replay", "-i", veth.right, "-")
    for kept, words in (
        ("", capture),
        ("bpf", capture),
        ("bpf,+net_admin", capture),
        ("", replaying),
    ):
        bounds = "-all" + (f",+{kept}" if kept else "")
        with open(file, "rb") as packets:
            done = subprocess.run(
                ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", *PYXDP, *words],
                stdin=packets,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "not permitted; run as root, or with CAP_" in done.stderr
