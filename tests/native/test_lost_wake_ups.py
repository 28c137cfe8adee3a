"""Without memory for a wake-up nothing ends: whatever waits looks again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import hoststack
from hoststack import Stream, TlsConfig
from hoststack.api import router
from hoststack.link.memory import MemoryNetwork

NATIVE = Path(__file__).parents[2] / "hoststack" / "native"
HOST = "10.0.0.1"
URI = f"quic://{HOST}:4433"
COUNT = 1 << 20
PROGRAM = """
#include <stdlib.h>

static void *no_memory(void *memory, size_t bytes)
{
	(void)memory;
	(void)bytes;
	return NULL;
}
#define realloc no_memory
#include "session/end.c"

int main(void)
{
	struct hs_side *side = hs_side_new();
	struct hs_end_connection c = { .side = side, .handle = 1, .waits_for_streams = 1 };
	struct hs_end end = { .connection = &c };
	uint64_t key = 1;
	hs_end_append_untaken(&end);
	if (!hs_side_has(side) || hs_side_take(side, &key, 1) != 1 || key != HS_WAKE_ALL)
		return 1;
	return hs_side_has(side) || hs_side_take(side, &key, 1);
}
"""


def test_one_without_memory_is_all(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed: scripts/bootstrap.sh installs it")
    source, program = tmp_path / "lost.c", tmp_path / "lost"
    source.write_text(PROGRAM)
    others = [
        str(path)
        for folder in ("session", "memory")
        for path in (NATIVE / folder).glob("[a-z]*.c")
        if path.name != "end.c"
    ]
    command = [compiler, f"-I{NATIVE}", str(source), *others, "-o", str(program)]
    subprocess.run(command, check=True)
    subprocess.run([program], check=True)


class _Forgetful:
    """The C library, which has no memory for any wake-up."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def hs_side_take(self, side: Any, keys: Any, most: int) -> int:
        if not self._lib.hs_side_take(side, keys, most):
            return 0
        keys[0] = self._lib.HS_WAKE_ALL
        return 1


def test_whatever_waits_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "lib", _Forgetful(router.lib))

    async def echo(connection: hoststack.Connection) -> None:
        async for stream in connection.streams():
            assert isinstance(stream, Stream)
            async with stream:
                async for data in stream:
                    await stream.send_all(data)

    async def send(stream: Stream) -> None:
        await stream.send_all(bytes(COUNT))
        await stream.send_eof()
        await stream.wait_acknowledged()

    async def main() -> None:
        network = MemoryNetwork()
        tls = TlsConfig.self_signed([HOST])
        async with (
            hoststack.open_stack(link=network.link(HOST)) as server,
            hoststack.open_stack(link=network.link("10.0.0.2")) as client,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(lambda **k: server.serve(URI, echo, tls=tls, alpn=["test"], **k))
            trusting = TlsConfig(verify=False)
            with trio.fail_after(60):
                async with client.connect(URI, tls=trusting, alpn=["test"]) as connection:
                    stream = await connection.open_stream()
                    nursery.start_soon(send, stream)
                    assert sum([len(data) async for data in stream]) == COUNT
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
