"""What VCL costs: vcl_test_client to vcl_test_server over QUIC, against the trio API attached to
the same stack.

One stream up over af_xdp, between two daemons of one worker each. VCL's programs with their own
buffers (8 KiB a write), and with such as the trio programs have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import ends
from bench.daemons import daemon
from bench.lines import Expected, compared
from bench.processes import BenchError, Process, running
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.worker.engines import available_engines
from tests.support import netns

TRIO: Final = "trio, attached"
#: Words of vcl_test_client, by how it is called here.
VCL: Final[dict[str, tuple[str, ...]]] = {
    "VCL": (),
    "VCL, 1 MiB buffers": ("-T", "1M", "-R", "1M"),
}
EXPECTED: Final = Expected(">=", 0.8)
_PORT: Final = 5555
_FIRST_BYTES: Final = 64 << 20


class _Vcl:
    """The two programs, told so many bytes that they take about as long as is wanted."""

    def __init__(self, pair: netns.VethPair, configs: dict[str, Path]) -> None:
        self._pair = pair
        self._configs = configs
        self._bytes: dict[tuple[str, ...], int] = {}

    def __call__(self, words: tuple[str, ...], seconds: float) -> dict[str, Any]:
        size = self._bytes.get(words, _FIRST_BYTES)
        found = self._run(words, size)
        self._bytes[words] = max(1 << 20, round(size * seconds / found["seconds"]))
        return found

    def _run(self, words: tuple[str, ...], size: int) -> dict[str, Any]:
        with running(
            self._command(self._pair.b, "server", "-p", "QUIC", str(_PORT)),
            environment={"VCL_CONFIG": str(self._configs["server"])},
        ):
            client = Process(
                self._command(
                    self._pair.a,
                    "client",
                    *("-p", "QUIC", "-U", "-X", "-b", str(size), *words, "--json"),
                    *(self._pair.b.ipv4, str(_PORT)),
                ),
                {"VCL_CONFIG": str(self._configs["client"])},
            )
            try:
                found = client.finish_to_json()
            finally:
                client.close()
        if found["server"]["rx_bytes"] != size:
            raise BenchError(f"the server received {found['server']['rx_bytes']} of {size} bytes")
        return {"bytes": size, "seconds": found["client"]["seconds"]}

    @staticmethod
    def _command(side: netns.Side, which: str, *words: str) -> list[str]:
        return side.command(sys.executable, "-m", f"apps.vcl_test.{which}", *words)


def measure(rounds: int, seconds: float) -> Found:
    """Goodput of each, on one pair of daemons."""
    engine = available_engines()[0]
    with ExitStack() as stack:
        pair = stack.enter_context(netns.veth_pair())
        sides = {"client": pair.a, "server": pair.b}
        sockets = {e: stack.enter_context(daemon(sides[e], engine)).api for e in sides}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hs-bench-")))
        configs = {end: folder / f"{end}.conf" for end in sides}
        for end, path in configs.items():
            path.write_text(f"vcl {{\n  api-socket-name {sockets[end]}\n}}\n", encoding="utf-8")
        run_vcl = _Vcl(pair, configs)
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            TRIO: partial(
                ends.measure, pair, "upload", "af_xdp", engine, seconds, attached=sockets
            ),
            **{name: partial(run_vcl, words, seconds) for name, words in VCL.items()},
        }
        progress("first runs, checked")
        ends.measure(pair, "upload", "af_xdp", engine, 0.1, is_checked=True, attached=sockets)
        for words in VCL.values():
            run_vcl(words, seconds)
        found = interleave(cases, rounds, "upload")
    goodput = {
        name: [one["bytes"] * 8 / one["seconds"] / 1e9 for one in all_]
        for name, all_ in found.items()
    }
    rows = [{"what": name, "figure": "Gbit/s", **spread(goodput[name])} for name in cases]
    judged, other = (
        compared(
            goodput,
            name,
            TRIO,
            what=f"one stream up by VCL, {engine}, af_xdp",
            case=name,
            unit="Gbit/s",
            expected=expected,
        )
        for name, expected in zip(VCL, (EXPECTED, None), strict=True)
    )
    return Found("goodput of VCL's programs", rows, [judged], [other], {"engine": engine})


BENCHMARK: Final = Benchmark("vcl", __doc__, measure, rounds=5)

if __name__ == "__main__":
    BENCHMARK.main()
