"""Next hops against a real kernel: namespaces joined by a veth pair."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from pathlib import Path

import pytest
import trio

from hoststack.link.base import LinkError
from hoststack.link.kernel.next_hop import NextHops
from hoststack.link.kernel.rtnetlink import NUD_REACHABLE, NUD_STALE
from tests.support.netns import VethPair

pytestmark = pytest.mark.needs_root

#: Longer than anything here takes: the deadline of a test that would wait for ever.
_PATIENCE_S = 60


@asynccontextmanager
async def _running(pair: VethPair) -> AsyncIterator[NextHops]:
    """NextHops of the pair's first end, following the kernel."""
    with pair.a.inside():
        hops = NextHops(pair.a.ifname)
    try:
        with trio.fail_after(_PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hops.run)
                yield hops
                nursery.cancel_scope.cancel()
    finally:
        hops.close()


async def _until(is_so: Callable[[], bool]) -> None:
    """Wait for a notification after which `is_so`; the caller's deadline ends it."""
    # What is waited for shows in several places, which share no event.
    while not is_so():  # noqa: ASYNC110
        await trio.sleep(0.005)


def _make_neighbours_fast(pair: VethPair) -> None:
    """Let the kernel give up and confirm neighbours within fractions of its usual seconds."""
    with pair.a.inside():
        settings = Path("/proc/sys/net/ipv4/neigh") / pair.a.ifname
        (settings / "retrans_time_ms").write_text("50")
        (settings / "delay_first_probe_time").write_text("1")


def _errno_of(function: Callable[[], object]) -> int | None:
    with pytest.raises(LinkError) as caught:
        function()
    return caught.value.errno


def test_a_neighbour_is_looked_for_meanwhile(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            neighbour = hops.find(b.ipv4, a.ipv4).neighbour
            hops.look_for(b.ipv4, a.ipv4)
            await _until(lambda: neighbour.mac == b.mac)

    trio.run(main)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_missing_neighbour_is_probed(veth_pair: VethPair, family: str) -> None:
    a, b = veth_pair.a, veth_pair.b
    remote, source = getattr(b, family), getattr(a, family)

    async def main() -> None:
        async with _running(veth_pair) as hops:
            assert hops.find(remote).neighbour.mac == b""
            hop = await hops.resolve(remote)
            assert hop.neighbour.mac == b.mac
            assert hop.source == source
            assert hop.mtu_bytes == 1500

    trio.run(main)


def test_ipv6_link_local(veth_pair: VethPair) -> None:
    remote = veth_pair.b.link_local()

    async def main() -> None:
        async with _running(veth_pair) as hops:
            hop = await hops.resolve(remote)
            assert hop.neighbour.host == remote
            assert hop.neighbour.mac == veth_pair.b.mac

    trio.run(main)


@pytest.mark.parametrize(
    ("family", "destination", "remote"),
    [("ipv4", "10.99.0.0/16", "10.99.0.1"), ("ipv6", "fd99::/16", "fd99::1")],
    ids=["ipv4", "ipv6"],
)
def test_a_gateway_and_its_routes_mtu(
    veth_pair: VethPair, family: str, destination: str, remote: str
) -> None:
    gateway = getattr(veth_pair.b, family)
    veth_pair.a.ip("route", "add", destination, "via", gateway, "mtu", "1400")

    async def main() -> None:
        async with _running(veth_pair) as hops:
            hop = await hops.resolve(remote)
            assert hop.neighbour.host == gateway
            assert hop.neighbour.mac == veth_pair.b.mac
            assert hop.mtu_bytes == 1400

    trio.run(main)


def test_an_ipv4_route_through_an_ipv6_gateway(veth_pair: VethPair) -> None:
    veth_pair.a.ip("route", "add", "10.99.0.0/16", "via", "inet6", veth_pair.b.ipv6)

    async def main() -> None:
        async with _running(veth_pair) as hops:
            hop = await hops.resolve("10.99.0.1")
            assert hop.neighbour.host == veth_pair.b.ipv6
            assert hop.neighbour.mac == veth_pair.b.mac

    trio.run(main)


def test_a_multipath_route_gives_one_of_its_gateways(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    second = b.ipv4.rsplit(".", 1)[0] + ".77"
    b.ip("address", "add", f"{second}/24", "dev", b.ifname)
    a.ip("route", "add", "10.99.0.0/16", "nexthop", "via", b.ipv4, "nexthop", "via", second)

    async def main() -> None:
        async with _running(veth_pair) as hops:
            hop = await hops.resolve("10.99.0.1")
            assert hop.neighbour.host in (b.ipv4, second)
            assert hop.neighbour.mac == b.mac

    trio.run(main)


def test_the_longest_prefix_and_then_the_metric_win(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b
    network = b.ipv4.rsplit(".", 1)[0]
    for destination, host, metric in [
        ("10.99.0.0/16", 71, 5),
        ("10.99.1.0/24", 72, 50),
        ("10.99.1.0/24", 73, 20),
    ]:
        a.ip("route", "add", destination, "via", f"{network}.{host}", "metric", str(metric))

    async def main() -> None:
        async with _running(veth_pair) as hops:
            assert hops.find("10.99.1.1").neighbour.host == f"{network}.73"
            assert hops.find("10.99.2.1").neighbour.host == f"{network}.71"

    trio.run(main)


def test_an_unreachable_neighbour_is_told_of(veth_pair: VethPair) -> None:
    _make_neighbours_fast(veth_pair)
    missing = veth_pair.b.ipv4.rsplit(".", 1)[0] + ".200"

    async def main() -> None:
        async with _running(veth_pair) as hops:
            for _ in range(2):  # the second finds the entry in FAILED, and tries again
                with pytest.raises(LinkError, match=r"does not answer on .*: check") as caught:
                    await hops.resolve(missing)
                assert caught.value.errno == errno.EHOSTUNREACH

    trio.run(main)


def test_an_unreachable_gateway_is_named(veth_pair: VethPair) -> None:
    _make_neighbours_fast(veth_pair)
    missing = veth_pair.b.ipv4.rsplit(".", 1)[0] + ".200"
    veth_pair.a.ip("route", "add", "10.99.0.0/16", "via", missing)

    async def main() -> None:
        async with _running(veth_pair) as hops:
            with pytest.raises(LinkError, match=rf"{missing}, the gateway to 10\.99\.0\.1,"):
                await hops.resolve("10.99.0.1")

    trio.run(main)


def test_a_changed_address_is_followed(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            neighbour = (await hops.resolve(b.ipv4)).neighbour
            before = hops.generation
            a.ip("neighbour", "replace", b.ipv4, "lladdr", "02:00:00:00:00:99", "dev", a.ifname)
            await _until(lambda: neighbour.mac == bytes.fromhex("020000000099"))
            assert hops.generation > before

    trio.run(main)


def test_a_removed_neighbour_in_use_is_found_again(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            neighbour = (await hops.resolve(b.ipv4)).neighbour
            b.ip("link", "set", b.ifname, "address", "02:00:00:00:00:99")
            a.ip("neighbour", "flush", "dev", a.ifname)
            await _until(lambda: neighbour.mac == b"")
            neighbour.is_used = True
            await _until(lambda: neighbour.mac == bytes.fromhex("020000000099"))

    trio.run(main)


def test_a_stale_neighbour_is_confirmed_only_while_in_use(veth_pair: VethPair) -> None:
    _make_neighbours_fast(veth_pair)
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            neighbour = (await hops.resolve(b.ipv4)).neighbour
            neighbour.is_used = False
            a.ip("neighbour", "change", b.ipv4, "dev", a.ifname, "nud", "stale")
            await _until(lambda: neighbour.state == NUD_STALE)
            assert neighbour.mac == b.mac  # usable all the while
            neighbour.is_used = True
            await _until(lambda: neighbour.state == NUD_REACHABLE)
            assert neighbour.mac == b.mac

    trio.run(main)


def test_routes_and_addresses_are_followed(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            assert _errno_of(lambda: hops.find("10.99.0.1")) == errno.ENETUNREACH
            before = hops.generation
            a.ip("route", "add", "10.99.0.0/16", "via", b.ipv4)
            await _until(lambda: hops.generation > before)
            assert hops.find("10.99.0.1").neighbour.host == b.ipv4

            before = hops.generation
            a.ip("address", "add", "10.99.0.1/32", "dev", a.ifname)
            await _until(lambda: hops.generation > before)
            own = {str(each.address): each for each in hops.own_addresses()}
            assert own["10.99.0.1"][1:] == (32, False)
            assert own[str(ip_interface(f"{a.ipv4}/24").network.broadcast_address)].is_broadcast
            assert a.ipv6 in own
            assert _errno_of(lambda: hops.find("10.99.0.1")) == errno.EADDRNOTAVAIL

    trio.run(main)


def test_mtu_and_link_state_are_followed(veth_pair: VethPair) -> None:
    a, b = veth_pair.a, veth_pair.b

    async def main() -> None:
        async with _running(veth_pair) as hops:
            a.ip("link", "set", a.ifname, "mtu", "1300")
            await _until(lambda: hops.interface.mtu_bytes == 1300)
            assert hops.find(b.ipv4).mtu_bytes == 1300
            a.ip("link", "set", a.ifname, "down")
            await _until(lambda: not hops.interface.is_up)
            assert _errno_of(lambda: hops.find(b.ipv4)) == errno.ENETDOWN
            a.ip("link", "set", a.ifname, "up")
            await _until(lambda: hops.interface.is_up)
            await hops.resolve(b.ipv4)
            a.ip("link", "delete", a.ifname)
            await _until(lambda: not hops.interface.is_up)
            with pytest.raises(LinkError, match="is gone"):
                hops.find(b.ipv4)

    trio.run(main)


def test_addresses_that_cannot_be_sent_to(veth_pair: VethPair) -> None:
    a = veth_pair.a
    with a.inside():
        hops = NextHops(a.ifname)
    try:
        with pytest.raises(LinkError, match=r'this machine itself.*use link "udp"') as caught:
            hops.find(a.ipv4)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        broadcast = a.ipv4.rsplit(".", 1)[0] + ".255"
        for host in (broadcast, "ff02::1"):
            with pytest.raises(LinkError, match="not a unicast address"):
                hops.find(host)
        a.ip("link", "add", "elsewhere", "type", "veth", "peer", "name", "beyond")
        a.ip("link", "set", "elsewhere", "up")
        a.ip("route", "add", "10.98.0.0/16", "dev", "elsewhere")
        with pytest.raises(LinkError, match=f"does not go out through {a.ifname}"):
            hops.find("10.98.0.1")
    finally:
        hops.close()


def test_an_interface_that_is_not_there(veth_pair: VethPair) -> None:
    with veth_pair.a.inside(), pytest.raises(LinkError, match="no interface 'nope'") as caught:
        NextHops("nope")
    assert caught.value.errno == errno.ENODEV
    with veth_pair.a.inside(), pytest.raises(LinkError, match="no Ethernet address"):
        NextHops("lo")


def test_lost_notifications_make_it_ask_anew(veth_pair: VethPair, tmp_path: Path) -> None:
    a, b = veth_pair.a, veth_pair.b
    network = b.ipv4.rsplit(".", 1)[0]
    batch = tmp_path / "batch"
    # Some 4000 notifications are more than the socket's buffer holds; the last ones get lost.
    batch.write_text(
        "".join(
            f"neighbour replace {network}.{host} lladdr 02:00:00:00:00:{octet:02x} dev {a.ifname}\n"
            for octet in (1, 2)
            for host in range(3, 250)
        )
        * 8
        + f"neighbour replace {b.ipv4} lladdr 02:00:00:00:00:99 dev {a.ifname}\n"
        + f"link set {a.ifname} mtu 1300\n"
    )

    async def main() -> None:
        with a.inside():
            hops = NextHops(a.ifname)
        try:
            neighbour = hops.find(b.ipv4).neighbour
            a.ip("-batch", str(batch))
            with trio.fail_after(_PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hops.run)
                    await _until(lambda: neighbour.mac == bytes.fromhex("020000000099"))
                    await _until(lambda: hops.interface.mtu_bytes == 1300)
                    nursery.cancel_scope.cancel()
        finally:
            hops.close()

    trio.run(main)
