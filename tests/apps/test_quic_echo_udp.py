"""quic_echo over UDP sockets on loopback, server and client as processes: each with a stack of its
own, and as applications of a daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hoststack import TlsConfig
from tests.apps.echo_process import PATIENCE_S, client, command, server, transfer

M = 1 << 20


pytestmark = pytest.mark.usefixtures("on_each_stack")


@pytest.mark.parametrize(
    ("server_words", "client_words", "client_tx", "client_rx"),
    [
        ("nclients 1", "", 65536, 65536),
        ("nclients 2/4 test-bytes", "nclients 2/4 TX=1M test-bytes:assert", 8 * M, 8 * M),
        ("nclients 1 TX=0 test-bytes", "TX=5M RX=0", 5 * M, 0),
        ("nclients 1 TX=5M", "TX=0 RX=5M test-bytes", 0, 5 * M),
        ("nclients 1 TX=3M", "TX=1M RX=3M test-bytes", M, 3 * M),
        ("nclients 1/2 uni test-bytes", "uni nclients 1/2 TX=1M", 2 * M, 0),
        (
            "nclients 2/2 quic-setup serverstream TX=1M test-bytes",
            "nclients 2/2 quic-setup serverstream test-bytes",
            4 * M,
            4 * M,
        ),
        (
            "nclients 1/3 quic-setup serverstream TX=1M uni",
            "nclients 1/3 quic-setup serverstream uni test-bytes",
            0,
            3 * M,
        ),
        ("nclients 1 qclose=Y", "qclose=W", 65536, 65536),
        ("nclients 1 sclose=N", "sclose=N", 65536, 65536),
        ("nclients 1 RX=64K sclose=Y", "sclose=W", 65536, 65536),
        ("nclients 1 qclose=N", "qclose=N", 65536, 65536),
        (
            "nclients 1 fifo-size 4K rx-buf 100 test-bytes",
            "TX=100K fifo-size 8K tx-buf 777 test-bytes",
            102400,
            102400,
        ),
        ("nclients 40", "nclients 40/2 TX=1K test-bytes", 81920, 81920),
        ("nclients 1", "TX=0", 0, 0),
    ],
)
def test_transfers(
    server_words: str, client_words: str, client_tx: int, client_rx: int, on_each_stack: str
) -> None:
    if on_each_stack == "aioquic" and "nclients 2/4" not in server_words + client_words:
        pytest.skip("words are words: one transfer shows that the aioquic engine obeys them")
    at_server, at_client = transfer(server_words, client_words)
    assert (at_client["tx_data"], at_client["rx_data"]) == (client_tx, client_rx)
    assert (at_server["rx_data"], at_server["tx_data"]) == (client_tx, client_rx)
    assert at_client["link"] == "udp"
    assert not at_client["end_evt_missing"]
    assert at_server["closing"]["reset"] == at_client["closing"]["reset"] == {"q": 0, "s": 0}
    opened = at_server["closing"]["connected"]["s"] + at_client["closing"]["connected"]["s"]
    accepted = at_server["closing"]["accepted"]["s"] + at_client["closing"]["accepted"]["s"]
    assert opened == accepted > 0


def test_events_are_in_order() -> None:
    _, report = transfer("nclients 3/2", "nclients 3/2 time start:exit")
    events = report["events"]
    assert list(events) == [
        "start", "qconnect", "qconnected", "sconnect", "sconnected", "lastbyte", "exit",
    ]  # fmt: skip
    assert list(events.values()) == sorted(events.values())
    assert report["time"] == pytest.approx(events["exit"])
    assert report["closing"]["connected"] == {"q": 3, "s": 6}


def test_connections_without_streams() -> None:
    _, report = transfer("nclients 2/0", "nclients 2/0")
    assert report["end_evt"] == "qconnected"
    assert report["closing"]["send evt"] == {"q": 2, "s": 0}


def test_the_report_that_people_read() -> None:
    with server("nclients 1/2") as running:
        done = client("nclients 1/2 TX=1M", running.uri)
        assert done.returncode == 0
        assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "Timing qconnect:lastbyte"
    assert lines[1] == "-------- TX --------"
    assert re.fullmatch(r"2097152 bytes \(2 mbytes, 0 gbytes\) in \d+\.\d{6} seconds", lines[2])
    assert re.fullmatch(r"\d+\.\d{4} Gbit/second", lines[3])
    assert "Sent close on     2 streams (and 1 Quic conn)" in lines
    assert lines[-1] == "Got connected on  2 streams (and 1 Quic conn)"


def test_ipv6_and_the_older_form_of_uris() -> None:
    with server("nclients 1", uri="quic://[::1]:0") as running:
        port = running.uri.rpartition(":")[2]
        assert client("", f"quic://::1/{port}").returncode == 0


def test_a_certificate_that_is_checked(tmp_path: Path) -> None:
    tls = TlsConfig.self_signed(["localhost", "127.0.0.1"])
    assert isinstance(tls.certificate, bytes)
    assert isinstance(tls.key, bytes)
    (tmp_path / "cert.pem").write_bytes(tls.certificate)
    (tmp_path / "key.pem").write_bytes(tls.key)
    with server(f"cert {tmp_path}/cert.pem key {tmp_path}/key.pem") as running:
        good = client(f"ca {tmp_path}/cert.pem", running.uri)
        assert good.returncode == 0, good.stderr
        unknown = client("verify", running.uri)
        other_name = client(f"ca {tmp_path}/cert.pem server-name example.org", running.uri)
        for refused in (unknown, other_name):
            assert refused.returncode == 1
            assert len(refused.stderr.splitlines()) == 1
            assert "certificate" in refused.stderr


def test_no_common_protocol() -> None:
    with server("alpn one") as running:
        refused = client("alpn two", running.uri)
        assert refused.returncode == 1
        assert "ALPN" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert client("alpn one", running.uri).returncode == 0


def test_a_port_in_use(on_each_stack: str) -> None:
    said = "has a listener of this stack already" if on_each_stack == "daemon" else "is in use"
    with server("") as running:
        second = subprocess.run(
            command("server", "uri", running.uri, "json"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert second.returncode == 1
    assert said in second.stderr
    assert said in json.loads(second.stdout)["results"]["fail_descr"]


def test_a_peer_that_sends_less_than_expected() -> None:
    with server("nclients 1 TX=1K") as running:
        done = client("TX=1K RX=2K", running.uri)
        assert done.returncode == 1
        assert "1024 of 2048 bytes came" in done.stderr
        status, _, err = running.finish()
        assert status == 1
        assert "application code 0x1" in err


def test_a_peer_that_sends_more_than_expected() -> None:
    with server("nclients 1") as running:
        done = client("TX=1M RX=0", running.uri)
        assert done.returncode == 1
        assert "more than the 0 bytes" in done.stderr


def test_a_peer_with_another_number_of_streams() -> None:
    with server("nclients 1/3") as running:
        assert client("nclients 1/2", running.uri).returncode == 0
        status, _, err = running.finish()
        assert status == 1
        assert "after 2 of 3 streams" in err


def test_wrong_bytes() -> None:
    liar = textwrap.dedent("""
        import sys, trio, hoststack
        async def handler(connection):
            async for stream in connection.streams():
                async for chunk in stream:
                    await stream.send_all(bytes(len(chunk)))
                await stream.aclose()
        async def main():
            tls = hoststack.TlsConfig.self_signed(["localhost"])
            async with hoststack.open_stack() as stack, trio.open_nursery() as nursery:
                listener = await nursery.start(
                    lambda task_status: stack.serve(
                        "quic://127.0.0.1:0",
                        handler,
                        tls=tls,
                        alpn=["echo"],
                        task_status=task_status,
                    )
                )
                print(listener.local[1], flush=True)
        trio.run(main)
    """)
    with subprocess.Popen([sys.executable, "-c", liar], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            uri = f"quic://127.0.0.1:{int(process.stdout.readline())}"
            counted = client("test-bytes json TX=64K", uri)
            asserted = client("test-bytes:assert json TX=100M", uri)
        finally:
            process.kill()
    assert counted.returncode == asserted.returncode == 1
    report = json.loads(counted.stdout)
    assert report["wrong_bytes"] == 65536 - 256
    assert "expected 0x01" in counted.stderr
    assert json.loads(asserted.stdout)["rx_data"] < 100 * M


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_server_with_a_report(number: signal.Signals, status: int) -> None:
    with server("json") as running:
        assert client("", running.uri).returncode == 0
        running.process.send_signal(number)
        ended, out, err = running.finish()
    assert ended == status
    assert "Traceback" not in err
    report = json.loads(out)
    assert report["rx_data"] == 65536
    assert report["results"] == {"has_failed": status, "fail_descr": f"ended by {number.name}"}


def test_ctrl_c_in_a_transfer_is_told_to_the_peer() -> None:
    with server("nclients 1") as running:
        line = command("client", "uri", running.uri, "TX=1000G", "stats", "1")
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert b"TX " in process.stderr.readline()  # it is in the middle of it
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        assert b"Timing qconnect:lastbyte" in out
        assert all(b"TX " in text for text in err.splitlines())
        status, _, text = running.finish()
        assert status == 1
        assert "the peer closed the connection (application code 0x1): interrupted" in text


def test_a_peer_that_is_killed(on_each_stack: str) -> None:
    """A stack of its own dies with it; a daemon says so."""
    said = "the application is gone" if on_each_stack == "daemon" else "Idle timeout"
    with server("") as running:
        line = command("client", "uri", running.uri, "TX=1000G", "idle-timeout", "1", "stats", "1")
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()
            running.process.kill()
            _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert said in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away() -> None:
    with server("nclients 1") as running:
        line = command("client", "uri", running.uri)
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            line, stdout=write_end, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
        )
        os.close(write_end)
    assert done.returncode == 1
    assert done.stderr == b""
