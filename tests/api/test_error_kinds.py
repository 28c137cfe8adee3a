"""What EndpointError says about why a connection or a listener could not be opened."""

from __future__ import annotations

import hoststack
from hoststack import ConnectError, EndpointError, ListenError, QuicConfig, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.api.conftest import CLIENT, SERVER, URI, run


async def _kind_of_connect(
    client: Stack, uri: str = URI, *, verify: bool = False, alpn: str = "test"
) -> str:
    try:
        async with client.connect(uri, tls=TlsConfig(verify=verify), alpn=[alpn]):
            return "connected"
    except ConnectError as error:
        return error.kind


async def _kind_of_listen(server: Stack, uri: str, tls: TlsConfig) -> str:
    try:
        async with await server.listen(uri, tls=tls, alpn=["test"]):
            return "listening"
    except ListenError as error:
        return error.kind


def test_one_base() -> None:
    assert issubclass(ConnectError, EndpointError)
    assert issubclass(ListenError, EndpointError)


def test_kinds(server_tls: TlsConfig) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(
                link=network.link(CLIENT), config=QuicConfig(handshake_timeout_s=1)
            ) as client,
            hoststack.open_stack(link=network.link(SERVER)) as server,
        ):
            async with await server.listen(URI, tls=server_tls, alpn=["test"]):
                assert await _kind_of_connect(client) == "connected"
                assert await _kind_of_connect(client, verify=True) == "tls"
                assert await _kind_of_connect(client, alpn="other") == "alpn"
                assert await _kind_of_connect(client, "quic://10.0.0.9:1") == "unreachable"
                assert await _kind_of_listen(server, URI, server_tls) == "in use"
            assert await _kind_of_listen(server, "quic://10.0.0.9:1", server_tls) == "address"
            assert await _kind_of_connect(client) == "timeout"
            server.rules.add(f"proto quic {SERVER}/32 0 0.0.0.0/0 0 action deny")
            assert await _kind_of_connect(server, "quic://10.0.0.2:1") == "forbidden"
        assert await _kind_of_connect(client) == "ended"

    run(main)
