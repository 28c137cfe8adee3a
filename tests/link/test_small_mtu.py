"""An interface or a route that carries less than QUIC needs is named at once."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio

import hoststack
import pyxdp
from hoststack import TlsConfig
from tests.support.netns import VethPair

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.parametrize("kind", ["af_xdp", "udp"]),
    pytest.mark.parametrize("family", ["ipv4", "ipv6"]),
]
TLS = TlsConfig.self_signed(["localhost"])


def named(family: str, host: str, scheme: str = "quic") -> str:
    return f"{scheme}://{host}:4433" if family == "ipv4" else f"{scheme}://[{host}]:4433"


def stack(kind: Any, veth_pair: VethPair) -> Any:
    works, why = pyxdp.available()
    if kind == "af_xdp" and not works:
        pytest.skip(why)
    return hoststack.open_stack(veth_pair.a.ifname if kind == "af_xdp" else None, link=kind)


def test_a_small_interface(veth_pair: VethPair, kind: str, family: str) -> None:
    # Below 1280 the kernel has no IPv6 on an interface, so there it is never too small.
    mtu_bytes = 1227 if family == "ipv4" else 1280
    veth_pair.a.ip("link", "set", veth_pair.a.ifname, "mtu", str(mtu_bytes))
    here, there = getattr(veth_pair.a, family), getattr(veth_pair.b, family)

    async def main() -> None:
        async with stack(kind, veth_pair) as opened:
            if family == "ipv6":
                async with await opened.listen(named(family, here), tls=TLS, alpn=["test"]):
                    return
            with trio.fail_after(5):
                with pytest.raises(OSError, match="1199 bytes, and QUIC needs 1200") as listening:
                    await opened.listen(named(family, here), tls=TLS, alpn=["test"])
                with pytest.raises(OSError, match="1199 bytes, and QUIC needs 1200") as connecting:
                    async with opened.connect(named(family, there), tls=TLS, alpn=["test"]):
                        pass
            assert listening.value.errno == connecting.value.errno == errno.EMSGSIZE
            # UDP and TCP go on as they did.
            async with await opened.listen(named(family, here, "udp")):
                pass

    with veth_pair.a.inside():
        trio.run(main)


def test_a_small_route(veth_pair: VethPair, kind: str, family: str) -> None:
    beyond, prefix, mtu_bytes = {
        "ipv4": ("192.0.2.9", "192.0.2.0/24", 1000),
        "ipv6": ("2001:db8::9", "2001:db8::/64", 1247),
    }[family]
    gateway = getattr(veth_pair.b, family)
    veth_pair.a.ip("route", "add", prefix, "via", gateway, "mtu", "lock", str(mtu_bytes))

    async def main() -> None:
        async with stack(kind, veth_pair) as opened:
            with trio.fail_after(5), pytest.raises(OSError, match="QUIC needs 1200") as connecting:
                async with opened.connect(named(family, beyond), tls=TLS, alpn=["test"]):
                    pass
            assert connecting.value.errno == errno.EMSGSIZE

    with veth_pair.a.inside():
        trio.run(main)
