"""quic_echo over AF_XDP, in two namespaces joined by a veth pair."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files

import pytest

import pyxdp
from tests.apps.echo_process import (
    AS_NOBODY,
    PATIENCE_S,
    client,
    command,
    server,
    skip_if_nobody_cannot_run,
    transfer,
)
from tests.support.netns import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("on_each_engine")]


@pytest.fixture(autouse=True)
def _extension() -> None:
    works, why = pyxdp.available()
    if not works:
        pytest.skip(why)


@pytest.fixture
def foreign_program(veth_pair: VethPair) -> Iterator[None]:
    """Somebody else's XDP program on side a."""
    with (
        veth_pair.a.inside(),
        pyxdp.Program.load(files("pyxdp").joinpath("redirect.bpf.o").read_bytes()) as program,
    ):
        program.attach(veth_pair.a.ifname, "generic")
        yield


def has_xdp(pair: VethPair) -> bool:
    return bool(pair.a.link().get("xdp"))


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_transfer(veth_pair: VethPair, mode: str) -> None:
    a, b = veth_pair.a, veth_pair.b
    at_server, at_client = transfer(
        f"interface {a.ifname} mode {mode} nclients 2/4 test-bytes",
        f"interface {b.ifname} mode {mode} nclients 2/4 TX=1M test-bytes",
        (a, b),
    )
    for report in (at_server, at_client):
        assert report["link"] == "af_xdp"
        assert report["rx_data"] == report["tx_data"] == 8 << 20
        xdp = report["link_statistics"]
        assert xdp["xdp_redirected_by_cid"] > 0
        assert xdp["xdp_redirect_failed"] == 0
    assert at_server["link_statistics"]["xdp_redirected_as_new"] > 0
    assert not has_xdp(veth_pair)


@pytest.mark.parametrize("engines", [("native", "aioquic"), ("aioquic", "native")])
def test_between_engines(make_veth_pair: Callable[..., VethPair], engines: Sequence[str]) -> None:
    pair = make_veth_pair()
    at_server, at_client = transfer(
        f"interface {pair.a.ifname} engine {engines[0]} nclients 2/2 test-bytes",
        f"interface {pair.b.ifname} engine {engines[1]} nclients 2/2 TX=1M test-bytes",
        (pair.a, pair.b),
    )
    assert (at_server["engine"], at_client["engine"]) == tuple(engines)
    assert at_server["rx_data"] == at_client["rx_data"] == 4 << 20


def test_against_a_peer_on_udp_sockets(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    at_server, at_client = transfer(
        f"interface {a.ifname} nclients 1 test-bytes", "link udp TX=1M test-bytes", (a, b)
    )
    assert (at_server["link"], at_client["link"]) == ("af_xdp", "udp")
    assert at_client["rx_data"] == 1 << 20


def test_a_killed_server_leaves_no_program(veth_pair: VethPair) -> None:
    uri = f"quic://{veth_pair.a.ipv4}:4433"
    with server(f"interface {veth_pair.a.ifname}", uri=uri, side=veth_pair.a) as running:
        assert "link af_xdp" in running.listening
        assert has_xdp(veth_pair)
        done = client(f"interface {veth_pair.b.ifname}", uri, side=veth_pair.b)
        assert done.returncode == 0, done.stderr
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(PATIENCE_S)
        assert not has_xdp(veth_pair)


def run_server(pair: VethPair, as_user: Sequence[str] = ()) -> tuple[int, str]:
    """A server that can't start: its exit status, and its one line."""
    uri = f"quic://{pair.a.ipv4}:4433"
    line = pair.a.command(*as_user, *command("server", "uri", uri, "interface", pair.a.ifname))
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


@pytest.mark.usefixtures("foreign_program")
def test_a_foreign_program_is_not_replaced(veth_pair: VethPair) -> None:
    status, line = run_server(veth_pair)
    assert status == 1
    assert veth_pair.a.ifname in line
    assert "program" in line
    assert has_xdp(veth_pair)


def test_without_privilege(veth_pair: VethPair) -> None:
    skip_if_nobody_cannot_run()
    status, line = run_server(veth_pair, AS_NOBODY)
    assert status == 1
    assert "CAP_" in line or "root" in line
    assert not has_xdp(veth_pair)


def test_auto_takes_udp_and_says_why(veth_pair: VethPair) -> None:
    skip_if_nobody_cannot_run()
    uri = f"quic://{veth_pair.a.ipv4}:4433"
    words = command("server", "uri", uri, "interface", veth_pair.a.ifname, "link", "auto")
    line = veth_pair.a.command(*AS_NOBODY, *words)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "link udp instead of af_xdp: " in process.stderr.readline()
            assert process.stderr.readline().rstrip().endswith("link udp")
        finally:
            process.kill()


def test_a_port_in_use(veth_pair: VethPair) -> None:
    uri = f"quic://{veth_pair.a.ipv4}:4433"
    with server("link udp", uri=uri, side=veth_pair.a):
        status, line = run_server(veth_pair)
    assert status == 1
    assert "4433" in line
    assert "in use" in line
