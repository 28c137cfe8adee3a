"""A daemon whose interface is deleted and made again: it says so, and serves on by itself."""

from __future__ import annotations

import pytest
import trio

import hoststack
from tests.daemon.conftest import PATIENCE_S
from tests.daemon.echoing import TRUSTING, ask
from tests.daemon.test_af_xdp import client_on, daemon_on, served
from tests.support.netns import bring_up, run, veth_pair

pytestmark = pytest.mark.needs_root


def test_an_interface_that_is_deleted_and_made_again() -> None:
    with veth_pair(queues=2) as pair, daemon_on(pair.a) as daemon:
        a, b = pair.a, pair.b

        async def main() -> None:
            async with served(daemon, a.ipv4) as server, client_on(b) as client:
                async with client.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection:
                    assert await ask(connection, b"before") == b"before"
                a.ip("link", "del", a.ifname)
                await trio.to_thread.run_sync(
                    daemon.wait_for, f"out of service: {a.ifname} is gone"
                )
                shown = await trio.to_thread.run_sync(daemon.ctl, "show xdp")
                assert f"out of service: {a.ifname} is gone" in shown
                shown = await trio.to_thread.run_sync(daemon.ctl, "show workers")
                assert shown.count(f"out of service: {a.ifname} is gone") == 2
                async with hoststack.attach(daemon.api) as stack:
                    with pytest.raises(OSError, match="is gone"):
                        async with stack.connect(
                            f"quic://{b.ipv4}:4433", tls=TRUSTING, alpn=["test"]
                        ):
                            pass
                count = ("numrxqueues", "2", "numtxqueues", "2")
                peer = ("peer", "name", b.ifname, "netns", b.namespace, *count)
                run("ip", "-n", a.namespace, "link", "add", a.ifname, *count, "type", "veth", *peer)
                for side in (a, b):
                    bring_up(side, 1500)
                await trio.to_thread.run_sync(daemon.wait_for, "back and in use again")
                for _ in range(8):
                    async with (
                        client_on(b) as another,
                        another.connect(server.uri, tls=TRUSTING, alpn=["test"]) as connection,
                    ):
                        assert await ask(connection, b"after") == b"after"
                assert len(set(server.workers)) == 2
            assert "died" not in daemon.log

        async def bounded() -> None:
            with trio.fail_after(PATIENCE_S):
                await main()

        trio.run(bounded)
