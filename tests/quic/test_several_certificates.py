"""Several certificates on one listener: by the name that a client asks for, and its signatures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import hoststack
from hoststack import (
    Certificate,
    ConnectError,
    Connection,
    EmbeddedStack,
    Listener,
    ListenError,
    Stack,
    TlsConfig,
    TlsConfigError,
)
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.certificate import presented
from hoststack.worker import engines
from tests.support.attached import attached
from tests.support.certificates import self_signed

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
URI = f"quic://{SERVER}:4433"
ENGINES = engines.available_engines()


def made(*names: str, key: Any = None) -> Certificate:
    return Certificate(*self_signed(key or ec.generate_private_key(ec.SECP256R1()), names=names))


DEFAULT = made("a.example", "b.example")
EXACT = made("www.c.example")
WILD = made("*.c.example", "*.D.example", "c.example")
BY_ADDRESS = made(SERVER)
NAMELESS = made()
SEVERAL = TlsConfig(certificates=[DEFAULT, EXACT, WILD, BY_ADDRESS, NAMELESS])


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def listening(
    engine: Any, is_attached: bool = False
) -> AsyncIterator[tuple[Listener, EmbeddedStack]]:
    """A server that listens, perhaps as if in another process, and a client."""
    network = MemoryNetwork()
    async with (
        hoststack.open_stack(link=network.link(SERVER), engine=engine) as own,
        hoststack.open_stack(link=network.link(CLIENT)) as client,
        attached([own]) as elsewhere,
        await (elsewhere if is_attached else own).listen(
            URI, tls=SEVERAL, alpn=["test"]
        ) as listener,
    ):
        yield listener, client


@asynccontextmanager
async def between(
    client: Stack, listener: Listener, tls: TlsConfig
) -> AsyncIterator[tuple[Connection, Connection]]:
    async with (
        client.connect(URI, tls=tls, alpn=["test"]) as connection,
        await listener.accept() as accepted,
    ):
        yield connection, accepted


def serial(certificate: x509.Certificate | None) -> int | None:
    return None if certificate is None else certificate.serial_number


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_attached", [False, True], ids=["embedded", "attached"])
def test_a_client_gets_the_certificate_for_the_name_that_it_asks_for(
    engine: str, is_attached: bool
) -> None:
    async def main() -> None:
        async with listening(engine, is_attached) as (listener, client):
            for name, expected in (
                ("a.example", DEFAULT),
                ("B.Example", DEFAULT),
                ("www.c.example", EXACT),
                ("WWW.C.example", EXACT),
                ("mail.c.example", WILD),
                ("c.example", WILD),
                ("x.d.example", WILD),
                ("d.example", DEFAULT),
                ("x.www.c.example", DEFAULT),
                ("unknown.example", DEFAULT),
                ("localhost", DEFAULT),
                (SERVER, BY_ADDRESS),  # asks for no name
            ):
                tls = TlsConfig(server_name=name, verify=False)
                async with between(client, listener, tls) as (connection, accepted):
                    leaf = serial(expected.chain[0])
                    assert serial(connection.peer_certificate) == leaf, name
                    assert serial(accepted.own_certificate) == leaf, name
                    asked = None if name == SERVER else name.lower()
                    assert accepted.server_name == asked

    run(main)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_certificate_that_is_chosen_by_name_is_valid_for_it(engine: str) -> None:
    async def main() -> None:
        async with listening(engine) as (listener, client):
            for name, certificate in (("www.c.example", EXACT), ("x.c.example", WILD)):
                tls = TlsConfig(server_name=name, ca=certificate.certificate)
                async with between(client, listener, tls):
                    pass
            unknown = TlsConfig(server_name="e.example", ca=DEFAULT.certificate)
            with pytest.raises(ConnectError):
                async with client.connect(URI, tls=unknown, alpn=["test"]):
                    pass

    run(main)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", ["RSA", "ECDSA"])
def test_of_certificates_for_one_name_the_first_that_the_client_accepts_is_used(
    engine: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of aioquic accepts what the test says."""
    from aioquic import tls as aioquic_tls

    kinds = {
        "RSA": made("x.example", key=rsa.generate_private_key(65537, 2048)),
        "ECDSA": made("x.example"),
    }
    algorithms = {
        "RSA": [aioquic_tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256],
        "ECDSA": [aioquic_tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256],
    }
    twins = [kinds[first], *(each for kind, each in kinds.items() if kind != first)]

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(SERVER), engine=engine) as server,  # type: ignore[arg-type]
            hoststack.open_stack(link=network.link(CLIENT), engine="aioquic") as client,
        ):
            for certificates in (twins, [DEFAULT, *twins]):
                tls = TlsConfig(certificates=certificates)
                async with await server.listen(URI, tls=tls, alpn=["test"]) as listener:
                    for accepted, expected in (
                        (["RSA"], "RSA"),
                        (["ECDSA"], "ECDSA"),
                        (["RSA", "ECDSA"], first),
                        (["ECDSA", "RSA"], first),
                    ):
                        offered = [each for kind in accepted for each in algorithms[kind]]
                        init = aioquic_tls.Context.__init__

                        def limited(self: Any, *args: Any, **options: Any) -> None:
                            init(self, *args, **options)  # noqa: B023
                            if self._is_client:
                                self._signature_algorithms = offered  # noqa: B023

                        with monkeypatch.context() as patch:
                            patch.setattr(aioquic_tls.Context, "__init__", limited)
                            asking = TlsConfig(server_name="x.example", verify=False)
                            async with between(client, listener, asking) as (connection, _):
                                leaf = kinds[expected].chain[0]
                                assert serial(connection.peer_certificate) == serial(leaf)

    run(main)


def test_more_certificates_than_a_message_takes_are_refused_in_a_line() -> None:
    async def main() -> None:
        many = TlsConfig(certificates=[DEFAULT] * 100)
        async with listening("aioquic", True) as (listener, client):
            with pytest.raises(ListenError, match="64 KiB") as refused:
                await listener.replace_tls(many)
            assert refused.value.kind == "limit"
            tls = TlsConfig(verify=False, ca=DEFAULT.chain_pem() * 200)
            async with attached([client]) as elsewhere:
                with pytest.raises(ConnectError, match="64 KiB"):
                    await elsewhere.open_connection(URI, tls=tls, alpn=["test"])
            async with between(client, listener, TlsConfig(verify=False)):
                pass

    run(main)


def test_the_first_of_two_certificates_for_a_name_counts_where_their_names_differ() -> None:
    one, two = made("a.example", "b.example"), made("b.example", "*.example")
    table = presented([NAMELESS, one, two])
    assert table.group_for("b.example") == (one,)
    assert table.group_for("c.example") == (two,)
    assert table.group_for("*.example") == (two,)
    assert table.group_for(None) == table.group_for("") == table.group_for(".") == (NAMELESS,)


def test_a_common_name_is_no_name() -> None:
    """tests/support/certificates.py gives all of them the common name localhost."""
    table = presented([DEFAULT, NAMELESS])
    assert table.group_for("localhost") == (DEFAULT,)
    assert not NAMELESS.names


def test_what_is_no_certificate_is_refused() -> None:
    several: Any = ["cert.pem"]
    with pytest.raises(TlsConfigError, match="Certificate"):
        TlsConfig(certificates=several)
    with pytest.raises(TlsConfigError, match="not match"):
        Certificate(DEFAULT.certificate, EXACT.key)
    with pytest.raises(TlsConfigError, match="no-such-file"):
        Certificate("no-such-file", "no-such-key")


def test_keys_are_not_shown() -> None:
    assert b"PRIVATE" in bytes(DEFAULT.key)  # type: ignore[arg-type]
    assert "PRIVATE" not in repr(DEFAULT) + repr(TlsConfig(DEFAULT.certificate, DEFAULT.key))


def test_a_config_may_have_a_first_certificate_and_further_ones() -> None:
    tls = TlsConfig(certificate=DEFAULT.certificate, key=DEFAULT.key, certificates=[EXACT])
    assert tls.own == (DEFAULT, EXACT)
    assert tls.chain == DEFAULT.chain
    assert tls == TlsConfig(DEFAULT.certificate, DEFAULT.key, certificates=(EXACT,))
    assert hash(tls) == hash(TlsConfig(DEFAULT.certificate, DEFAULT.key, certificates=(EXACT,)))
