"""QUIC's application protocol has to be named."""

from __future__ import annotations

import pytest
import trio

import hoststack
from hoststack import TlsConfig
from hoststack.link.memory import MemoryNetwork
from tests.api.conftest import SERVER, URI, run

UNNAMED = "QUIC needs an application protocol"


def test_what_is_not_named_raises_at_once(server_tls: TlsConfig, client_tls: TlsConfig) -> None:
    async def handler(_: hoststack.Connection) -> None:
        pytest.fail("nothing listens")

    async def main() -> None:
        began = trio.current_time()
        async with hoststack.open_stack(link=MemoryNetwork().link(SERVER)) as stack:
            with pytest.raises(ValueError, match=UNNAMED):
                await stack.listen(URI, tls=server_tls)
            with pytest.raises(ValueError, match=UNNAMED):
                await stack.serve(URI, handler, tls=server_tls)
            with pytest.raises(ValueError, match=UNNAMED):
                await stack.open_connection(URI, tls=client_tls)
            with pytest.raises(ValueError, match=UNNAMED):
                async with stack.connect(URI, tls=client_tls):
                    pytest.fail("nothing listens")
            assert trio.current_time() == began

    run(main)


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_protocols_without_tls_accept_none(scheme: str) -> None:
    async def main() -> None:
        async with hoststack.open_stack(link="udp") as stack:
            uri = f"{scheme}://127.0.0.1:0"
            with pytest.raises(OSError, match=f"{scheme} has no TLS here"):
                await stack.listen(uri, alpn=["test"])
            with pytest.raises(OSError, match=f"{scheme} has no TLS here"):
                await stack.open_connection(f"{scheme}://127.0.0.1:1", alpn=["test"])

    trio.run(main)
