"""The debug CLI's commands, in three workers of two hosts on the memory link."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import QuicConfig, TlsConfig
from hoststack.api.stack import stack_on
from hoststack.boundary import messages as m
from hoststack.boundary.remote_application import RemoteApplication
from hoststack.control.grammar import CommandError
from hoststack.link.base import Endpoint
from hoststack.link.memory import Impairments
from hoststack.quic.seam import ConnectionIds
from hoststack.session.session import ConnectionSession, ListenerSession
from tests.control.conftest import Net
from tests.support.attached import attached

URI = "quic://10.0.0.1:1234"
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)

Play = Callable[[Callable[[Net], Awaitable[None]]], None]


async def fails(command: Awaitable[str]) -> str:
    """The line that a command fails with."""
    with pytest.raises(CommandError) as caught:
        await command
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_echo_full_duplex(play: Play) -> None:
    async def script(net: Net) -> None:
        listens = await net.server.ctl(f"test echo server uri {URI}")
        assert listens == "echo server listens on 10.0.0.1:1234"
        line = f"test echo client uri {URI} nclients 3 streams 4 bytes 100000 test-bytes"
        data = await net.client.json(line)
        assert data["handshakes"] == 3
        assert data["streams"] == 12
        assert data["tx_bytes"] == data["rx_bytes"] == data["bytes"] == 12 * 100_000
        assert data["duplex"] == "full"
        # Worker 0 has two of them, worker 1 the third.
        assert [worker["handshakes"] for worker in data["workers"]] == [2, 1]
        text = (await net.client.ctl(line)).splitlines()
        assert text[0].startswith("3 three-way handshakes in ")
        assert text[1].startswith("Test started at ")
        assert text[2].startswith("Test finished at ")
        assert text[3].startswith("1200000 bytes (1 mbytes, 0 gbytes) in ")

    play(script)


def test_rates(play: Play) -> None:
    """On a link that takes its time."""

    async def script(net: Net) -> None:
        net.network.impairments = Impairments(0, 0, 0, 0, 0.05)
        await net.server.ctl(f"test echo server uri {URI}")
        line = f"test echo client uri {URI} mbytes 1"
        data = await net.client.json(line)
        assert data["handshakes_per_second"] == pytest.approx(1 / data["handshake_seconds"])
        assert data["seconds"] == pytest.approx(data["finished"] - data["started"])
        assert data["seconds"] >= 0.1
        assert data["gbit_per_second"] == pytest.approx(8 * (1 << 20) / data["seconds"] / 1e9)
        text = (await net.client.ctl(line)).splitlines()
        assert text[-2].endswith(" bytes/second full-duplex")
        assert text[-1].endswith(" gbit/second full-duplex")

    play(script)


def test_echo_half_duplex(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI} no-echo fifo-size 64k")
        data = await net.client.json(f"test echo client uri {URI} mbytes 2 no-return fifo-size 64k")
        assert data["duplex"] == "half"
        assert data["bytes"] == data["tx_bytes"] == 2 << 20
        assert data["rx_bytes"] == 0
        said = await fails(net.client.ctl(f"test echo client uri {URI}"))
        assert "0 of 8192 bytes came back: a server with no-echo needs clients with no-ret" in said

    play(script)


def test_echo_server_is_stopped_and_another_started(play: Play) -> None:
    other = "quic://10.0.0.1:4321"

    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        said = await fails(net.server.ctl(f"test echo server uri {URI}"))
        assert said.startswith(f"there is an echo server on {URI} already")
        await net.server.ctl(f"test echo server uri {other}")
        for uri in (URI, other):
            await net.client.ctl(f"test echo client uri {uri}")
        stopped = await net.server.ctl(f"test echo server stop uri {URI}")
        assert stopped == f"echo server on {URI} stopped"
        said = await fails(net.client.ctl(f"test echo client uri {URI} syn-timeout 1"))
        assert said == "worker 0: timeout: 0 of 1 connections within 1 s (syn-timeout)"
        await net.client.ctl(f"test echo client uri {other}")
        said = await fails(net.server.ctl(f"test echo server stop uri {URI}"))
        assert said == f"there is no echo server on {URI}: there is {other}"
        assert await net.server.ctl("test echo server stop") == f"echo server on {other} stopped"
        assert await net.server.ctl("test echo server stop") == "no echo server was running"
        assert net.server.sides[0].servers == {}
        await net.server.ctl(f"test echo server uri {URI}")
        await net.client.ctl(f"test echo client uri {URI}")

    play(script)


def test_stopping_a_server_ends_its_connections(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        stack = stack_on(net.client.sides[0].worker, "mine")
        async with stack.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            await net.server.ctl("test echo server stop")
            info = await connection.wait_closed()
            assert info.by_peer
            # Its streams were cut off: code 0 would let them look complete.
            assert info.code == 1

    play(script)


def test_a_server_that_fails_in_one_worker_is_there_in_none(play: Play) -> None:
    """On 0.0.0.0 both workers of the client's host could listen, but one has the port already."""

    async def script(net: Net) -> None:
        first, second = net.client.sides
        stack = stack_on(second.worker, "mine")
        async with await stack.listen("quic://0.0.0.0:1234", tls=TLS, alpn=["echo"]):
            said = await fails(net.client.ctl("test echo server uri quic://0.0.0.0:1234"))
            assert said.startswith("worker 1: quic://0.0.0.0:1234: ")
            assert "in use" in said or "already" in said
            assert first.servers == second.servers == {}
        said = await fails(net.client.ctl("test echo server uri quic://0.0.0.0:0"))
        assert said.endswith("each worker would use another port: name one")

    play(script)


def test_a_test_that_takes_too_long(play: Play) -> None:
    async def script(net: Net) -> None:
        net.network.impairments = Impairments(0, 0, 0, 0, 0.3)
        await net.server.ctl(f"test echo server uri {URI}")
        said = await fails(
            net.client.ctl(f"test echo client uri {URI} streams 2 gbytes 1 test-timeout 1")
        )
        assert said.startswith("worker 0: timeout: 0 of 2 streams done within 1 s (test-timeout), ")
        await trio.sleep(60)
        # Nothing is left of it.
        counts = (await net.client.json("show session"))["workers"][0]["counts"]
        assert counts == {"listener": 0, "connection": 0, "stream": 0}

    play(script)


def test_a_cancelled_test_leaves_nothing(play: Play) -> None:
    async def script(net: Net) -> None:
        net.network.impairments = Impairments(0, 0, 0, 0, 0.3)
        await net.server.ctl(f"test echo server uri {URI}")
        with trio.move_on_after(2) as scope:
            await net.client.ctl(f"test echo client uri {URI} gbytes 1")
        assert scope.cancelled_caught
        await trio.sleep(60)
        for host in (net.client, net.server):
            for worker in (await host.json("show session"))["workers"]:
                assert worker["counts"]["connection"] == worker["counts"]["stream"] == 0

    play(script)


def test_wrong_bytes_are_found(play: Play) -> None:
    async def script(net: Net) -> None:
        stack = stack_on(net.server.sides[0].worker, "wrong")

        async def reply(connection: hoststack.Connection) -> None:
            async for stream in connection.streams():
                assert isinstance(stream, hoststack.Stream)
                data = bytearray(b"".join([chunk async for chunk in stream]))
                data[300] ^= 1
                await stream.send_all(data)
                await stream.send_eof()

        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **kw: stack.serve(URI, reply, tls=TLS, alpn=["echo"], **kw))
            await net.client.ctl(f"test echo client uri {URI}")
            said = await fails(net.client.ctl(f"test echo client uri {URI} test-bytes"))
            assert said == "worker 0: stream 0: wrong bytes came back, from offset 300 on"
            nursery.cancel_scope.cancel()

    play(script)


def test_session_disable(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        mine = stack_on(net.client.sides[0].worker, "mine")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            assert await net.client.ctl("session disable") == (
                "session layer disabled: existing sessions continue"
            )
            said = await fails(net.client.ctl(f"test echo client uri {URI}"))
            assert "the session layer is disabled: `session enable`" in said
            with pytest.raises(hoststack.ConnectError) as refused:
                async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]):
                    pass
            assert refused.value.errno == errno.EPERM
            with pytest.raises(hoststack.ListenError, match="the session layer is disabled"):
                await mine.listen("quic://10.0.0.2:99", tls=TLS, alpn=["echo"])
            # What is there goes on.
            stream = await connection.open_stream()
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert b"".join([chunk async for chunk in stream]) == b"hello"
            assert "sessions disabled" in await net.client.ctl("show workers")
            assert await net.client.ctl("session enable") == "session layer enabled"
            await net.client.ctl(f"test echo client uri {URI}")

    play(script)


def test_defaults_of_new_connections(play: Play, engine: str) -> None:
    async def script(net: Net) -> None:
        client = net.client.sides[0]
        await net.server.ctl(f"test echo server uri {URI}")
        if engine == "native":
            assert await net.client.ctl("quic set cc bbr") == "new connections use bbr"
        else:
            said = await fails(net.client.ctl("quic set cc bbr"))
            assert "the aioquic engine has no congestion control 'bbr': use one of cubic" in said
        assert await net.client.ctl("quic set cc reno") == "new connections use reno"
        said = await net.client.ctl("quic set fifo-size 8m")
        assert said == "new connections have FIFOs of 8388608 bytes"
        shown = (await net.client.ctl("show quic")).splitlines()[0]
        assert shown == (f"QUIC engine {engine}, default cc reno, fifo-size rx 8388608 tx 8388608")
        mine = stack_on(client.worker, "mine")
        async with (
            mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as unnamed,
            mine.connect(URI, tls=TRUSTING, alpn=["echo"], config=QuicConfig()) as named,
        ):
            await unnamed.open_stream()
            await named.open_stream()
            sessions = (await net.client.json("show session verbose 2 thread 0"))["workers"]
            assert [worker["worker"] for worker in sessions] == [0]
            by_type = {"connection": [], "stream": []}  # type: dict[str, list[object]]
            for session in sessions[0]["sessions"]:
                by_type[session["type"]].append(
                    session.get("congestion_control") or session["tx"]["size"]
                )
            assert by_type == {"connection": ["reno", "cubic"], "stream": [8 << 20, 1 << 20]}

    play(script)


def test_show_session(play: Play) -> None:
    async def script(net: Net) -> None:
        assert (
            await net.client.ctl("show session") == "Thread 0: no sessions\nThread 1: no sessions"
        )
        await net.server.ctl(f"test echo server uri {URI} no-echo")
        mine = stack_on(net.client.sides[1].worker, "mine")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            stream = await connection.open_stream()
            await stream.send_all(b"x" * 5000)
            await trio.sleep(1)
            local = f"10.0.0.3:{connection.local[1]}"
            assert await net.client.ctl("sh ses") == (
                "Thread 0: no sessions\nThread 1: 2 sessions: listeners 0, connections 1, streams 1"
            )
            lines = (await net.server.ctl("show session verbose")).splitlines()
            assert lines[0].split() == ["Connection", "State", "Rx-f", "Tx-f"]
            assert lines[1].split() == ["[0:0][Q]", "listener", "10.0.0.1:1234", "LISTEN"]
            assert lines[2].split() == [
                "[0:2][Q]",
                "conn",
                f"10.0.0.1:1234->{local}",
                "ESTABLISHED",
            ]
            shown = "[0:1][Q] stream 0 bidirectional by the client, conn [0:2] ESTABLISHED 0 0"
            assert lines[3].split() == shown.split()
            assert lines[4] == "Thread 0: active sessions 3"

            # One session alone, with all that it stands on.
            shown = await net.server.ctl("show session thread 0 index 1")
            assert (
                "chain stream [0:1] -> connection [0:2] -> listener [0:0] -> "
                f"[U] 10.0.0.1:1234->{local} memory"
            ) in shown
            assert "chain listener [0:0] -> [U] 10.0.0.1:1234 memory" in shown
            assert "Rx fifo: cursize 0 nitems 1048576 head 5000 tail 5000" in shown
            assert "Tx fifo: cursize 0 nitems 1048576 head 0 tail 0" in shown
            assert "came in on [0:0], alpn echo, cipher " in shown
            assert "RTT: min " in shown
            assert "    cwnd " in shown
            assert "app echo_server" in shown
            ours = await net.client.ctl("show session thread 1 index 1")
            assert "Tx fifo: cursize 0 nitems 1048576 head 5000 tail 5000" in ours
            assert f"chain stream [1:1] -> connection [1:0] -> [U] {local}->10.0.0.1:1234" in ours
            said = await fails(net.client.ctl("show session thread 1 index 7"))
            assert said == "worker 1: there is no session with index 7"
            said = await fails(net.client.ctl("show session thread 9"))
            assert said == "there is no worker 9: there is 0, 1"

            limited = await net.server.ctl("show session verbose limit 2")
            assert "Thread 0: 1 more are not shown: `limit N` shows more" in limited

    play(script)


def test_connection_ids_are_shown(play: Play) -> None:
    """What one side sends to is what the other one listens to."""

    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        mine = stack_on(net.client.sides[0].worker, "mine")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            await trio.sleep(1)
            [server] = (await net.server.json("show session thread 0 index 2"))["workers"]
            client = (await net.client.json("show session thread 0 index 0"))["workers"][0]
            theirs, ours = server["sessions"][0], client["sessions"][0]
            assert ours["remote_cid"] in theirs["local_cids"]
            assert theirs["remote_cid"] in ours["local_cids"]
            for cid in ours["local_cids"]:
                assert len(bytes.fromhex(cid)) == 12
            assert f"the peer's {theirs['remote_cid']}" in await net.server.ctl("sh ses v 2")
            session = net.client.sides[0].sessions.get(connection.handle)
            assert isinstance(session, ConnectionSession)
        await trio.sleep(60)
        assert session.context.connection_ids() == ConnectionIds()

    play(script)


def test_a_corrupt_fifo_is_shown(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        side = net.client.sides[0]
        async with (
            attached([stack_on(side.worker, "here")], "elsewhere") as mine,
            mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection,
        ):
            await connection.open_stream()
            (application,) = (a for a in side.worker.layer.applications if a.is_remote)
            pool = application._pool  # type: ignore[attr-defined]
            (segment,) = pool._arena.segments
            # What an application in another process can do to the shared blocks.
            memory, places = segment.memory, [name.offset for name in pool._held]
            kept = [memory[at : at + 64] for at in places]
            for at in places:
                memory[at : at + 64] = b"\xff" * 64
            shown = await net.client.ctl("show session verbose 2 thread 0")
            assert "corrupt: the application has written invalid indices" in shown
            for at, bytes_ in zip(places, kept, strict=True):
                memory[at : at + 64] = bytes_

    play(script)


def counts(connections: int, streams: int) -> dict[str, Any]:
    return {
        "namespace": "default",
        "scopes": ["global"],
        "listeners": 0,
        "connections": connections,
        "streams": streams,
    }


def test_show_app(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        for side in net.client.sides:
            stack_on(side.worker, "mine")
        mine = stack_on(net.client.sides[0].worker, "other")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            await connection.open_stream()
            assert await net.client.json("show app") == {
                "applications": [
                    {"name": "mine", "workers": [0, 1], **counts(0, 0)},
                    {"name": "other", "workers": [0], **counts(1, 1)},
                ]
            }
            lines = (await net.server.ctl("show app")).splitlines()
            assert lines[0].split() == [
                "Index",
                "Name",
                "Namespace",
                "Scopes",
                "Threads",
                "Listeners",
                "Connections",
                "Streams",
            ]
            assert lines[1].split() == ["0", "echo_server", "default", "global", "0", "1", "1", "0"]

    play(script)


def test_errors_and_clear_errors(play: Play, engine: str) -> None:
    async def script(net: Net) -> None:
        server = net.server.sides[0].worker
        await net.server.ctl(f"test echo server uri {URI}")
        noise = net.network.link("10.0.0.66")
        local = noise.open_port(Endpoint("10.0.0.66", 0))
        path = await noise.connect_path(local.port, Endpoint("10.0.0.1", 1234))
        for _ in range(3):
            noise.send([(b"\x40 this is a packet of no connection", path)])
        await trio.sleep(1)
        errors = (await net.server.json("show errors"))["errors"]
        assert {(error["node"], error["count"]) for error in errors} >= {(f"quic-{engine}", 3)}
        text = (await net.server.ctl("show errors")).splitlines()
        assert text[0].split() == ["Count", "Node", "Reason", "Severity"]
        assert text[1].split()[:2] == ["3", f"quic-{engine}"]
        before = server.layer.engine.counters
        assert await net.server.ctl("clear errors") == "error counts start from zero"
        assert (await net.server.json("show errors"))["errors"] == []
        # The engine's own counters go on.
        assert server.layer.engine.counters.dropped == before.dropped
        noise.send([(b"\x40 this is a packet of no connection", path)])
        await trio.sleep(1)
        [error] = (await net.server.json("show errors"))["errors"]
        assert error["count"] == 1
        noise.close()

    play(script)


def test_show_quic_sums(play: Play) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        await net.client.ctl(f"test echo client uri {URI} nclients 5")
        data = await net.client.json("show quic")
        parts = [worker["counters"]["connected"] for worker in data["workers"]]
        assert parts == [3, 2]
        assert data["total"]["connected"] == 5
        shown = await net.client.ctl("show quic")
        [line] = [line for line in shown.splitlines() if line.split()[0] == "connected"]
        assert line.split() == ["connected", "5", "3", "2"]
        mine = stack_on(net.client.sides[1].worker, "mine")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]):
            shown = await net.client.ctl("show quic verbose")
            assert "[1:" in shown
            assert "RTT: min " in shown

    play(script)


def test_show_udp_workers_and_xdp(play: Play, engine: str) -> None:
    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        mine = stack_on(net.client.sides[0].worker, "mine")
        async with mine.connect(URI, tls=TRUSTING, alpn=["echo"]) as connection:
            server = (await net.server.json("show udp"))["workers"][0]
            assert server["ports"] == [
                {"local": ["10.0.0.1", 1234], "use": "listener", "holders": 2}
            ]
            shown = await net.server.ctl("show udp")
            assert "[U] 10.0.0.1:1234" in shown
            assert "listener, 1 connections" in shown
            shown = await net.client.ctl("show udp")
            assert f"[U] 10.0.0.2:{connection.local[1]}" in shown
        lines = (await net.client.ctl("show workers")).splitlines()
        assert [line.split()[0] for line in lines] == ["ID", "0", "1"]
        assert lines[1].split()[2:4] == ["memory", engine]
        assert await net.client.ctl("show xdp") == "no XDP here: the link is memory"

    play(script)


def test_session_rules(play: Play) -> None:
    rule = "proto quic 0.0.0.0/0 0 10.0.0.1/32 1234"

    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        shown = await net.client.ctl("session rule show")
        assert shown == "no session rules: everything is allowed"
        added = await net.client.ctl(f"session rule add {rule} action deny tag no-echo")
        assert added == "session rule added"
        shown = await net.client.ctl("session rule show")
        assert shown == f"appns default scope all {rule} action deny tag no-echo"
        said = await fails(net.client.ctl(f"test echo client uri {URI}"))
        assert "a session rule forbids it" in said
        assert await net.client.ctl(f"session rule del {rule}") == "session rule deleted"
        await net.client.ctl(f"test echo client uri {URI}")
        said = await fails(net.client.ctl(f"session rule del {rule}"))
        assert "there is no such rule" in said
        said = await fails(net.client.ctl("session rule add 10.0.0.0/8"))
        assert "has no two prefixes" in said

    play(script)


def test_namespaces_and_cut_through(play: Play) -> None:
    async def script(net: Net) -> None:
        added = await net.server.ctl("app ns add id blue secret s3cret scope local")
        assert added == "namespace blue added"
        assert "blue scope local secret set" in await net.server.ctl("show app ns")
        assert "s3cret" not in await net.server.ctl("show app ns")
        said = await fails(net.server.ctl("app ns add id default secret x"))
        assert "the namespace default is open to all" in said
        stack = stack_on(net.server.sides[0].worker, "mine")
        blue: dict[str, Any] = {"namespace": "blue", "secret": "s3cret", "scopes": {"local"}}
        async with (
            stack.application("listens", **blue) as one,
            stack.application("connects", **blue) as other,
            await one.listen("quic://10.0.0.1:77", tls=TLS, alpn=["echo"]),
            other.connect("quic://10.0.0.1:77", tls=TRUSTING, alpn=["echo"]) as connection,
        ):
            stream = await connection.open_stream()
            await stream.send_all(b"hello")
            await trio.sleep(1)
            shown = await net.server.ctl("show session verbose 2")
            assert "] -> [CT] 10.0.0.1:" in shown
            assert "Tx fifo: cursize 5 " in shown
            assert "RTT" not in shown
            lines = [line.split() for line in (await net.server.ctl("show app")).splitlines()]
            assert ["listens", "blue", "local"] in [line[1:4] for line in lines]

    play(script)


def test_help(play: Play) -> None:
    async def script(net: Net) -> None:
        lines = (await net.server.ctl("help")).splitlines()
        assert any(line.startswith("show session") for line in lines)
        assert (await net.server.ctl("help show session")).splitlines() == [
            "show session [verbose [N]] [thread N] [index N] [limit N]",
            "  sessions: counts, a list (verbose), with all their layers (verbose 2)",
        ]

    play(script)


def test_an_echo_server_whose_listener_is_lost_ends_alone(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon has a worker for others, too."""

    async def script(net: Net) -> None:
        await net.server.ctl(f"test echo server uri {URI}")
        (side,) = net.server.sides
        (listener,) = [
            session
            for session in side.worker.layer.sessions
            if isinstance(session, ListenerSession)
        ]
        listener.application.notify(m.ListenerLost(listener.handle, "the interface is gone"))
        side.worker.wake()
        await trio.sleep(1)
        assert await net.server.ctl("test echo server stop") == "no echo server was running"

    play(script)
    assert "the interface is gone" in caplog.text


def test_tls_reload_asks_applications(play: Play) -> None:
    async def script(net: Net) -> None:
        asked = await net.server.ctl("tls reload")
        assert asked == "asked to read their certificates again: none, no application is attached"
        heard: list[str] = []

        async def follow(stack: hoststack.Stack, name: str) -> None:
            async for _ in stack.reload_requests():
                heard.append(name)

        web = stack_on(net.server.sides[0].worker, "web")
        async with attached([web], "other") as other, trio.open_nursery() as nursery:
            nursery.start_soon(follow, web, "web")
            nursery.start_soon(follow, other, "other")
            await trio.testing.wait_all_tasks_blocked()
            for times in (1, 2):
                asked = await net.server.ctl("tls rel")
                assert asked == "asked to read their certificates again: other, web"
                await trio.testing.wait_all_tasks_blocked()
                assert sorted(heard) == ["other"] * times + ["web"] * times
            nursery.cancel_scope.cancel()

    play(script)


def test_tls_reload_leaves_out_who_does_not_read(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(net: Net) -> None:
        web = stack_on(net.server.sides[0].worker, "web")
        async with attached([web], "deaf"):
            monkeypatch.setattr(RemoteApplication, "is_behind", True)
            assert (await net.server.ctl("tls reload")).splitlines() == [
                "asked to read their certificates again: web",
                "not asked, since they do not read what they are told: deaf",
            ]

    play(script)
