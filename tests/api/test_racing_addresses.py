"""Names with several addresses: connections to them race (RFC 8305). No network is asked."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import trio

import hoststack
from hoststack import ConnectError, ListenError, TlsConfig
from hoststack.api.resolving import in_order
from tests.api.conftest import SERVER, MakePair, Pair, Transport, run

#: Nobody listens there.
NOBODY = "10.0.0.99"
#: The server's, too.
PORT = 4433


class Resolver(trio.abc.HostnameResolver):
    """Knows what a test says."""

    def __init__(self, answer: Sequence[str] | Exception) -> None:
        self._answer = answer

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        await trio.sleep(1)
        if isinstance(self._answer, Exception):
            raise self._answer
        return [entry(each) for each in self._answer]

    async def getnameinfo(self, *_: Any) -> tuple[str, str]:
        raise NotImplementedError


def entry(host: str, scope: int = 0) -> tuple[Any, ...]:
    """As getaddrinfo(3) has it."""
    kind = socket.SOCK_DGRAM
    if ":" in host:
        return (socket.AF_INET6, kind, 17, "", (host, 0, 0, scope))
    return (socket.AF_INET, kind, 17, "", (host, 0))


def resolve_to(*answer: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answer))


async def connect(pair: Pair, port: int = PORT) -> tuple[hoststack.CloseInfo | None, Any, float]:
    """Whom a connect reaches, and how long it takes, in seconds."""
    start = trio.current_time()
    uri = f"quic://several.example:{port}"
    async with pair.client.connect(uri, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
        # The resolver takes one of them.
        return connection.close_info, connection.remote, trio.current_time() - start - 1


@pytest.mark.parametrize("before", [1, 3])
def test_an_address_where_nobody_is_costs_little(make_pair: MakePair, before: int) -> None:
    async def main() -> None:
        dead = [f"10.0.0.{99 - number}" for number in range(before)]
        resolve_to(*dead, SERVER)
        async with make_pair() as pair:
            for host in dead:
                pair.network.link(host)
            closed, remote, seconds = await connect(pair)
            assert closed is None
            assert remote == (SERVER, PORT)
            assert 0.25 * before <= seconds < 0.25 * before + 0.1

    run(main)


def test_the_first_address_is_taken_while_it_answers(make_pair: MakePair) -> None:
    async def main() -> None:
        resolve_to(SERVER, NOBODY)
        async with make_pair() as pair:
            _, remote, seconds = await connect(pair)
            assert remote == (SERVER, PORT)
            assert seconds < 0.25

    run(main)


def test_losers_are_closed(make_pair: MakePair, transport: Transport) -> None:
    """All of them answer, late: the first one wins, and nothing stays of the others."""
    if transport == "cut-through":
        pytest.skip("there is no distance")

    async def main() -> None:
        async with make_pair(delay_s=0.2) as pair:
            resolve_to(SERVER, "10.0.0.3", NOBODY)
            tls = TlsConfig.self_signed(["localhost"])
            async with (
                hoststack.open_stack(link=pair.network.link("10.0.0.3")) as other,
                await other.listen(f"quic://10.0.0.3:{PORT}", tls=tls, alpn=["test"]) as listener,
                pair.client.connect(
                    f"quic://several.example:{PORT}", tls=TlsConfig(verify=False), alpn=["test"]
                ) as connection,
            ):
                assert connection.remote == (SERVER, PORT)
                with trio.move_on_after(5):
                    loser = await listener.accept()
                    assert (await loser.wait_closed()).by_peer
                    await trio.sleep_forever()
                assert not other._worker.layer.connections()

    run(main)


def test_all_reasons_are_told(make_pair: MakePair) -> None:
    async def main() -> None:
        resolve_to("10.0.0.98", NOBODY)
        async with make_pair() as pair:
            with pytest.raises(ConnectError) as caught:
                await connect(pair)
            assert caught.value.errno in (errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH)
            text = str(caught.value)
            assert text.count("several.example") == 1
            assert "10.0.0.98" in text
            assert NOBODY in text

    run(main)


def test_a_race_that_is_cancelled_leaves_nothing() -> None:
    from hoststack.link.memory import MemoryNetwork

    async def main() -> None:
        network, silent = MemoryNetwork(), (NOBODY, "10.0.0.98", "10.0.0.97")
        links = [network.link(host) for host in silent]
        assert len(links) == len(silent)
        resolve_to(*silent)
        async with hoststack.open_stack(link=network.link("10.0.0.2")) as stack:
            for seconds in (0.5, 1.1, 1.3, 1.6, 4):
                with trio.move_on_after(seconds) as scope:
                    async with stack.connect(f"quic://several.example:{PORT}", alpn=["test"]):
                        pytest.fail("nobody is there")
                assert scope.cancelled_caught
                await trio.sleep(5)  # the clock jumps; in less than the handshake's time-out
                assert not stack._worker.layer.connections()

    run(main)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not known"),
        (UnicodeError("label too long"), "label too long"),
        ([], "found no IP address"),
    ],
)
def test_a_name_without_an_address(
    make_pair: MakePair, answer: Exception | list[str], said: str
) -> None:
    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver(answer))
        async with make_pair() as pair:
            with pytest.raises(ConnectError, match=said) as caught:
                await connect(pair)
            assert caught.value.kind == "address"
            with pytest.raises(ListenError, match="no address is known for"):
                await pair.server.listen(
                    "quic://several.example:1",
                    tls=TlsConfig.self_signed(["localhost"]),
                    alpn=["test"],
                )

    run(main)


def test_families_take_turns() -> None:
    found = [entry(each) for each in ("fd00::1", "fd00::2", "fd00::1", "10.0.0.1", "10.0.0.2")]
    found.append((socket.AF_UNIX, socket.SOCK_DGRAM, 0, "", "/no/address"))
    found.append(entry("fd00::3"))
    assert in_order(found) == ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2", "fd00::3"]
    assert in_order(found[3:]) == ["10.0.0.1", "fd00::3", "10.0.0.2"]


def test_link_local_addresses_keep_their_zone() -> None:
    index = socket.if_nametoindex("lo")
    assert in_order([entry("fe80::1", index)]) == ["fe80::1%lo"]
    assert in_order([entry("fe80::1%lo", index)]) == ["fe80::1%lo"]
    assert in_order([entry("fe80::1", 99999)]) == ["fe80::1%99999"]
