"""Connections that change their path: our own migration, NATs, and preferred addresses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.packet import QuicPreferredAddress, QuicTransportParameters

import hoststack
from hoststack import Connection, MigrationError, QuicConfig, Stack
from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryLink, MemoryNetwork
from hoststack.worker import engines
from tests.quic.test_native_features import (
    CLIENT,
    SERVER,
    TLS,
    TRUSTING,
    URI,
    exchange,
    meeting,
    run,
)
from tests.quic.test_stock_aioquic import stock_client, stock_server

PREFERRED = (SERVER, 5555)
PREFERRING = QuicConfig(preferred_addresses=("10.0.0.1:5555",))

pytestmark = pytest.mark.skipif(
    "native" not in engines.available_engines(), reason="the native engine was not built"
)


class Filtered(MemoryNetwork):
    """A network that loses what `loses` says."""

    def __init__(self, loses: Callable[[Path], bool] = lambda path: False, **options: Any) -> None:
        super().__init__(**options)
        self.loses = loses

    def _carry(self, data: bytes, path: Path) -> None:
        if not self.loses(path):
            super()._carry(data, path)


def open_ports(stack: Stack) -> set[int]:
    link = stack.link
    assert isinstance(link, MemoryLink)
    return set(link._ports)


async def settle() -> None:
    """What was given up is given back, and what was lost is sent again."""
    await trio.sleep(5)


async def path_changes(*connections: Connection) -> list[int | float]:
    return [(await connection.statistics())["path_changes"] for connection in connections]


@pytest.mark.parametrize(
    "impairments",
    [{}, {"loss": 0.05, "reorder": 0.1, "duplicate": 0.05, "corrupt": 0.01, "delay_s": 0.01}],
    ids=["clean", "lossy"],
)
def test_a_client_moves_in_the_middle_of_transfers(impairments: dict[str, float]) -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=2, **impairments)  # type: ignore[arg-type]
        async with meeting(network) as (_, _, accepted, connected):
            before = connected.local
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange, connected, accepted, bytes(300_000))
                await connected.migrate()
                moved = connected.local
                nursery.start_soon(exchange, accepted, connected, bytes(300_000))
            assert moved[0] == CLIENT
            assert moved != before
            assert accepted.remote == connected.local == moved
            assert connected.remote == accepted.local == (SERVER, 4433)
            assert await path_changes(connected, accepted) == [1, 1]

    run(main)


def test_ports_are_given_back() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork()) as (_, client, accepted, connected):
            shared = connected.local[1]
            ports = []
            for _ in range(10):
                await connected.migrate()
                ports.append(connected.local[1])
                await exchange(connected, accepted, b"still there")
                await exchange(accepted, connected, b"here, too")
            assert len({shared, *ports}) == 11
            # What is still under way to the last one comes.
            assert {shared, *ports[-2:]} <= open_ports(client)
            await settle()
            assert open_ports(client) == {shared, ports[-1]}
            await connected.aclose()
            await connected.wait_closed()
            assert open_ports(client) == {shared, ports[-1]}
            await settle()
            assert open_ports(client) == {shared}

    run(main)


def test_a_close_that_was_lost_is_said_again_from_there() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with meeting(network) as (_, _, accepted, connected):
            await connected.migrate()
            stream = await accepted.open_stream()
            network.impairments.loss = 1.0
            await connected.aclose(9)
            await trio.sleep(0.01)
            network.impairments.loss = 0.0
            await stream.send_all(b"are you there?")
            with trio.fail_after(1):
                assert (await accepted.wait_closed()).code == 9

    run(main)


def test_a_port_or_an_address_that_was_asked_for() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork()) as (_, client, accepted, connected):
            await connected.migrate(f"{CLIENT}:6000")
            assert connected.local == (CLIENT, 6000)
            for taken, number in (
                (f"{CLIENT}:6000", errno.EADDRINUSE),
                (SERVER, errno.EADDRNOTAVAIL),
                ("fd00::1", errno.EPERM),
            ):
                with pytest.raises(MigrationError) as caught:
                    await connected.migrate(taken)
                assert caught.value.errno == number
            for wrong in ("", "here", "10.0.0.2:x", "10.0.0.2:70000", "[fd00::1:5"):
                with pytest.raises(ValueError, match="write it as"):
                    await connected.migrate(wrong)
            ports = open_ports(client)
            await exchange(connected, accepted, b"well")
            assert open_ports(client) == ports
            await connected.migrate(CLIENT)
            assert connected.local[0] == CLIENT

    run(main)


def test_the_path_is_probed_anew() -> None:
    async def main() -> None:
        config = QuicConfig(datagram_fifo_bytes=4096)
        async with meeting(MemoryNetwork(delay_s=0.01), config) as (_, _, accepted, connected):
            await exchange(connected, accepted, bytes(100_000))
            assert (await connected.statistics())["datagram_bytes"] == 1472
            at_most = connected.max_datagram_bytes
            await connected.migrate()
            assert connected.max_datagram_bytes == at_most - 272
            await exchange(connected, accepted, bytes(100_000))
            assert connected.max_datagram_bytes == at_most

    run(main)


def test_one_that_does_not_work_leaves_the_connection_where_it_was() -> None:
    async def main() -> None:
        network = Filtered(lambda path: 6000 in (path.local.port, path.remote.port))
        async with meeting(network) as (_, client, accepted, connected):
            local, ports = connected.local, open_ports(client)
            with pytest.raises(MigrationError, match="does not answer on the new path"):
                await connected.migrate(f"{CLIENT}:6000")
            assert connected.local == local
            assert open_ports(client) == ports
            await exchange(connected, accepted, bytes(10_000))
            assert await path_changes(connected, accepted) == [0, 0]
            await connected.migrate()
            assert connected.local != local
            await exchange(accepted, connected, bytes(10_000))

    run(main)


def test_one_at_a_time() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(delay_s=0.1)) as (_, _, accepted, connected):
            errors: list[int | None] = []

            async def move() -> None:
                try:
                    await connected.migrate()
                except MigrationError as error:
                    errors.append(error.errno)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(move)
            assert errors == [errno.EALREADY] * 2
            await exchange(connected, accepted, bytes(10_000))

    run(main)


def test_only_clients_move() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork()) as (server, _, accepted, connected):
            with pytest.raises(MigrationError, match="only the client"):
                await accepted.migrate()
            assert open_ports(server) == {4433}
            await connected.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await connected.migrate()
            await accepted.wait_closed()
            with pytest.raises(hoststack.ConnectionClosedError):
                await accepted.migrate()

    run(main)


def test_a_connection_that_ends_meanwhile() -> None:
    async def main() -> None:
        network = Filtered(lambda path: 6000 in (path.local.port, path.remote.port))
        async with meeting(network) as (_, client, accepted, connected):
            ports = open_ports(client)

            async def move() -> None:
                with pytest.raises(hoststack.ConnectionClosedError):
                    await connected.migrate(f"{CLIENT}:6000")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                await trio.sleep(0.1)
                assert 6000 in open_ports(client)
                await accepted.aclose(3)
            assert open_ports(client) == ports

    run(main)


def test_one_that_is_given_up_may_come_about_and_another_can_follow() -> None:
    async def main() -> None:
        network = Filtered(delay_s=0.05)
        async with meeting(network) as (_, client, accepted, connected):
            await settle()
            with trio.move_on_after(0.06) as scope:
                await connected.migrate(f"{CLIENT}:6000")
            assert scope.cancelled_caught
            await settle()
            # The peer had been asked already.
            assert connected.local == (CLIENT, 6000)
            await connected.migrate()
            await exchange(connected, accepted, bytes(10_000))
            await settle()
            assert 6000 not in open_ports(client)

    run(main)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock peers' other end is the native engine."""
    monkeypatch.setattr(engines, "available_engines", lambda: ["native"])


@pytest.mark.usefixtures("native")
def test_a_stock_server_is_left_behind_by_no_move() -> None:
    async def main() -> None:
        async with stock_server() as m:
            await m.ours.migrate()
            stream = await m.ours.open_stream(unidirectional=True)
            await stream.send_all(b"from elsewhere")
            await stream.send_eof()
            assert await m.stock.stream_ends(stream.stream_id) == b"from elsewhere"

    run(main)


@pytest.mark.usefixtures("native")
def test_a_peer_may_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forbidding = partial(QuicTransportParameters, disable_active_migration=True)
    monkeypatch.setattr(aioquic_connection, "QuicTransportParameters", forbidding)

    async def main() -> None:
        async with stock_server() as m:
            local = m.ours.local
            with pytest.raises(MigrationError, match="the peer forbids migration"):
                await m.ours.migrate()
            assert m.ours.local == local
            assert len(open_ports(m.stack)) == 1

    run(main)


@pytest.mark.usefixtures("native")
def test_a_peer_that_gives_no_connection_id_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        aioquic_connection.QuicConnection, "_replenish_connection_ids", lambda self: None
    )

    async def main() -> None:
        async with stock_server() as m:
            with pytest.raises(MigrationError, match="no connection ID"):
                await m.ours.migrate()
            await trio.sleep(0.1)
            assert len(open_ports(m.stack)) == 1
            assert m.ours.close_info is None

    run(main)


# --- NATs ----------------------------------------------------------------------------------------


class Nat(MemoryNetwork):
    """A network whose client is behind a NAT, which may forget it at any time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.outside = 20_000

    def rebind(self) -> None:
        self.outside += 1

    def _carry(self, data: bytes, path: Path) -> None:
        if path.local.host == CLIENT:
            self._inside = path.local.port
            path = Path(Endpoint(CLIENT, self.outside), path.remote)
        elif path.remote.port == self.outside:
            path = Path(path.local, Endpoint(CLIENT, self._inside))
        else:
            return
        super()._carry(data, path)


@pytest.mark.parametrize("is_alive", [True, False], ids=["keep-alive", "silent"])
def test_a_client_that_only_receives_behind_a_nat(is_alive: bool) -> None:
    """It sends nothing of its own accord, so it is its keep-alive that shows where it is now."""

    async def main() -> None:
        network = Nat(delay_s=0.01)
        config = QuicConfig(idle_timeout_s=20)
        eager = QuicConfig(idle_timeout_s=20, keep_alive_s=1 if is_alive else 0)
        async with meeting(network, config, eager) as (_, _, accepted, connected):
            stream = await accepted.open_stream(unidirectional=True)
            await stream.send_all(b"first")
            async for theirs in connected.streams():
                assert await theirs.receive_some() == b"first"
                break
            await trio.sleep(0.5)  # all is acknowledged
            network.rebind()
            await stream.send_all(b"second")
            if is_alive:
                with trio.fail_after(3):
                    assert await theirs.receive_some() == b"second"
                assert accepted.remote == (CLIENT, network.outside)
                assert await path_changes(connected, accepted) == [0, 1]
            else:
                with pytest.raises(hoststack.ConnectionClosedError, match="Idle timeout"):
                    await theirs.receive_some()

    run(main)


# --- preferred addresses -------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_client_goes_where_the_server_wants_it(loss: float) -> None:
    async def main() -> None:
        network = MemoryNetwork(seed=4, loss=loss, delay_s=0.01)
        async with meeting(network, PREFERRING) as (server, _, accepted, connected):
            assert open_ports(server) == {4433, 5555}
            await exchange(connected, accepted, bytes(100_000))
            await settle()
            assert connected.remote == accepted.local == PREFERRED
            assert connected.local == accepted.remote
            assert await path_changes(connected, accepted) == [1, 1]
            # And from there to another port of its own.
            await connected.migrate()
            await exchange(accepted, connected, bytes(100_000))
            assert connected.remote == PREFERRED

    run(main)


def test_unless_it_does_not_want_to_or_can_not() -> None:
    async def main() -> None:
        for network, config in (
            (Filtered(), QuicConfig(follow_preferred_address=False)),
            (Filtered(lambda path: 5555 in (path.local.port, path.remote.port)), QuicConfig()),
        ):
            async with meeting(network, PREFERRING, config) as (_, _, accepted, connected):
                await settle()
                await exchange(connected, accepted, bytes(100_000))
                assert connected.remote == accepted.local == (SERVER, 4433)
                assert await path_changes(connected, accepted) == [0, 0]

    run(main)


def test_a_move_that_is_asked_for_meanwhile_follows() -> None:
    async def main() -> None:
        async with meeting(MemoryNetwork(delay_s=0.01), PREFERRING) as (*_, accepted, connected):
            local = connected.local
            await connected.migrate()
            await exchange(connected, accepted, bytes(1000))
            assert connected.local != local
            await settle()
            await exchange(accepted, connected, bytes(1000))
            assert accepted.remote == connected.local

    run(main)


def test_the_preferred_port_is_held_as_long_as_it_is_needed() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with hoststack.open_stack(link=network.link(SERVER), engine="native") as server:
            listener = await server.listen(URI, tls=TLS, alpn=["test"], config=PREFERRING)
            async with (
                hoststack.open_stack(link=network.link(CLIENT), engine="native") as client,
                client.connect(URI, tls=TRUSTING, alpn=["test"]) as connected,
                await listener.accept() as accepted,
            ):
                await listener.aclose()
                await exchange(connected, accepted, bytes(10_000))
                assert open_ports(server) == {4433, 5555}
                # Another listener may want the same.
                again = await server.listen(URI, tls=TLS, alpn=["test"], config=PREFERRING)
                await again.aclose()
                await exchange(connected, accepted, bytes(10_000))
            await settle()
            assert open_ports(server) == set()
            listener = await server.listen(
                "quic://0.0.0.0:5555", tls=TLS, alpn=["test"], config=PREFERRING
            )
            assert open_ports(server) == {5555}
            await listener.aclose()

    run(main)


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (("10.0.0.1",), "write it as"),
        (("here:1",), "write it as"),
        (("10.0.0.1:0",), "not an address that a client can use"),
        (("0.0.0.0:1",), "not an address that a client can use"),
        (("10.0.0.1:1", "10.0.0.1:2"), "one preferred address for IPv4"),
        (("10.0.0.9:1",), "not this host's address"),
        (("10.0.0.1:7777",), "in use"),
    ],
)
def test_addresses_that_are_none_are_refused(addresses: tuple[str, ...], text: str) -> None:
    async def main() -> None:
        link = MemoryNetwork().link(SERVER)
        link.open_port(Endpoint(SERVER, 7777))
        async with hoststack.open_stack(link=link, engine="native") as stack:
            config = QuicConfig(preferred_addresses=addresses)
            with pytest.raises(hoststack.ListenError, match=text):
                await stack.listen(URI, tls=TLS, alpn=["test"], config=config)
            assert open_ports(stack) == {7777}

    run(main)


def test_aioquic_prefers_none() -> None:
    async def main() -> None:
        async with hoststack.open_stack(
            link=MemoryNetwork().link(SERVER), engine="aioquic", config=PREFERRING
        ) as stack:
            with pytest.raises(hoststack.ListenError, match=r"aioquic.*preferred_addresses"):
                await stack.listen(URI, tls=TLS, alpn=["test"])
            assert open_ports(stack) == set()

    run(main)


def test_aioquic_does_not_move() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine="aioquic") as server,
            hoststack.open_stack(link=network.link(CLIENT), engine="aioquic") as client,
            await server.listen(URI, tls=TLS, alpn=["test"]),
            client.connect(URI, tls=TRUSTING, alpn=["test"]) as connected,
        ):
            with pytest.raises(MigrationError, match="aioquic engine can't"):
                await connected.migrate()

    run(main)


@pytest.mark.usefixtures("native")
def test_a_stock_client_goes_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # It sends its PATH_CHALLENGE once only, and before the connection IDs that an answer needs.
    def carry(network: MemoryNetwork, data: bytes, path: Path) -> None:
        receiver = network._links[path.remote.host]
        delay_s = 0.01 if path.remote.port == 5555 else 0
        receiver._arrive(trio.current_time() + delay_s, next(network._order), data, path)

    monkeypatch.setattr(MemoryNetwork, "_carry", carry)

    async def main() -> None:
        async with stock_client(PREFERRING) as m:
            await settle()
            stream = await m.ours.open_stream()
            await stream.send_all(b"here")
            await stream.send_eof()
            m.quic.send_stream_data(m.quic.get_next_available_stream_id(), b"there", True)
            m.stock.poke()
            assert await m.stock.stream_ends(stream.stream_id) == b"here"
            await settle()
            assert m.ours.local == PREFERRED

    run(main)


@pytest.mark.usefixtures("native")
def test_a_probe_that_comes_too_early_is_as_if_lost() -> None:
    async def main() -> None:
        async with stock_client(PREFERRING) as m:
            await settle()
            assert m.stack.counters().dropped["early_probe"] == 1
            came = m.stock.datagrams_received
            await settle()
            assert m.stock.datagrams_received == came
            stream = await m.ours.open_stream()
            await stream.send_all(b"still here")
            await stream.send_eof()
            assert await m.stock.stream_ends(stream.stream_id) == b"still here"
            assert m.ours.local == (SERVER, 4433)

    run(main)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("host", ["127.0.0.1", "224.0.0.1", "169.254.0.1", "0.0.0.0"])
def test_a_server_can_not_send_us_anywhere(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9000 section 21.5.3: an address behind which somebody trusts us more than the server."""
    luring = partial(
        QuicTransportParameters,
        preferred_address=QuicPreferredAddress(
            ipv4_address=(host, 5555),
            ipv6_address=None,
            connection_id=b"preferred",
            stateless_reset_token=bytes(range(16)),
        ),
    )
    monkeypatch.setattr(aioquic_connection, "QuicTransportParameters", luring)
    # Its second connection ID is the one that goes with the address.
    monkeypatch.setattr(
        aioquic_connection.QuicConnection, "_replenish_connection_ids", lambda self: None
    )

    async def main() -> None:
        async with stock_server() as m:
            victim = m.network.link(host)
            victim.open_port(Endpoint("0.0.0.0", 5555))
            await settle()
            assert not victim.statistics()["rx_datagrams"]
            assert not victim._queue
            assert m.ours.remote[0] == "10.0.0.2"
            assert m.ours.close_info is None

    run(main)
