"""What TLS can't offer is said where it is configured, the same by both engines; and what a closed
listener held is given back."""

from __future__ import annotations

import ctypes
import errno
import gc
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

import hoststack
from hoststack import ConnectError, ListenError, Stack, TlsConfig
from hoststack.boundary import messages as m
from hoststack.boundary.scope import Scope
from hoststack.link.memory import MemoryNetwork
from hoststack.quic.native.contexts import NativeListener
from tests.support.certificates import self_signed

OURS, THEIRS = "10.0.0.1", "10.0.0.2"
URI = f"quic://{OURS}:4433"
NAMES = ("localhost", "a_b.example")
TLS = TlsConfig.self_signed([*NAMES, OURS])

pytestmark = pytest.mark.usefixtures("engine")


def with_two(main: Callable[[Stack, Stack], Awaitable[None]]) -> None:
    async def run() -> None:
        network = MemoryNetwork()
        async with (
            hoststack.open_stack(link=network.link(OURS)) as server,
            hoststack.open_stack(link=network.link(THEIRS)) as client,
        ):
            await main(server, client)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


BAD_PROTOCOLS: list[Sequence[str]] = [
    (),
    [""],
    ["a" * 256],
    [f"a{i}" for i in range(33)],
    ["a", "b", "a"],
    ["b\u00fc"],
    "h3",
]


@pytest.mark.parametrize("alpn", BAD_PROTOCOLS, ids=lambda alpn: f"{len(alpn)} {alpn[:1]}"[:12])
def test_protocols_that_cannot_be_offered(alpn: Sequence[str]) -> None:
    async def main(server: Stack, client: Stack) -> None:
        with pytest.raises(ValueError, match=r"application protocol|alpn") as of_listen:
            await server.listen(URI, tls=TLS, alpn=alpn)
        with pytest.raises(ValueError, match=r"application protocol|alpn") as of_connect:
            async with client.connect(URI, tls=TLS, alpn=alpn):
                pass
        for caught in (of_listen, of_connect):
            assert "\n" not in str(caught.value)

    with_two(main)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(
    "alpn", BAD_PROTOCOLS[:-1], ids=lambda alpn: f"{len(alpn)} {alpn[:1]}"[:12]
)
def test_messages_of_an_application_that_checks_nothing(alpn: Sequence[str], scope: Scope) -> None:
    # As one in another process may send them.
    names, here, bad_name = tuple(alpn), (OURS, 4433), "a" * 300
    trusting = TlsConfig(verify=False)

    async def main(server: Stack, _: Stack) -> None:
        assert isinstance(server, hoststack.EmbeddedStack)
        async with (
            server.application("one", scopes={scope}) as one,
            server.application("two", scopes={scope}) as two,
        ):
            call = two._router.call
            replies = [await call(lambda t: m.Listen(t, here, TLS, names, None))]
            async with await one.listen(URI, tls=TLS, alpn=["test"]):
                replies += [await call(lambda t: m.Connect(t, here, "x", trusting, names, None))]
                if scope == "global":
                    reply = await call(
                        lambda t: m.Connect(t, here, bad_name, trusting, ("x",), None)
                    )
                    assert isinstance(reply, m.Failed)
                    assert "server's name" in reply.text
        for reply in replies:
            assert isinstance(reply, m.Failed)
            assert reply.errno == errno.EINVAL
            assert "application protocol" in reply.text

    with_two(main)


@pytest.mark.parametrize("is_long", [True, False], ids=["long", "many"])
def test_protocols_at_the_limit(engine: str, *, is_long: bool) -> None:
    most, most_bytes = (8, 31) if engine == "native" else (32, 255)
    alpn = ["a" * most_bytes] if is_long else [f"a{i}" for i in range(most)]
    beyond = ["a" * (most_bytes + 1)] if is_long else [*alpn, "b"]

    async def main(server: Stack, client: Stack) -> None:
        async with (
            await server.listen(URI, tls=TLS, alpn=alpn) as listener,
            client.connect(URI, tls=TlsConfig(verify=False), alpn=alpn[-1:]) as there,
            await listener.accept() as here,
        ):
            assert here.alpn == there.alpn == alpn[-1]
            with pytest.raises(ValueError, match="application protocol"):
                await server.listen(URI, tls=TLS, alpn=beyond)
            with pytest.raises(ValueError, match="application protocol"):
                async with client.connect(URI, tls=TLS, alpn=beyond):
                    pass

    with_two(main)


def test_no_common_protocol() -> None:
    async def main(server: Stack, client: Stack) -> None:
        async with await server.listen(URI, tls=TLS, alpn=["a"]):
            with pytest.raises(ConnectError, match="ALPN"):
                async with client.connect(URI, tls=TlsConfig(verify=False), alpn=["b"]):
                    pass

    with_two(main)


@pytest.mark.parametrize("name", [*NAMES, "localhost.", "LOCALHOST", OURS])
def test_names_that_a_certificate_is_for(name: str) -> None:
    assert isinstance(TLS.certificate, bytes)
    trusting = TlsConfig(ca=TLS.certificate, server_name=name)

    async def main(server: Stack, client: Stack) -> None:
        async with (
            await server.listen(URI, tls=TLS, alpn=["test"]) as listener,
            client.connect(URI, tls=trusting, alpn=["test"]),
            await listener.accept(),
        ):
            pass

    with_two(main)


@pytest.mark.parametrize(
    "purpose",
    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    ids=["servers", "clients"],
)
def test_what_a_certificate_is_for(purpose: x509.ObjectIdentifier, engine: str) -> None:
    if engine == "aioquic":
        pytest.skip("aioquic does not look at extended key usage")
    certificate, key = self_signed(ec.generate_private_key(ec.SECP256R1()), purpose=purpose)
    serving = TlsConfig(certificate=certificate, key=key)
    trusting = TlsConfig(ca=certificate, server_name="localhost")

    async def main(server: Stack, client: Stack) -> None:
        async with await server.listen(URI, tls=serving, alpn=["test"]):
            if purpose is ExtendedKeyUsageOID.SERVER_AUTH:
                async with client.connect(URI, tls=trusting, alpn=["test"]):
                    return
            with pytest.raises(ConnectError, match="purpose"):
                async with client.connect(URI, tls=trusting, alpn=["test"]):
                    pass

    with_two(main)


@pytest.mark.parametrize("host", ["a" * 64, "a." * 150 + "example", "b\u00fccher.example"])
def test_a_host_that_is_no_name(host: str) -> None:
    async def main(_: Stack, client: Stack) -> None:
        with pytest.raises(ValueError, match="name") as caught:
            async with client.connect(f"quic://{host}:4433", alpn=["test"]):
                pass
        assert "\n" not in str(caught.value)

    with_two(main)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["p384", "ed25519", "rsa", "p521"],
)
def test_keys_that_serve(key: ec.EllipticCurvePrivateKey, engine: str) -> None:
    certificate, pem_key = self_signed(key)
    tls = TlsConfig(certificate=certificate, key=pem_key)

    async def main(server: Stack, client: Stack) -> None:
        if engine == "aioquic" and tls.private_key.__class__ is key.__class__ and is_p521(key):
            with pytest.raises(ListenError, match="P-521"):
                await server.listen(URI, tls=tls, alpn=["test"])
            with pytest.raises(ConnectError, match="P-521"):
                async with client.connect(URI, tls=tls, alpn=["test"]):
                    pass
            return
        async with (
            await server.listen(URI, tls=tls, alpn=["test"]) as listener,
            client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"]),
            await listener.accept(),
        ):
            pass

    with_two(main)


def is_p521(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP521R1)


# --- listeners that are closed -------------------------------------------------------------------


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    )


def allocated_bytes() -> int:
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    return int(mallinfo().uordblks)


def native_listeners() -> int:
    gc.collect()
    return sum(isinstance(found, NativeListener) for found in gc.get_objects())


def test_what_a_closed_listener_held_is_freed() -> None:
    async def main(server: Stack, _: Stack) -> None:
        async def listen_and_close(times: int) -> None:
            for _ in range(times):
                async with await server.listen(URI, tls=TLS, alpn=["test"]):
                    pass
            await trio.testing.wait_all_tasks_blocked()

        await listen_and_close(20)
        before, listeners = allocated_bytes(), native_listeners()
        await listen_and_close(200)
        assert native_listeners() <= listeners
        # Credentials alone take some 8 KB.
        assert allocated_bytes() - before < 200 * 2000

    with_two(main)


def test_a_connection_outlives_its_listener() -> None:
    async def main(server: Stack, client: Stack) -> None:
        before = native_listeners()
        async with await server.listen(URI, tls=TLS, alpn=["test"]) as listener:
            connecting = client.connect(URI, tls=TlsConfig(verify=False), alpn=["test"])
            there = await connecting.__aenter__()
            here = await listener.accept()
        stream = await there.open_stream()
        await stream.send_all(b"still here")
        async with here:
            got = await anext(aiter(here.streams()))
            assert isinstance(got, hoststack.Stream)
            assert await got.receive_some() == b"still here"
        await connecting.__aexit__(None, None, None)
        await trio.sleep(10)  # the closing period, after which the connection is forgotten
        async with await server.listen(URI, tls=TLS, alpn=["test"]):
            pass  # a turn
        await trio.testing.wait_all_tasks_blocked()
        assert native_listeners() == before

    with_two(main)
