"""`hoststack run`, applications that attach to it, quic_echo and `hoststack ctl` over it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
import trio

import hoststack
from hoststack import AttachError, ConnectionClosedError, ListenError, TlsConfig
from tests.daemon.conftest import PATIENCE_S, Daemon, MakeDaemon
from tests.daemon.echoing import TLS, TRUSTING, ask, echo_server
from tests.support.streams import exchange


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_spread_over_workers(daemon: Daemon, host: str) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as server,
                hoststack.attach(daemon.api) as client,
                echo_server(server, host) as uri,
            ):
                workers = set()
                for number in range(16):
                    async with client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection:
                        data = os.urandom(100_000) + bytes([number])
                        assert await ask(connection, data) == data
                        workers.add(connection.handle >> 32)
                assert workers == {0, 1}

    trio.run(main)


def test_an_attached_and_an_embedded_stack_talk(daemon: Daemon) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as server,
                hoststack.open_stack(link="udp") as client,
                await server.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
            ):
                uri = "quic://{}:{}".format(*listener.local)
                for _ in range(8):
                    async with client.connect(uri, tls=TRUSTING, alpn=["test"]) as connected:
                        accepted = await listener.accept()
                        await exchange(connected, accepted, os.urandom(3_000_000))
                        await connected.aclose(7, "enough")
                        info = await accepted.wait_closed()
                        assert (info.code, info.reason, info.by_peer) == (7, "enough", True)

    trio.run(main)


def calls(pid: int) -> int:
    """read(2), write(2) and the like that a process has made: those of eventfds and of messages,
    not those by which UDP sockets move datagrams."""
    counted = Path(f"/proc/{pid}/io").read_text()
    return sum(int(count) for count in re.findall(r"^sysc[rw]: (\d+)", counted, re.MULTILINE))


@pytest.mark.parametrize("scope", ["global", "local"])
def test_bytes_move_without_system_calls(daemon: Daemon, scope: Literal["global", "local"]) -> None:
    """Some megabytes take a few wake-ups."""
    megabytes = 30
    pids = [os.getpid(), daemon.worker_pid(0), daemon.worker_pid(1)]

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, scopes={scope}) as server,
                hoststack.attach(daemon.api, scopes={scope}) as client,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                assert await ask(connection, bytes(1_000_000)) == bytes(1_000_000)
                before = [calls(pid) for pid in pids]
                data = os.urandom(megabytes * 1_000_000)
                assert await ask(connection, data) == data
                after = [calls(pid) for pid in pids]
        for now, then in zip(after, before, strict=True):
            # There and back, that is less than one for 20 kB.
            assert now - then < 100 * megabytes, (before, after)

    trio.run(main)


def test_a_port_is_one_applications(daemon: Daemon) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as one,
                hoststack.attach(daemon.api) as other,
                await one.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]) as listener,
            ):
                uri = "quic://{}:{}".format(*listener.local)
                with pytest.raises(ListenError, match="listener"):
                    await other.listen(uri, tls=TLS, alpn=["test"])
                await listener.aclose()
                # The last of the workers may still be about to close it.
                async with await other.listen(
                    "quic://127.0.0.1:0", tls=TLS, alpn=["test"]
                ) as again:
                    assert again.local[1]

    trio.run(main)


def test_namespaces_and_their_secrets(daemon: Daemon) -> None:
    daemon.ctl("app ns add id red secret tomato")

    async def main() -> None:
        with pytest.raises(AttachError, match="secret"):
            async with hoststack.attach(daemon.api, namespace="red", secret="potato"):
                raise AssertionError
        with pytest.raises(AttachError, match="secret"):
            async with hoststack.attach(daemon.api, namespace="blue"):
                raise AssertionError
        async with hoststack.attach(daemon.api, namespace="red", secret="tomato") as stack:
            assert stack.link_name == "udp"

    trio.run(main)


def test_applications_of_a_daemon_meet_without_packets(daemon: Daemon) -> None:
    """Cut-through, over FIFOs that the workers do not touch."""

    async def main() -> None:
        both = {"local", "global"}
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api, scopes=both) as server,
                hoststack.attach(daemon.api, scopes=both) as client,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                data = os.urandom(5_000_000)
                assert await ask(connection, data) == data
                assert (await connection.statistics())["cut_through"]

    trio.run(main)


def test_quic_echo_over_a_daemon(daemon: Daemon) -> None:
    words = [sys.executable, "-m", "apps.quic_echo", "socket-name", daemon.api, "json"]
    load = ["nclients", "2/4", "test-bytes:assert"]
    with subprocess.Popen(
        [*words, "server", "uri", "quic://127.0.0.1:0", *load],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            port = server.stderr.readline().partition(" port ")[2].partition(",")[0]
            done = subprocess.run(
                [*words, "client", "uri", f"quic://127.0.0.1:{port}", *load, "TX=4M"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            out, err = server.communicate(timeout=PATIENCE_S)
            assert server.returncode == 0, err
        finally:
            server.kill()
    for report in (json.loads(done.stdout), json.loads(out)):
        assert report["rx_data"] == report["tx_data"] == 8 * (4 << 20)
        assert report["wrong_bytes"] == 0


def test_threads_of_quic_echo(daemon: Daemon) -> None:
    """Each with an attachment of its own; a server's get connections in turns."""
    words = [sys.executable, "-m", "apps.quic_echo", "socket-name", daemon.api, "json", "log=2"]
    words += ["uri", "quic://127.0.0.1:7779", "nclients", "8/2", "test-bytes:assert"]
    words += ["nthreads", "2"]
    with subprocess.Popen(
        [*words, "server"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            for _ in range(2):
                assert "listening on" in server.stderr.readline()
            done = subprocess.run(
                [*words, "client", "TX=1M"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            out, err = server.communicate(timeout=PATIENCE_S)
            assert server.returncode == 0, err
        finally:
            server.kill()
    for report in (json.loads(done.stdout), json.loads(out)):
        assert report["rx_data"] == report["tx_data"] == 16 << 20
        assert report["wrong_bytes"] == 0
    assert json.loads(done.stdout)["closing"]["connected"] == {"q": 8, "s": 16}
    assert json.loads(out)["closing"]["accepted"] == {"q": 8, "s": 16}


@pytest.mark.parametrize(("scope", "datagrams"), [("local-scope", False), ("global-scope", True)])
def test_quic_echo_in_a_namespace(daemon: Daemon, scope: str, datagrams: bool) -> None:
    """In the local scope by cut-through, in the global one over the network."""
    daemon.ctl("app ns add id green secret apple")
    words = [sys.executable, "-m", "apps.quic_echo", "socket-name", daemon.api, "json"]
    words += ["uri", "quic://127.0.0.1:7782", "nclients", "2/2", "test-bytes:assert"]
    words += [scope, "appns", "green", "secret"]
    with subprocess.Popen(
        [*words, "apple", "server"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            assert "listening on" in server.stderr.readline()
            before = received(daemon)
            refused = subprocess.run(
                [*words, "pear", "client"], capture_output=True, text=True, check=False
            )
            done = subprocess.run(
                [*words, "apple", "client", "TX=1M"], capture_output=True, text=True, check=False
            )
            out, err = server.communicate(timeout=PATIENCE_S)
        finally:
            server.kill()
    assert refused.returncode == 1
    assert "secret" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (done.returncode, server.returncode) == (0, 0), (done.stderr, err)
    for report in (json.loads(done.stdout), json.loads(out)):
        assert report["rx_data"] == report["tx_data"] == 4 << 20
    assert (received(daemon) > before) == datagrams


def received(daemon: Daemon) -> int:
    """Datagrams, by all workers."""
    workers = json.loads(daemon.ctl("--json", "show workers"))["workers"]
    return sum(each["rx_datagrams"] for each in workers)


#: One of several processes that are one server: python -c MEMBER PATH URI.
MEMBER = """
import os, sys, trio, hoststack

async def who(connection):
    async for stream in connection.streams():
        async with stream:
            async for _ in stream:
                pass
            await stream.send_all(b"%d" % os.getpid())

async def main(path, uri):
    tls = hoststack.TlsConfig.self_signed(["127.0.0.1"])
    async with hoststack.attach(path, name="web", shares_listeners=True) as stack:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: stack.serve(
                uri, who, tls=tls, alpn=["test"], task_status=task_status))
            print("listening", flush=True)

trio.run(main, *sys.argv[1:])
"""


def test_processes_of_one_server_get_connections_in_turns(daemon: Daemon) -> None:
    """Each worker goes round its members."""
    uri, count = "quic://127.0.0.1:7781", 24

    async def main() -> Counter[bytes]:
        served: Counter[bytes] = Counter()
        with trio.fail_after(PATIENCE_S):
            for _ in range(count):
                async with (
                    hoststack.open_stack(link="udp") as client,
                    client.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connection,
                ):
                    served[await ask(connection, b"who?")] += 1
        return served

    line = [sys.executable, "-c", MEMBER, daemon.api, uri]
    with ExitStack() as running:
        members = [
            running.enter_context(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        for member in members:
            running.callback(member.kill)
        for member in members:
            assert member.stdout is not None
            assert member.stdout.readline() == "listening\n"
        served = trio.run(main)
        assert {int(pid) for pid in served} == {member.pid for member in members}
        # A worker's members differ by one at most, and there are two workers.
        assert max(served.values()) - min(served.values()) <= 2
        members[0].kill()
        daemon.wait_for(rf"web-{members[0].pid} left", 2)
        assert {int(pid) for pid in trio.run(main)} == {member.pid for member in members[1:]}


def test_the_debug_cli(daemon: Daemon) -> None:
    workers = daemon.ctl("show workers")
    for index in range(2):
        assert str(daemon.worker_pid(index)) in workers
    daemon.ctl("test echo server uri quic://127.0.0.1:7777")
    said = daemon.ctl(
        "test echo client uri quic://127.0.0.1:7777 nclients 4 streams 2 mbytes 1 test-bytes"
    )
    assert f"{8 << 20} bytes" in said
    assert "full-duplex" in said
    daemon.ctl("test echo server stop")


def test_a_listener_that_comes_again_serves_the_same_clients(daemon: Daemon) -> None:
    """Theirs are the same addresses and ports; the socket below the listener is another one."""
    client = "test echo client uri quic://127.0.0.1:7778 nclients 4 syn-timeout 5"
    daemon.ctl("clear errors")
    for _ in range(3):
        daemon.ctl("test echo server uri quic://127.0.0.1:7778")
        assert "4 three-way handshakes" in daemon.ctl(client)
        daemon.ctl("test echo server stop")
    assert "ebadf" not in daemon.ctl("show errors")


def test_an_application_that_is_killed_loses_its_sessions_alone(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")
    program = (
        "import sys, trio, hoststack\n"
        "async def main():\n"
        "    async with hoststack.attach(sys.argv[1]) as stack:\n"
        "        tls = hoststack.TlsConfig.self_signed(['127.0.0.1'])\n"
        "        listening = stack.listen('quic://127.0.0.1:0', tls=tls, alpn=['test'])\n"
        "        async with await listening as listener:\n"
        "            print(listener.local[1], flush=True)\n"
        "            connection = await listener.accept()\n"
        "            await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )

    async def main(victim: subprocess.Popen[str], port: int) -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.attach(daemon.api) as stack,
                echo_server(stack) as uri,
                stack.connect(uri, tls=TRUSTING, alpn=["test"]) as well,
            ):
                victims = f"quic://127.0.0.1:{port}"
                async with stack.connect(
                    victims, tls=TlsConfig(verify=False), alpn=["test"]
                ) as doomed:
                    victim.kill()
                    info = await doomed.wait_closed()
                    assert (info.code, info.by_peer) == (1, True)
                    assert info.reason == "the application is gone"
                data = os.urandom(1_000_000)
                assert await ask(well, data) == data

    with subprocess.Popen(
        [sys.executable, "-c", program, daemon.api], stdout=subprocess.PIPE, text=True
    ) as victim:
        try:
            assert victim.stdout is not None
            trio.run(main, victim, int(victim.stdout.readline()))
        finally:
            victim.kill()


def test_a_worker_that_is_killed_loses_its_connections_alone(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with hoststack.attach(daemon.api) as stack, echo_server(stack) as uri:
                async with (
                    stack.connect(uri, tls=TRUSTING, alpn=["test"]) as one,
                    stack.connect(uri, tls=TRUSTING, alpn=["test"]) as other,
                ):
                    assert {one.handle >> 32, other.handle >> 32} == {0, 1}
                    first = one if one.handle >> 32 == 0 else other
                    stream = await first.open_stream()
                    os.kill(daemon.worker_pid(0), signal.SIGKILL)
                    with pytest.raises(ConnectionClosedError, match="the worker died"):
                        await stream.receive_some()
                began = trio.current_time()
                await trio.to_thread.run_sync(daemon.wait_for, "worker 0 is process", 2)
                assert trio.current_time() - began < 10  # a second, on a quiet machine
                for _ in range(8):
                    async with stack.connect(uri, tls=TRUSTING, alpn=["test"]) as connection:
                        assert await ask(connection, b"hello") == b"hello"

    trio.run(main)


def test_sigterm_ends_it_in_order(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--drain-seconds", "0.2")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.open_stack(link="udp") as client,
                hoststack.attach(daemon.api) as server,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                # A client may take its handshake for complete before the worker does.
                assert await ask(connection, b"hello") == b"hello"
                daemon.process.send_signal(signal.SIGTERM)
                info = await connection.wait_closed()
                assert (info.code, info.by_peer) == (0, True)

    trio.run(main)
    assert daemon.process.wait(PATIENCE_S) == 0
    assert not Path(daemon.api).exists()
    assert not Path(daemon.cli).exists()


async def _listen_for_ever(stack: hoststack.Stack) -> None:
    while True:
        async with await stack.listen("quic://127.0.0.1:0", tls=TLS, alpn=["test"]):
            pass


def test_while_it_drains_nothing_new_begins(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                hoststack.open_stack(link="udp") as client,
                hoststack.attach(daemon.api) as server,
                echo_server(server) as uri,
                client.connect(uri, tls=TRUSTING, alpn=["test"]) as connection,
            ):
                assert await ask(connection, b"before") == b"before"
                daemon.process.send_signal(signal.SIGTERM)
                with pytest.raises(ListenError, match="shutting down"):
                    await _listen_for_ever(server)  # until the worker has heard of it
                with pytest.raises(hoststack.ConnectError, match="shutting down"):
                    async with server.connect(uri, tls=TRUSTING, alpn=["test"]):
                        raise AssertionError
                with pytest.raises(AttachError):
                    async with hoststack.attach(daemon.api):
                        raise AssertionError
                # What there is goes on, and is not cut off.
                assert await ask(connection, b"meanwhile" * 10_000) == b"meanwhile" * 10_000

    trio.run(main)
    assert daemon.process.wait(PATIENCE_S) == 0


def test_workers_follow_a_supervisor_that_is_killed(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2")
    workers = [os.pidfd_open(daemon.worker_pid(index)) for index in range(2)]
    daemon.stop(signal.SIGKILL)

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            for worker in workers:
                await trio.lowlevel.wait_readable(worker)
                os.close(worker)

    trio.run(main)
    with pytest.raises(AttachError, match="is the daemon running"):
        trio.run(_attach, daemon.api)


async def _attach(path: str) -> None:
    async with hoststack.attach(path):
        raise AssertionError
