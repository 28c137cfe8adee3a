"""vcl_test_server and vcl_test_client, over two daemons in two network namespaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import PATIENCE_S, Daemon, run_daemon
from tests.support import forked
from tests.support.netns import VethPair, veth_pair

BIN = Path(sys.executable).parent
PROTOS = ("QUIC", "TCP", "UDP")


def environment(folder: Path, daemon: Daemon) -> dict[str, str]:
    """With a VCL_CONFIG that names the daemon."""
    conf = folder / "vcl.conf"
    conf.write_text(f"vcl {{\n  api-socket-name {daemon.api}\n  session-timeout 20\n}}\n")
    return os.environ | {"VCL_CONFIG": str(conf)}


class Programs:
    """A daemon at each end, and what is run on them."""

    def __init__(self, pair: VethPair, server: Daemon, client: Daemon, folder: Path) -> None:
        self.pair = pair
        (folder / "server").mkdir()
        (folder / "client").mkdir()
        self.server_environment = environment(folder / "server", server)
        self.client_environment = environment(folder / "client", client)

    @contextmanager
    def server(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A vcl_test_server, in the daemon's namespace; ended by a signal."""
        with forked.start(
            "apps.vcl_test.server",
            words,
            side=self.pair.a,
            env=self.server_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline()
                assert re.match(r"vcl_test_server: \w+ data on \S+ port \d+, control", first), first
                yield process
            finally:
                process.kill()

    def client(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """A vcl_test_client that has run."""
        return forked.run(
            "apps.vcl_test.client",
            words,
            side=self.pair.b,
            env=self.client_environment,
            text=text,
            timeout=PATIENCE_S,
        )

    def measured(self, *words: str) -> dict[str, Any]:
        """What a client says with --json."""
        done = self.client("--json", *words)
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with ExitStack() as stack:
        pair = stack.enter_context(veth_pair())
        daemons = [
            stack.enter_context(run_daemon("-i", side.ifname, prefix=side.command()))
            for side in (pair.a, pair.b)
        ]
        yield Programs(pair, daemons[0], daemons[1], tmp_path_factory.mktemp("vcl"))


@pytest.fixture
def served(programs: Programs, request: pytest.FixtureRequest) -> Iterator[Programs]:
    """With a server of the protocol of that name."""
    with programs.server("-p", request.param, "1234"):
        yield programs


every_protocol = pytest.mark.parametrize("served", PROTOS, indirect=True)
SIZES = ("-N", "200", "-T", "1000")


def proto_of(request: pytest.FixtureRequest) -> str:
    found: str = request.node.callspec.params["served"]
    return found


@pytest.mark.needs_root
@every_protocol
def test_both_tests_and_an_echo(served: Programs, request: pytest.FixtureRequest) -> None:
    proto = proto_of(request)
    host = served.pair.a.ipv4
    uni = served.measured("-p", proto, "-U", "-X", *SIZES, "-s", "4", "-q", "2", host, "1234")
    assert (uni["proto"], uni["test"], uni["sessions"]) == (proto.lower(), "uni", 4)
    assert uni["client"]["tx_bytes"] == 4 * 200_000
    assert uni["client"]["rx_bytes"] == uni["client"]["rx_xacts"] == 0
    assert uni["client"]["duplex"] == uni["server"]["duplex"] == "half"
    assert uni["server"]["tx_bytes"] == 0
    assert "each" not in uni
    bi = served.measured("-p", proto, "-B", "-X", "-V", *SIZES, "-s", "2", host, "1234")
    assert bi["client"]["tx_bytes"] == 2 * 200_000
    assert bi["client"]["duplex"] == bi["server"]["duplex"] == "full"
    assert [each["tx_bytes"] for each in bi["each"]] == [200_000, 200_000]
    if proto != "UDP":  # of which some may be lost
        assert uni["server"]["rx_bytes"] == 4 * 200_000
        assert bi["client"]["rx_bytes"] == bi["server"]["rx_bytes"] == 2 * 200_000
    for side in ("client", "server"):
        moved = bi[side]["rx_bytes"] + bi[side]["tx_bytes"]
        assert bi[side]["gbps"] == pytest.approx(moved * 8 / bi[side]["seconds"] / 1e9)
    echo = served.measured("-p", proto, "-E", "how are you?", host, "1234")
    assert echo == {
        "proto": proto.lower(),
        "test": "echo",
        "sent": "how are you?",
        "received": "how are you?",
    }


@pytest.mark.needs_root
@pytest.mark.parametrize("proto", PROTOS)
def test_ipv6(programs: Programs, proto: str) -> None:
    host = programs.pair.a.ipv6
    with programs.server("-p", proto, "-6", "1236"):
        line = ("-p", proto, "-6", *SIZES, "-B", host, "1236")
        found = programs.measured(*line)
        assert found["client"]["tx_bytes"] == 200_000
        if proto != "UDP":
            assert found["client"]["rx_bytes"] == 200_000


@pytest.mark.needs_root
@every_protocol
def test_workers(served: Programs, request: pytest.FixtureRequest) -> None:
    """Threads, each with its own sessions; buffers and bytes by their options."""
    proto = proto_of(request)
    many = served.measured(
        *("-p", proto, "-w", "2", "-s", "300", "-q", "150", "-N", "1", "-T", "500"),
        *("-U", served.pair.a.ipv4, "1234"),
    )
    assert many["client"]["tx_bytes"] == 300 * 500
    words = ("-p", proto, "-w", "2", "-s", "5", "-b", "100K", "-T", "1024", "-R", "128", "-V")
    found = served.measured(*words, "-B", served.pair.a.ipv4, "1234")
    assert [each["tx_bytes"] for each in found["each"]] == [100 << 10] * 5
    if proto != "UDP":
        assert [each["rx_bytes"] for each in found["each"]] == [100 << 10] * 5
        assert found["client"]["rx_xacts"] >= 5 * (100 << 10) // 128


TABLE = r"""
  -----------------------------
  {way} stats:
  -----------------------------
 +{what}:  \d+ \(0x[0-9a-f]{{8}}\)
       {way} bytes:  (\d+) \(0x[0-9a-f]{{8}}\)
      {way} eagain:  \d+ \(0x[0-9a-f]{{8}}\)
  {way} incomplete:  \d+ \(0x[0-9a-f]{{8}}\)"""
RESULTS = (
    r"{who} RESULTS: Streamed {total} bytes\n"
    r"  in \d+\.\d{{6}} seconds \(\d+\.\d{{6}} Gbps {duplex}-duplex\)!"
)


@pytest.mark.needs_root
def test_results_in_vpps_form(programs: Programs) -> None:
    host = programs.pair.a.ipv4
    with programs.server("-p", "QUIC", "1240") as server:
        done = programs.client("-p", "QUIC", "-c", "-V", "-U", "-X", *SIZES, host, "1240")
        assert (done.returncode, done.stderr) == (0, "")
        half = RESULTS.format(who="CLIENT", total=200_000, duplex="half")
        tx = TABLE.format(way="tx", what="writes")
        rx = TABLE.format(way="rx", what="reads")
        assert re.search(half + tx, done.stdout)
        assert re.search(r"CLIENT \(fd \d+\) RESULTS: Streamed 200000 bytes", done.stdout)
        assert "rx stats" not in done.stdout
        assert done.stdout.count("  test config:") == 2, "before it (-c), and after it"
        assert "'#U'              test:  UNI (2)" in done.stdout
        assert "'#N:'       num writes:  200 (0x000000c8)" in done.stdout
        assert "       client tx bytes:  200000 (0x00030d40)" in done.stdout
        done = programs.client("-p", "QUIC", "-B", "-X", *SIZES, host, "1240")
        full = RESULTS.format(who="CLIENT", total=400_000, duplex="full")
        found = re.search(full + tx + rx + "\n  ---", done.stdout)
        assert found, done.stdout
        assert found.groups() == ("200000", "200000")
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=PATIENCE_S)
        assert (server.returncode, err) == (0, "")
        assert re.search(RESULTS.format(who="SERVER", total=200_000, duplex="half") + rx, out)
        assert re.search(RESULTS.format(who="SERVER", total=400_000, duplex="full") + tx + rx, out)


@pytest.mark.needs_root
@pytest.mark.parametrize("served", ["QUIC"], indirect=True)
def test_the_prompt(served: Programs) -> None:
    lines = [
        "#H",
        "",
        "#T:1000",
        "#N:10",
        "#R:100",
        "#I:2",
        "#V",
        "#C",
        "hello there",
        "#U",
        "#B",
        "#X",
        "not read any more",
    ]
    host = served.pair.a.ipv4
    done = served.client("-p", "QUIC", "-I", "-E", "first", host, "1234", text="\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "CLIENT: sent 5 bytes, received 5: 'first'",
        "('#H' for help)",
        "write buffer",
        "Nothing to send!",
        "'100' is not a number from 128 to",
        "'#V'           verbose:  on (1)",
        "CLIENT: sent 11 bytes, received 11: 'hello there'",
        "CLIENT RESULTS: Streamed 20000 bytes",
        "CLIENT RESULTS: Streamed 40000 bytes",
    ):
        assert expected in done.stdout
    assert "not read" not in done.stdout
    # Without a test to run it asks, too; and an end of the input is an end.
    done = served.client("-p", "QUIC", host, "1234", text="hi\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "CLIENT: sent 2 bytes, received 2: 'hi'" in done.stdout


@pytest.mark.needs_root
@pytest.mark.parametrize("served", ["TCP"], indirect=True)
def test_what_can_not_be(served: Programs, programs: Programs) -> None:
    host = served.pair.a.ipv4
    for words, complaint in (
        (("-p", "QUIC", "-U", host, "1234"), "the server was started with -p TCP"),
        (("-U", host, "4321"), "Connection refused"),
        (("-U", "no.such.host.invalid", "1234"), "'no.such.host.invalid' has no known address"),
    ):
        done = served.client(*words)
        assert done.returncode == 1
        assert done.stderr.startswith("vcl_test_client: ")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
    # A port that is taken.
    second = subprocess.run(
        served.pair.a.command(str(BIN / "vcl_test_server"), "-p", "TCP", "1234"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=programs.server_environment,
    )
    assert second.returncode == 1
    assert re.fullmatch(r"vcl_test_server: .*Address already in use.*\n", second.stderr)


@pytest.mark.needs_root
def test_one_test_at_a_time(programs: Programs) -> None:
    """And one that shows what is sent in each second."""
    host = programs.pair.a.ipv4
    with programs.server("-p", "TCP", "1244"):
        words = ("-U", "-b", "100G", "-s", "2", "-S", host, "1244")
        with subprocess.Popen(
            programs.pair.b.command(str(BIN / "vcl_test_client"), *words),
            stdout=subprocess.PIPE,
            text=True,
            env=programs.client_environment,
        ) as busy:
            assert busy.stdout is not None
            lines = [busy.stdout.readline()]
            while not lines[-1].startswith("---") and lines[-1]:
                lines.append(busy.stdout.readline())
            sent = r"Sent \d+ Mbytes in \d+\.\d\d seconds \d+\.\d\d Gbps\n"
            assert re.fullmatch(rf"\d+: {sent}\d+: {sent}Sum: {sent}-{{49}}\n", "".join(lines))
            done = programs.client("-U", *SIZES, host, "1244")
            assert done.returncode == 1
            assert "another client's test is running" in done.stderr
            busy.send_signal(signal.SIGINT)
            assert busy.wait(PATIENCE_S) == 130
        # Which is over with its client.
        found = programs.measured("-U", *SIZES, host, "1244")
        assert found["server"]["rx_bytes"] == 200_000


@pytest.mark.needs_root
def test_the_daemon_of_a_server_ends(tmp_path: Path) -> None:
    with run_daemon() as daemon:
        line = [str(BIN / "vcl_test_server"), "-p", "QUIC", "-B", "127.0.0.1", "22010"]
        with subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path, daemon),
        ) as server:
            assert server.stdout is not None
            assert "QUIC data" in server.stdout.readline()
            daemon.stop(9)
            _, err = server.communicate(timeout=PATIENCE_S)
            assert server.returncode == 1
            assert re.fullmatch(r"vcl_test_server: Connection reset by peer.*\n", err)


CLIENTS_MISTAKES = [
    (["-p", "SCTP", "h", "1"], "-p SCTP: use QUIC, UDP or TCP"),
    (["-U", "-B", "h", "1"], "-U, -B and -E are one test each"),
    (["-6", "-U", "127.0.0.1", "1"], "-6: '127.0.0.1' is not an IPv6 address"),
    (["-s", "0", "-U", "h", "1"], "'0' is not a number from 1 to 65536"),
    (["-s", "x", "-U", "h", "1"], "'x' is not a number"),
    (["-q", "0", "-U", "h", "1"], "'0' is not a number"),
    (["-q", "1025", "-U", "h", "1"], "'1025' is not a number from 1 to 1024"),
    (["-N", "-1", "-U", "h", "1"], "expected one argument"),
    (["-T", "127", "-U", "h", "1"], "'127' is not a number from 128"),
    (["-R", "127", "-U", "h", "1"], "'127' is not a number from 128"),
    (["-b", "1T", "-U", "h", "1"], "'1T' is not a number"),
    (["-w", "2", "-U", "h", "1"], "-w: no more workers than sessions"),
    (["-X", "h", "1"], "-X: there is no test to exit after"),
    (["-E", " ", "h", "1"], "-E: give a text to send"),
    (["-U", "h", "65535"], "'65535' is not a number from 1 to 65534"),
    (["-U"], "required: HOST"),
    (["-U", "--nonsense", "h", "1"], "unrecognized arguments: --nonsense"),
]
SERVERS_MISTAKES = [
    (["-p", "SCTP"], "-p SCTP: use QUIC, UDP or TCP"),
    (["65535"], "the port and the one above it"),
    (["x"], "invalid int value: 'x'"),
    (["-w", "2"], "unrecognized arguments"),
]


@pytest.mark.parametrize(
    ("program", "words", "complaint"),
    [("vcl_test_client", *each) for each in CLIENTS_MISTAKES]
    + [("vcl_test_server", *each) for each in SERVERS_MISTAKES],
)
def test_mistakes_on_the_command_line(program: str, words: list[str], complaint: str) -> None:
    done = subprocess.run(
        [str(BIN / program), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{program}: error: ")
    assert complaint in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "words"),
    [("vcl_test_client", ["-U", "127.0.0.1", "1"]), ("vcl_test_server", ["22020"])],
)
def test_without_a_daemon(program: str, words: list[str], tmp_path: Path) -> None:
    conf = tmp_path / "vcl.conf"
    for text, complaint in (
        (f"vcl {{\n  api-socket-name {tmp_path}/none\n}}\n", "is the daemon running"),
        ("vcl {\n  nonsense\n}\n", f"{conf}:2: unknown key 'nonsense'"),
    ):
        conf.write_text(text)
        done = subprocess.run(
            [str(BIN / program), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=os.environ | {"VCL_CONFIG": str(conf)},
        )
        assert done.returncode == 1
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
