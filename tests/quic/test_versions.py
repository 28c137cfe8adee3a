"""Which version of QUIC two peers come to speak (RFC 9368, RFC 9369)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.packet import encode_quic_version_negotiation, pull_quic_header

import hoststack
from hoststack import ConnectError, Connection, QuicConfig, SessionCache, TlsConfig
from hoststack.link.base import Endpoint, Path
from hoststack.link.memory import MemoryNetwork
from tests.quic.test_stock_aioquic import client_configuration, server_configuration
from tests.support.stock_peer import StockPeer
from tests.support.streams import exchange

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
PORT = 4433
URI = f"quic://{SERVER}:{PORT}"
TLS = TlsConfig.self_signed(["localhost"])
TRUSTING = TlsConfig(verify=False)
V1, V2, UNKNOWN = 0x00000001, 0x6B3343CF, 0x1A2A3A4A
NUMBERS = {V1: 1, V2: 2}
ENGINES = ["native", "aioquic"]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


class Watched(MemoryNetwork):
    """A network that knows which version the last packet with a long header was of, each way; and a
    server's neighbour that answers some versions with Version Negotiation, as the server would."""

    def __init__(self) -> None:
        super().__init__(delay_s=0.01)
        self.versions: dict[str, int] = {}
        self.refused: dict[int, list[int]] = {}
        """Versions, and what is said to be spoken in place of each."""

    def _carry(self, data: bytes, path: Path) -> None:
        version = int.from_bytes(data[1:5], "big")
        if data[0] & 0x80 and version:
            self.versions[path.remote.host] = version
            if path.remote.host == SERVER and version in self.refused:
                super()._carry(self._refusal(data, self.refused[version]), _back(path))
                return
        super()._carry(data, path)

    def _refusal(self, data: bytes, spoken: list[int]) -> bytes:
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        return encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=spoken,
        )


def _back(path: Path) -> Path:
    return Path(path.remote, path.local)


@asynccontextmanager
async def pair(
    network: Watched, server: Any, client: Any, version: int, **options: Any
) -> AsyncIterator[tuple[Connection, Connection]]:
    tls = TlsConfig(verify=False, **options)
    config = QuicConfig(version=version)
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=server) as serving,
        hoststack.open_stack(link=network.link(CLIENT), engine=client, config=config) as stack,
        await serving.listen(URI, tls=TLS, alpn=["test"]) as listener,
        stack.connect(URI, tls=tls, alpn=["test"]) as connected,
        await listener.accept() as accepted,
    ):
        yield connected, accepted


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("client", ENGINES)
@pytest.mark.parametrize("server", ENGINES)
def test_a_client_keeps_the_version_that_it_prefers(server: str, client: str, version: int) -> None:
    async def main() -> None:
        network = Watched()
        async with pair(network, server, client, version) as (connected, accepted):
            assert {NUMBERS[each] for each in network.versions.values()} == {version}
            await exchange(connected, accepted, bytes(20_000))

    run(main)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("client", ENGINES)
@pytest.mark.parametrize("server", ENGINES)
def test_a_forged_version_negotiation_is_found_out(server: str, client: str, version: int) -> None:
    async def main() -> None:
        network = Watched()
        first, other = (V1, V2) if version == 1 else (V2, V1)
        network.refused = {first: [UNKNOWN, other]}
        # The server itself would speak both, and says so where nobody can change it.
        with pytest.raises(ConnectError, match=r"would have spoken another version.*code 0x11"):
            async with pair(network, server, client, version):
                pass

    run(main)


# --- aioquic as it comes ---


@asynccontextmanager
async def stock_client(
    network: Watched, engine: Any, version: int, preferred: list[int], retry: int | None = None
) -> AsyncIterator[tuple[Connection, StockPeer]]:
    config = QuicConfig(retry_above_half_open=retry)
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine, config=config) as stack,
        await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        trio.open_nursery() as nursery,
    ):
        peer = StockPeer(network.link(CLIENT))
        configuration = client_configuration(original_version=version, supported_versions=preferred)
        await peer.connect(configuration, SERVER, PORT)
        nursery.start_soon(peer.run)
        yield await listener.accept(), peer
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("retry", [None, 0], ids=["at once", "after Retry"])
@pytest.mark.parametrize(
    ("version", "preferred", "spoken"),
    [
        (V1, [V2, V1], V2),
        (V1, [UNKNOWN, V2, V1], V2),
        (V1, [V1, V2], V1),
        (V1, [V1], V1),
        (V1, [V1, UNKNOWN], V1),
        (V2, [V2, V1], V2),
        (V2, [V2], V2),
        (V2, [V1, V2], V1),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_goes_on_with_what_its_client_prefers(
    engine: str, version: int, preferred: list[int], spoken: int, retry: int | None
) -> None:
    async def main() -> None:
        network = Watched()
        async with stock_client(network, engine, version, preferred, retry) as (ours, peer):
            assert peer.quic is not None
            await peer.wait_for(events.HandshakeCompleted)
            assert peer.quic._version == spoken
            assert network.versions == {SERVER: spoken, CLIENT: spoken}
            peer.quic.send_stream_data(0, bytes(50_000), end_stream=True)
            peer.poke()
            async for stream in ours.streams():
                assert isinstance(stream, hoststack.Stream)
                assert len(b"".join([chunk async for chunk in stream])) == 50_000
                break
            peer.quic.request_key_update()
            peer.quic.send_stream_data(4, b"with new keys", end_stream=True)
            peer.poke()
            async for stream in ours.streams():
                assert isinstance(stream, hoststack.Stream)
                assert b"".join([chunk async for chunk in stream]) == b"with new keys"
                break

    run(main)


@pytest.mark.parametrize(
    ("version", "speaks", "spoken"),
    [
        (2, [V1], V1),
        (1, [V2], V2),
        (1, [V1, V2], V1),
        (2, [V1, V2], V2),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_of_a_server_with_fewer_versions(
    engine: Any, version: int, speaks: list[int], spoken: int
) -> None:
    async def main() -> None:
        network = Watched()
        network.refused = {each: speaks for each in (V1, V2) if each not in speaks}
        config = QuicConfig(version=version)
        async with (
            hoststack.open_stack(link=network.link(CLIENT), engine=engine, config=config) as stack,
            trio.open_nursery() as nursery,
        ):
            peer = StockPeer(network.link(SERVER), PORT)
            peer.accept(server_configuration(supported_versions=speaks))
            nursery.start_soon(peer.run)
            async with stack.connect(URI, tls=TRUSTING, alpn=["test"]) as connection:
                assert peer.quic is not None
                assert peer.quic._version == spoken
                stream = await connection.open_stream()
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await peer.stream_ends(stream.stream_id) == b"hello"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_of_a_server_that_speaks_nothing_known(engine: Any) -> None:
    async def main() -> None:
        network = Watched()
        network.refused = {V1: [UNKNOWN], V2: [UNKNOWN]}
        network.link(SERVER)
        async with hoststack.open_stack(link=network.link(CLIENT), engine=engine) as stack:
            began = trio.current_time()
            with pytest.raises(ConnectError, match="version"):
                async with stack.connect(URI, tls=TRUSTING, alpn=["test"]):
                    pass
            assert trio.current_time() - began < 1

    run(main)


@pytest.mark.parametrize("engine", ENGINES)
def test_version_negotiation_that_names_the_clients_own_version_is_ignored(engine: Any) -> None:
    async def main() -> None:
        network = Watched()
        network.refused = {V1: [V2, V1]}
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT), engine=engine) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            trio.open_nursery() as nursery,
        ):

            async def relent() -> None:
                await trio.sleep(0.1)
                network.refused = {}

            nursery.start_soon(relent)
            async with client.connect(URI, tls=TRUSTING, alpn=["test"]), await listener.accept():
                assert network.versions == {SERVER: V1, CLIENT: V1}

    run(main)


@pytest.mark.parametrize("cipher", ["aes-128-gcm", "chacha20-poly1305"])
@pytest.mark.parametrize("engine", ENGINES)
def test_ciphers_after_a_client_began_again(engine: Any, cipher: Any) -> None:
    async def main() -> None:
        network = Watched()
        network.refused = {V2: [V1]}
        config = QuicConfig(version=2)
        tls = TlsConfig(verify=False, ciphers=(cipher,))
        async with (
            hoststack.open_stack(link=network.link(CLIENT), engine=engine, config=config) as stack,
            trio.open_nursery() as nursery,
        ):
            peer = StockPeer(network.link(SERVER), PORT)
            peer.accept(server_configuration(supported_versions=[V1]))
            nursery.start_soon(peer.run)
            async with stack.connect(URI, tls=tls, alpn=["test"]) as connection:
                assert connection.cipher == cipher
                stream = await connection.open_stream()
                await stream.send_all(bytes(20_000))
                await stream.send_eof()
                assert await peer.stream_ends(stream.stream_id) == bytes(20_000)
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("first", range(0xC0, 0x100, 0x10))
@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_version_is_answered_whatever_its_types_are(engine: Any, first: int) -> None:
    """RFC 8999: nothing is known of a version's packets but the connection IDs."""

    async def main() -> None:
        network = Watched()
        client = network.link(CLIENT)
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=engine) as stack,
            await stack.listen(URI, tls=TLS, alpn=["test"]),
        ):
            port = client.open_port(Endpoint("0.0.0.0", 0)).port
            path = await client.connect_path(port, Endpoint(SERVER, PORT))
            ids = bytes((8,)) + b"original" + bytes((5,)) + b"other"
            client.send([(bytes((first,)) + UNKNOWN.to_bytes(4, "big") + ids + bytes(1200), path)])
            await trio.sleep(1)
            ((answer, _, _),) = client.receive()
            assert answer[1:5] == bytes(4)
            assert answer[5:20] == bytes((5,)) + b"other" + bytes((8,)) + b"original"
            assert stack.counters().dropped == {"unknown_version": 1}

    run(main)


# --- tickets and tokens (RFC 9369 section 5) ---


@pytest.mark.parametrize("client", ENGINES)
@pytest.mark.parametrize("server", ENGINES)
def test_what_was_learned_with_one_version_is_not_used_with_another(
    server: Any, client: Any
) -> None:
    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        # aioquic gives tickets only where it takes early data.
        config = QuicConfig(early_data=True)
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=server, config=config) as stack,
            hoststack.open_stack(link=network.link(CLIENT), engine=client) as connecting,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):
            resumed = []
            for version in (1, 2, 1, 2):
                chosen = QuicConfig(version=version)
                async with (
                    connecting.connect(URI, tls=tls, alpn=["test"], config=chosen) as connected,
                    await listener.accept() as accepted,
                ):
                    await exchange(accepted, connected, b"the ticket comes before it")
                    resumed.append(connected.is_resumed)
            assert resumed == [False, False, True, True]

    run(main)


@pytest.mark.parametrize("kind", ["tickets", "tokens"])
@pytest.mark.parametrize("server", ENGINES)
def test_a_server_takes_nothing_of_another_version(server: Any, kind: str) -> None:
    """A client that brings it all the same."""

    async def main() -> None:
        network, cache = MemoryNetwork(), SessionCache()
        tls = TlsConfig(verify=False, sessions=cache)
        config = QuicConfig(early_data=True, retry_above_half_open=0)
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=server, config=config) as stack,
            hoststack.open_stack(link=network.link(CLIENT), engine="native") as connecting,
            await stack.listen(URI, tls=TLS, alpn=["test"]) as listener,
        ):

            async def connect(version: int) -> bool:
                async with (
                    connecting.connect(
                        URI, tls=tls, alpn=["test"], config=QuicConfig(version=version)
                    ) as ours,
                    await listener.accept() as theirs,
                ):
                    await exchange(ours, theirs, b"so that the ticket comes")
                    return ours.is_resumed

            assert not await connect(1)
            # Moved to where the cache keeps what is for version 2.
            (of_1,) = cache._servers.values()
            assert not await connect(2)
            (of_2,) = [each for each in cache._servers.values() if each is not of_1]
            for name in ("tickets", "tokens"):
                getattr(of_2, name).clear()
            if kind == "tickets":
                of_2.tickets.extend(of_1.tickets)
            else:
                of_2.tokens.extend(of_1.tokens)
            before = stack.counters().retries
            assert not await connect(2)
            assert stack.counters().retries == before + 1

    run(main)
