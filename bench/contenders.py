"""What is compared: one stream of so many bytes from one process to another, in several ways.

Each contender is a function of a `Setting` and a number of bytes. It starts a server in namespace
b and a client in namespace a, and says how long the transfer took and what CPU time both took.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal

from bench.processes import NOT_KNOWN, BenchError, Process, Used, run_to_json, running
from bench.rounds import Figures, interleave, progress
from hoststack import TlsConfig
from hoststack.worker.engines import available_engines
from tests.support import netns

Direction = Literal["upload", "download"]
#: quic_echo's words.
Link = Literal["af_xdp", "udp"]
Engine = Literal["native", "aioquic"]

HERE: Final = Path(__file__).resolve().parent
PORT: Final = 4433
DIRECTIONS: Final[tuple[Direction, ...]] = ("download", "upload")
#: A transfer is no shorter than this, and no longer than what a noisy minute should cost.
_SIZES_BYTES: Final = (1 << 20, 8 << 30)
_PYTHON: Final = sys.executable
_ETHERNET_BYTES: Final = 14
_IP_UDP_BYTES: Final = 20 + 8
#: What gtlsserver and gtlsclient are told: no dumps, and the datagram size that the others use.
_GTLS_QUIET: Final = ("-q", "--no-quic-dump", "--no-http-dump")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a transfer is made."""

    pair: netns.VethPair
    mtu_bytes: int = 1500
    direction: Direction = "download"
    mode: Literal["auto", "native", "generic"] = "auto"
    """Of XDP."""
    cpus: tuple[int, int] | None = None
    """The CPUs that server and client are bound to."""

    def server(self, *words: str) -> list[str]:
        """A command line in the server's namespace."""
        return self.pair.b.command(*self._bound(0), *words)

    def client(self, *words: str) -> list[str]:
        """A command line in the client's namespace."""
        return self.pair.a.command(*self._bound(1), *words)

    def _bound(self, side: int) -> tuple[str, ...]:
        return ("taskset", "--cpu-list", str(self.cpus[side])) if self.cpus else ()


@dataclass(frozen=True)
class Transferred:
    """One transfer."""

    bytes: int
    seconds: float
    server: Used = NOT_KNOWN
    client: Used = NOT_KNOWN

    @property
    def gbit_per_second(self) -> float:
        """Goodput."""
        return self.bytes * 8 / self.seconds / 1e9


@dataclass(frozen=True)
class Contender:
    """One way to move bytes; `why_absent` says what it lacks here, if it does."""

    name: str
    transfer: Callable[[Setting, int, bool], Transferred]
    """Of a setting and a number of bytes; True checks them, where the program can."""
    first_bytes: int = 32 << 20
    """For a first run, before its speed is known."""
    why_absent: str = ""

    def sized(self, setting: Setting, seconds: float) -> int:
        """Run it once, checked; how many bytes it moves in about so many seconds."""
        first = self.transfer(setting, self.first_bytes, True)
        count = int(first.bytes / first.seconds * seconds)
        return min(max(count, _SIZES_BYTES[0]), _SIZES_BYTES[1])

    def speed(self, setting: Setting, count: int) -> float:
        """Run it, unchecked; Gbit/s."""
        return self.transfer(setting, count, False).gbit_per_second


def in_turns(
    contenders: Sequence[Contender], setting: Setting, rounds: int, seconds: float
) -> Figures:
    """Their goodput in Gbit/s, after a first checked run of each by itself."""
    where = f"{setting.direction}, MTU {setting.mtu_bytes}"
    progress(f"{where}: first runs, checked")
    runs = {
        each.name: partial(each.speed, setting, each.sized(setting, seconds)) for each in contenders
    }
    return interleave(runs, rounds, where)


# --- quic_echo ---


def _quic_echo(
    link: Link, engine: Engine, connections: int, setting: Setting, count: int, is_checked: bool
) -> Transferred:
    count //= connections
    upload, download = (count, 0) if setting.direction == "upload" else (0, count)
    check = ["test-bytes:assert"] if is_checked else []
    words = ["-m", "apps.quic_echo", "uri", f"quic://{setting.pair.b.ipv4}:{PORT}"]
    words += ["link", link, "engine", engine, "mode", setting.mode, *check]
    words += ["nclients", f"{connections}/1"]
    server = [*words, "server", f"TX={download}", f"RX={upload}"]
    client = [*words, "client", f"TX={upload}", f"RX={download}", "json"]
    client += ["time", "sconnect:lastbyte"]
    if link == "af_xdp":
        server += ["interface", setting.pair.b.ifname]
        client += ["interface", setting.pair.a.ifname]
    with running(setting.server(_PYTHON, *server)) as process:
        report, client_used = run_to_json(setting.client(_PYTHON, *client))
        # Of many connections some lose the packet that closes them, which no one sends again: the
        # server would wait until they were idle for long enough, and call that a failure.
        server_used = process.finish() if connections == 1 else process.stop()
    return Transferred(count * connections, float(report["time"]), server_used, client_used)


def quic_echo(engine: Engine, link: Link, connections: int = 1) -> Contender:
    """Hoststack, with the program that its users measure with: one stream in each connection."""
    is_built = engine in available_engines()
    return Contender(
        f"{engine}, {link}" + (f", {connections} connections" if connections > 1 else ""),
        partial(_quic_echo, link, engine, connections),
        why_absent="" if is_built else f"the {engine} engine was not built",
    )


# --- raw frames ---


def blast(setting: Setting, size_bytes: int, *until: str) -> dict[str, Any]:
    """Packets of that size until the receiver (bench.blast) has enough; what it found."""
    is_upload = setting.direction == "upload"
    sink, source = setting.server, setting.client
    to, by = setting.pair.b, setting.pair.a
    if not is_upload:
        sink, source, to, by = source, sink, by, to
    words = (_PYTHON, "-m", "bench.blast")
    size = f"--size={size_bytes}"
    receiver = sink(*words, "receive", to.ifname, size, f"--mode={setting.mode}", *until)
    sender = source(*words, "send", by.ifname, size)
    with running(receiver) as end, running(sender):
        return end.finish_to_json()


def _blast(setting: Setting, count: int, is_checked: bool) -> Transferred:
    payload_bytes = setting.mtu_bytes - _IP_UDP_BYTES
    packets = max(1, count // payload_bytes)
    found = blast(setting, setting.mtu_bytes + _ETHERNET_BYTES, f"--packets={packets}")
    return Transferred(int(found["packets"]) * payload_bytes, float(found["seconds"]))


BLAST: Final = Contender("raw AF_XDP blast", _blast, first_bytes=128 << 20)


# --- ngtcp2's own programs ---


@cache
def _gtls_files() -> Path:
    """A folder with what they need: a certificate, its key, and the library against GSO."""
    folder = Path(tempfile.mkdtemp(prefix="hoststack-bench-"))
    atexit.register(shutil.rmtree, folder)
    tls = TlsConfig.self_signed(["localhost"])
    for name, pem in (("cert.pem", tls.certificate), ("key.pem", tls.key)):
        assert isinstance(pem, bytes)
        folder.joinpath(name).write_bytes(pem)
    library = str(folder / "no_gso.so")
    compiler = ["cc", "-shared", "-fPIC", "-O2", "-o", library]
    subprocess.run([*compiler, str(HERE / "no_gso.c"), "-ldl"], check=True)
    return folder


def _holds_port(process: Process) -> bool:
    """Whether the server has its UDP socket, in the namespace that it is in."""
    port = f":{PORT:04X} "
    return any(
        port in Path(f"/proc/{process.pid}/net/{table}").read_text(encoding="ascii")
        for table in ("udp", "udp6")
    )


def _gtls(has_gso: bool, setting: Setting, count: int, is_checked: bool) -> Transferred:
    folder = _gtls_files()
    environment = {} if has_gso else {"LD_PRELOAD": str(folder / "no_gso.so")}
    size = f"--max-udp-payload-size={setting.mtu_bytes - _IP_UDP_BYTES}"
    host = setting.pair.b.ipv4
    server = ["gtlsserver", *_GTLS_QUIET, size, "--max-dyn-length=1000G", host, str(PORT)]
    client = ["gtlsclient", *_GTLS_QUIET, size, "--exit-on-all-streams-close"]

    def fetch(bytes_down: int, *more: str) -> tuple[float, Used]:
        uri = f"https://{host}:{PORT}/{bytes_down}"
        process = Process(setting.client(*client, *more, host, str(PORT), uri), environment)
        try:
            start = time.perf_counter()
            used = process.finish()
            return time.perf_counter() - start, used
        finally:
            process.close()

    with running(
        setting.server(*server, str(folder / "key.pem"), str(folder / "cert.pem")),
        environment=environment,
        is_ready=_holds_port,
    ) as process:
        before = _bytes_over(setting)
        if setting.direction == "download":
            seconds, used = fetch(count)
        else:
            with open(folder / "upload", "wb") as file:
                file.truncate(count)
            seconds, used = fetch(1, "--http-method=POST", f"--data={file.name}")
        if _bytes_over(setting) - before < count:
            raise BenchError(f"{client[0]}: fewer than the {count} bytes went over the wire")
        # The program says nothing of times: what it takes for one byte is not the transfer's.
        seconds -= fetch(1)[0]
        server_used = process.stop()
    return Transferred(count, seconds, server_used, used)


def _bytes_over(setting: Setting) -> int:
    """Bytes that the server's interface has received (upload) or sent, headers included."""
    what = "rx" if setting.direction == "upload" else "tx"
    found = setting.pair.b.ip("-s", "-j", "link", "show", setting.pair.b.ifname)
    return int(json.loads(found)[0]["stats64"][what]["bytes"])


def gtls(*, has_gso: bool) -> Contender:
    """Debian's gtlsserver and gtlsclient: ngtcp2 and GnuTLS over UDP sockets."""
    is_there = shutil.which("gtlsserver") and shutil.which("gtlsclient")
    return Contender(
        f"gtlsserver/client, {'GSO' if has_gso else 'no GSO'}",
        partial(_gtls, has_gso),
        why_absent="" if is_there else "Debian's packages ngtcp2-server, ngtcp2-client are missing",
    )


# --- aioquic by itself ---


def _aioquic_asyncio(
    options: tuple[str, ...], setting: Setting, count: int, is_checked: bool
) -> Transferred:
    host = setting.pair.b.ipv4
    words = (_PYTHON, "-m", "bench.aioquic_asyncio")
    with running(setting.server(*words, "server", host, *options)) as process:
        line = setting.client(*words, "client", host, setting.direction, str(count), *options)
        report, used = run_to_json(line)
        server_used = process.stop()
    return Transferred(count, float(report["seconds"]), server_used, used)


def aioquic_asyncio(name: str, *options: str) -> Contender:
    """aioquic's own asyncio server and client, with options of bench.aioquic_asyncio."""
    return Contender(name, partial(_aioquic_asyncio, options), first_bytes=4 << 20)


#: As shipped: with datagrams of 1200 bytes.
AIOQUIC_ASYNCIO: Final = aioquic_asyncio("aioquic asyncio")


def those_here(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those that can be run; and what the others lack, which is said on the screen as well."""
    absent = {each.name: each.why_absent for each in contenders if each.why_absent}
    for name, why_absent in absent.items():
        print(f"!!! NOT MEASURED: {name}: {why_absent}", flush=True)
    return [each for each in contenders if not each.why_absent], absent
