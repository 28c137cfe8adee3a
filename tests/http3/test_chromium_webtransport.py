"""A browser's WebTransport, with our server over UDP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

import hoststack
from hoststack import QuicConfig, SendStream, TlsConfig, http3
from hoststack.http3 import Http3Config, Session, SessionEnd
from tests.http3.test_webtransport import echo
from tests.support import chromium
from tests.support.certificates import self_signed

pytestmark = pytest.mark.skipif(bool(chromium.why_not()), reason=chromium.why_not())

CERTIFICATE, KEY = self_signed(ec.generate_private_key(ec.SECP256R1()))
PATIENCE_S: Final = 120

OPEN: Final = """
const session = new WebTransport(`https://127.0.0.1:${port}/${path}`, {
    serverCertificateHashes: [{algorithm: "sha-256", value: new Uint8Array(hash)}],
});
await session.ready;
const text = bytes => new TextDecoder().decode(bytes);
const bytes = text => new TextEncoder().encode(text);
async function readAll(readable) {
    let found = "";
    for await (const chunk of readable) found += text(chunk);
    return found;
}
async function send(writable, data) {
    const writer = writable.getWriter();
    await writer.write(bytes(data));
    await writer.close();
}
async function next(readable) {
    const reader = readable.getReader();
    const { value } = await reader.read();
    reader.releaseLock();
    return value;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    with chromium.started() as browser:
        browser.go("file:///usr/share/doc")  # a page that may use WebTransport
        yield browser


ends: list[SessionEnd] = []


async def handler(request: http3.Request) -> None:
    async with await request.accept_webtransport() as session:
        if request.path == b"/echo":
            await echo(session)
        elif request.path == b"/codes":
            await codes(session)
        else:
            await session.close(4321, "no such path")


async def codes(session: Session) -> None:
    """A stream that is reset and one that is stopped, by each side; then the session's end."""
    stream = await session.open_stream()
    await stream.send_all(b"begun")
    with pytest.raises(hoststack.StreamResetError) as reset:
        await stream.receive_some()
    assert reset.value.code == 77
    stream.reset(78)
    async with await session.open_stream(unidirectional=True) as one_way:
        with pytest.raises(hoststack.StreamStoppedError) as stopped:
            await send_without_end(one_way)
    assert stopped.value.code == 79
    ends.append(await session.wait_closed())


async def send_without_end(stream: SendStream) -> None:
    while True:
        await stream.send_all(bytes(1000))


@asynccontextmanager
async def listening(config: Http3Config) -> AsyncIterator[int]:
    """The port of a server on this machine."""
    quic = QuicConfig(datagram_fifo_bytes=1 << 18)
    tls = TlsConfig(certificate=CERTIFICATE, key=KEY)
    async with hoststack.open_stack() as stack, trio.open_nursery() as nursery:
        serve = partial(http3.serve, stack, "quic://127.0.0.1:0", handler)
        listener = await nursery.start(partial(serve, tls=tls, config=config, quic=quic))
        yield listener.local[1]
        nursery.cancel_scope.cancel()


def browse(browser: chromium.Chromium, path: str, script: str) -> Any:
    """What a script returns that has a session with our server."""

    async def main() -> Any:
        with trio.fail_after(PATIENCE_S):
            async with listening(Http3Config(webtransport_sessions=16)) as port:
                shown = chromium.certificate_hash(CERTIFICATE)
                run = partial(browser.run, OPEN + script, port=port, path=path, hash=shown)
                return await trio.to_thread.run_sync(run, abandon_on_cancel=True)

    return trio.run(main)


def test_echo_on_each_kind_of_stream(browser: chromium.Chromium) -> None:
    found = browse(
        browser,
        "echo",
        """
const both = await session.createBidirectionalStream();
await send(both.writable, "both ways");
const found = [await readAll(both.readable)];
await send(await session.createUnidirectionalStream(), "x".repeat(100000));
const back = await next(session.incomingUnidirectionalStreams);
found.push((await readAll(back)).length);
const writer = session.datagrams.writable.getWriter();
const reader = session.datagrams.readable.getReader();
const seen = new Set();
for (let n = 0; n < 100; n++) {
    await writer.write(bytes(`${n}`));
    seen.add(text((await reader.read()).value));
}
found.push(seen.size);
session.close();
await session.closed;
return found;
""",
    )
    assert found == ["both ways", 100_000, 100]


def test_codes_both_ways(browser: chromium.Chromium) -> None:
    ends.clear()
    found = browse(
        browser,
        "codes",
        """
const both = await next(session.incomingBidirectionalStreams);
const reader = both.readable.getReader();
await reader.read();
const writer = both.writable.getWriter();
writer.abort(new WebTransportError({streamErrorCode: 77})).catch(() => {});
const found = [];
try { for (;;) await reader.read(); } catch (error) { found.push(error.streamErrorCode); }
const oneWay = await next(session.incomingUnidirectionalStreams);
await oneWay.cancel(new WebTransportError({streamErrorCode: 79}));
session.close({closeCode: 1234, reason: "good bye"});
const end = await session.closed;
found.push(end.closeCode, end.reason);
await new Promise(done => setTimeout(done, 300));
return found;
""",
    )
    assert found == [78, 1234, "good bye"]
    assert ends == [SessionEnd(1234, "good bye")]


def test_a_server_closes_with_a_code(browser: chromium.Chromium) -> None:
    script = "const end = await session.closed; return [end.closeCode, end.reason];"
    assert browse(browser, "other", script) == [4321, "no such path"]
