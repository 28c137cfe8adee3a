"""Keys are updated long before AES-GCM's limit."""

from __future__ import annotations

import gc

import pytest
import trio
import trio.testing

import hoststack
from hoststack import TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.quic import aioquic_connection
from hoststack.quic.aioquic_connection import HostConnection


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_long_transfer_goes_through_many_keys(
    monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr(aioquic_connection, "PACKETS_PER_KEY", 400)
    data = bytes(range(256)) * 16_000
    uri = "quic://10.0.0.1:4433"
    key_updates = 0

    async def main() -> None:
        nonlocal key_updates
        network = MemoryNetwork(seed=5, loss=loss, delay_s=0.005)
        tls = TlsConfig.self_signed(["localhost"])
        async with (
            hoststack.open_stack(link=network.link("10.0.0.1")) as server,
            hoststack.open_stack(link=network.link("10.0.0.2")) as client,
            await server.listen(uri, tls=tls) as listener,
            client.connect(uri, tls=TlsConfig(verify=False)) as connected,
            await listener.accept() as accepted,
            trio.open_nursery() as nursery,
        ):
            stream = await connected.open_stream()

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            async for theirs in accepted.streams():
                assert b"".join([chunk async for chunk in theirs]) == data
                break
            connections = [c for c in gc.get_objects() if isinstance(c, HostConnection)]
            key_updates = max(c.key_update_at for c in connections) // 400 - 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert key_updates >= 5
