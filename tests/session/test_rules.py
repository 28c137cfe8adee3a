"""Session rules: how they are written, which one decides, and that they are heeded."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import hoststack
from hoststack import RuleError, Stack, TlsConfig
from hoststack.link.memory import MemoryNetwork
from hoststack.session.rules import Rules, parse_rule

TLS = TlsConfig.self_signed(["localhost"])
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
ANY = "0.0.0.0/0 0 0.0.0.0/0 0"

HERE, THERE = ("10.0.0.1", 4433), ("10.0.0.2", 50000)


def denies(rules: Rules, here: tuple[str, int] = HERE, there: tuple[str, int] = THERE) -> bool:
    return rules.denial("global", "default", here, there) is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "proto quic 10.0.0.0/24 0 0.0.0.0/0 443 action allow",
            "appns default scope all proto quic 10.0.0.0/24 0 0.0.0.0/0 443 action allow",
        ),
        (
            "appns blue scope local proto quic ::/0 1 fd00::/16 2 action drop tag here",
            "appns blue scope local proto quic ::/0 1 fd00::/16 2 action deny tag here",
        ),
        (
            "action deny tag x 10.0.0.1/32 65535 10.0.0.2 0 proto quic",
            "appns default scope all proto quic 10.0.0.1/32 65535 10.0.0.2/32 0 action deny tag x",
        ),
    ],
)
def test_good(text: str, shown: str) -> None:
    rules = Rules()
    rules.add(text)
    assert rules.lines() == [shown]
    assert parse_rule(shown) == parse_rule(text)


def test_a_rule_is_about_one_transport() -> None:
    rules = Rules()
    rules.add("proto tcp 0.0.0.0/0 0 0.0.0.0/0 0 action deny")
    assert not denies(rules)
    for transport, is_denied in (("quic", False), ("tcp", True), ("udp", False)):
        denial = rules.denial("global", "default", HERE, THERE, transport)
        assert (denial is not None) == is_denied


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no two prefixes"),
        ("proto quic 10.0.0.0/24 0 0.0.0.0/0 action allow", "no two prefixes"),
        (f"proto quic {ANY} 1 action allow", "no two prefixes"),
        (f"{ANY} action allow", "names no transport"),
        (f"proto sctp {ANY} action allow", "proto takes quic.tcp.udp, once, not 'sctp'"),
        (f"proto quic {ANY}", "no action"),
        (f"proto quic {ANY} action perhaps", "action takes"),
        (f"proto quic {ANY} action allow action deny", "once"),
        (f"proto quic {ANY} action", "action takes.*None"),
        (f"proto quic {ANY} scope far action allow", "local|global|all"),
        ("proto quic 10.0.0.1/24 0 0.0.0.0/0 0 action allow", "has host bits set"),
        ("proto quic 10.0.0/24 0 0.0.0.0/0 0 action allow", "no prefix"),
        ("proto quic 0.0.0.0/0 0 ::/0 0 action allow", "one IP version"),
        ("proto quic 0.0.0.0/0 65536 0.0.0.0/0 0 action allow", "no port"),
        ("proto quic 0.0.0.0/0 -1 0.0.0.0/0 0 action allow", "no port"),
        ("proto quic 0.0.0.0/0 \u0661 0.0.0.0/0 0 action allow", "no port"),
        ("proto quic 0.0.0.0/0 " + "9" * 9999 + " 0.0.0.0/0 0 action allow", "no port"),
    ],
)
def test_bad(text: str, why: str) -> None:
    with pytest.raises(RuleError, match=why) as caught:
        Rules().add(text)
    assert "proto quic|tcp|udp LOCAL/LENGTH PORT" in str(caught.value)


WORDS = ["proto", "quic", "action", "allow", "deny", "tag", "appns", "scope", "0", "::/0", "x"]


@given(st.text() | st.lists(st.sampled_from([*WORDS, *ANY.split()])).map(" ".join))
def test_anything_is_a_rule_or_refused(text: str) -> None:
    try:
        rule = parse_rule(text)
    except RuleError:
        return
    assert parse_rule(str(rule)) == rule


def test_the_most_specific_rule_decides() -> None:
    rules = Rules()
    assert not denies(rules)
    rules.add(f"proto quic {ANY} action deny")
    assert denies(rules)
    for match, is_denied in [
        ("0.0.0.0/0 4433 0.0.0.0/0 0", False),
        ("0.0.0.0/0 0 0.0.0.0/0 50000", True),
        ("10.0.0.0/8 0 0.0.0.0/0 0", False),
        ("10.0.0.0/24 0 0.0.0.0/0 0", True),
        ("0.0.0.0/0 0 10.0.0.0/8 0", False),
        ("0.0.0.0/0 0 10.0.0.2/32 0", True),
        ("10.0.0.1/32 4433 10.0.0.2/32 50000", False),
    ]:
        rules.add(f"proto quic {match} action {'deny' if is_denied else 'allow'}")
        assert denies(rules) == is_denied, match
    # What is about others changes nothing.
    for match in (
        "10.0.0.3/32 4433 10.0.0.2/32 50000",
        "10.0.0.1/32 4434 10.0.0.2/32 50000",
        "10.0.0.1/32 4433 10.0.0.2/32 50001",
    ):
        rules.add(f"proto quic {match} action deny")
        assert not denies(rules), match
    assert rules.lines()[-1].endswith(f"{ANY} action deny")


def test_a_rule_is_of_its_namespace_and_scope() -> None:
    rules = Rules()
    rules.add(f"appns blue scope local proto quic {ANY} action deny")
    assert rules.denial("local", "blue", HERE, THERE)
    assert not rules.denial("global", "blue", HERE, THERE)
    assert not rules.denial("local", "default", HERE, THERE)
    assert not rules.denial("local", "blue", ("fd00::1", 1), ("fd00::2", 2))
    # A rule for one scope goes before one for all.
    rules.add(f"appns blue proto quic {ANY} action allow")
    assert rules.denial("local", "blue", HERE, THERE)


def test_the_same_match_takes_the_place_and_is_deleted_whatever_its_action() -> None:
    rules = Rules()
    rules.add(f"proto quic {ANY} action deny tag one")
    rules.add(f"proto quic {ANY} action allow tag two")
    assert len(rules.lines()) == 1
    assert not denies(rules)
    with pytest.raises(RuleError, match="no such rule"):
        rules.delete(f"scope local proto quic {ANY}")
    rules.delete(f"proto quic {ANY}")
    assert rules.lines() == []


def play(script: Callable[[Stack, Stack], Awaitable[None]]) -> None:
    """Run `script` with the stacks of a server, which listens, and of a client."""

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER)) as server,
            hoststack.open_stack(link=network.link(CLIENT)) as client,
            await server.listen(URI, tls=TLS, alpn=["test"]),
        ):
            with trio.fail_after(600):
                await script(server, client)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.usefixtures("engine")
def test_a_connect_that_is_forbidden_fails_at_once() -> None:
    async def script(server: Stack, client: Stack) -> None:
        client.rules.add(f"proto quic 0.0.0.0/0 0 {SERVER}/32 4433 action deny tag no")
        before = client.counters().tx_datagrams
        with pytest.raises(hoststack.ConnectError, match=r"a session rule forbids it.*tag no") as e:
            async with client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]):
                pytest.fail("a rule forbids it")
        assert e.value.errno == errno.EACCES
        assert client.counters().tx_datagrams == before
        client.rules.delete(f"proto quic 0.0.0.0/0 0 {SERVER}/32 4433")
        async with client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]):
            pass

    play(script)


@pytest.mark.usefixtures("engine")
def test_a_peer_that_is_forbidden_is_refused() -> None:
    async def script(server: Stack, client: Stack) -> None:
        server.rules.add(f"proto quic {SERVER}/32 4433 {CLIENT}/32 0 action deny")
        async with client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
            info = await connection.wait_closed()
        assert (info.code, info.by_peer, info.reason) == (2, True, "refused by a session rule")
        # Nothing stays of it, and the listener takes others.
        layer = server._worker.layer
        assert len(layer.sessions) == 1
        server.rules.add(f"proto quic {SERVER}/32 4433 {CLIENT}/32 0 action allow")
        async with client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]) as connection:
            assert (await connection.open_stream()).stream_id == 0

    play(script)


@pytest.mark.parametrize(
    "rule",
    [
        # Of the connect, and of the accept: the server's end is the remote one, then the local.
        f"scope local proto quic 0.0.0.0/0 0 {SERVER}/32 4433 action deny",
        f"proto quic {SERVER}/32 4433 {SERVER}/32 0 action deny",
    ],
)
def test_rules_of_local_scope_forbid_cut_through(rule: str) -> None:
    async def script(server: Stack, _: Stack) -> None:
        async with (
            server.application("a", scopes=["local"]) as listening,
            server.application("b", scopes=["local"]) as connecting,
            await listening.listen(URI, tls=TLS, alpn=["test"]),
        ):
            server.rules.add(rule)
            with pytest.raises(hoststack.ConnectError, match="a session rule forbids it"):
                async with connecting.connect(URI, alpn=["test"]):
                    pytest.fail("a rule forbids it")
            server.rules.delete(rule)
            async with connecting.connect(URI, alpn=["test"]):
                pass

    play(script)
