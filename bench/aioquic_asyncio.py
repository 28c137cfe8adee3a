"""What quic_echo and the requests are measured against: aioquic's own asyncio server and client.

`aioquic_asyncio.py server ADDRESS` answers each stream with what it was asked for, after reading
it to its end: its first 8 bytes are how many bytes to send back. `client ADDRESS upload|download
BYTES` prints JSON. With --datagram-bytes N both ends use datagrams of that size, as shipped
aioquic uses 1200 bytes. `requests ADDRESS SECONDS AT_ONCE SERVER_PID` makes requests as
bench/ends.py does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from bench import ALPN
from bench.ends import REQUEST_BYTES, cpu_seconds
from hoststack import TlsConfig

PORT: Final = 4433
_READ_BYTES: Final = 1 << 20


def _configuration(is_client: bool, datagram_bytes: int | None) -> QuicConfiguration:
    configuration = QuicConfiguration(is_client=is_client, alpn_protocols=[ALPN])
    if datagram_bytes is not None:
        configuration.max_datagram_size = datagram_bytes
    return configuration


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    wanted = int.from_bytes(await reader.readexactly(8), "big")
    while await reader.read(_READ_BYTES):
        pass
    writer.write(bytes(max(1, wanted)))
    writer.write_eof()


def _load_certificate(configuration: QuicConfiguration, address: str) -> None:
    tls = TlsConfig.self_signed([address])
    with tempfile.TemporaryDirectory() as folder:
        for name, pem in (("cert", tls.certificate), ("key", tls.key)):
            assert isinstance(pem, bytes)
            Path(folder, name).write_bytes(pem)
        configuration.load_cert_chain(Path(folder, "cert"), Path(folder, "key"))


async def _serve(address: str, datagram_bytes: int | None) -> None:
    configuration = _configuration(False, datagram_bytes)
    _load_certificate(configuration, address)
    tasks: set[asyncio.Task[None]] = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await serve(address, PORT, configuration=configuration, stream_handler=handle)
    print("ready", flush=True)
    await asyncio.Future()


async def _measure(address: str, direction: str, count: int, datagram_bytes: int | None) -> None:
    configuration = _configuration(True, datagram_bytes)
    configuration.verify_mode = ssl.CERT_NONE
    upload, download = (count, 1) if direction == "upload" else (0, count)
    async with connect(address, PORT, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        start = time.perf_counter()
        writer.write(download.to_bytes(8, "big") + bytes(upload))
        writer.write_eof()
        received = 0
        while data := await reader.read(_READ_BYTES):
            received += len(data)
        seconds = time.perf_counter() - start
    assert received == download, f"{received} bytes of {download} came"
    print(json.dumps({"seconds": seconds, "bytes": count}))


async def _requests(address: str, run_s: float, at_once: int, server_pid: int) -> None:
    configuration = _configuration(True, None)
    configuration.verify_mode = ssl.CERT_NONE
    count = 0
    request = REQUEST_BYTES.to_bytes(8, "big") + bytes(REQUEST_BYTES - 8)
    async with connect(address, PORT, configuration=configuration) as client:

        async def one_after_the_other(end: float) -> None:
            nonlocal count
            while time.perf_counter() < end:
                reader, writer = await client.create_stream()
                writer.write(request)
                writer.write_eof()
                assert len(await reader.read()) == REQUEST_BYTES
                count += 1

        before = [sum(cpu_seconds(pid)) for pid in (os.getpid(), server_pid)]
        start = time.perf_counter()
        await asyncio.gather(*[one_after_the_other(start + run_s) for _ in range(at_once)])
        seconds = time.perf_counter() - start
        after = [sum(cpu_seconds(pid)) for pid in (os.getpid(), server_pid)]
    client_us, server_us = (
        (now - was) / count * 1e6 for now, was in zip(after, before, strict=True)
    )
    found = {
        "count": count,
        "seconds": seconds,
        "client_us": client_us,
        "server_us": server_us,
    }
    print(json.dumps(found), flush=True)
    # Closing would wait for streams that asyncio has not read to their end.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["server", "client", "requests"])
    parser.add_argument("address")
    parser.add_argument("direction", nargs="?", help="upload or download; seconds of requests")
    parser.add_argument("bytes", type=int, nargs="?", default=0, help="or requests at once")
    parser.add_argument("server_pid", type=int, nargs="?", default=0)
    parser.add_argument("--datagram-bytes", type=int)
    given = parser.parse_args()
    if given.role == "server":
        asyncio.run(_serve(given.address, given.datagram_bytes))
    elif given.role == "requests":
        run_s = float(given.direction)
        asyncio.run(_requests(given.address, run_s, given.bytes, given.server_pid))
    else:
        asyncio.run(_measure(given.address, given.direction, given.bytes, given.datagram_bytes))


if __name__ == "__main__":
    main()
