"""One transfer on one stream between two processes: ours, aioquic's, ngtcp2's, and raw frames.

Each function moves `count` bytes up (from side `a`, the client, to `b`) or down, and says how long
that took. What a transfer is told besides is in its `Setting`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from bench.processes import BenchError, Process, Used, is_bound, run, running
from hoststack import TlsConfig
from tests.support import netns

Direction = Literal["download", "upload"]

PORT: Final = 4434
DIRECTIONS: Final[tuple[Direction, ...]] = ("download", "upload")
#: IPv4 and UDP: what of an MTU is no payload of a datagram.
_HEADER_BYTES: Final = 28
_ETHERNET_BYTES: Final = 14
_HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Setting:
    """Where a transfer runs."""

    pair: netns.VethPair
    folder: Path
    """For the files of programs that want files; `make_folder` makes it."""
    mtu_bytes: int = 1500
    mode: str = "auto"
    """Of XDP."""
    cpus: tuple[int, int] | None = None
    """Where client and server are pinned."""

    def client(self, *words: str) -> list[str]:
        """A command line that runs `words` on side `a`."""
        return self.pair.a.command(*self._pinned(0), *words)

    def server(self, *words: str) -> list[str]:
        """A command line that runs `words` on side `b`."""
        return self.pair.b.command(*self._pinned(1), *words)

    def _pinned(self, side: int) -> list[str]:
        return ["taskset", "-c", str(self.cpus[side])] if self.cpus else []


@dataclass(frozen=True)
class Transfer:
    """What a transfer took; CPU time is of the whole processes, with start and end."""

    seconds: float
    count: int
    server_used: Used = Used(0, 0)
    client_used: Used = Used(0, 0)

    @property
    def gbit_per_second(self) -> float:
        return self.count * 8 / self.seconds / 1e9


# --- ours ---


def quic_echo(
    setting: Setting,
    direction: Direction,
    count: int,
    *,
    link: str,
    engine: str,
    is_checked: bool = False,
    connections: int = 1,
) -> Transfer:
    """quic_echo, `count` bytes on the one stream of each connection."""
    uri = f"quic://{setting.pair.b.ipv4}:{PORT}"
    program = (sys.executable, "-m", "apps.quic_echo", "link", link, "engine", engine)
    more = ("mode", setting.mode, "nclients", f"{connections}/1", "uri", uri)
    check = ("test-bytes",) if is_checked else ()
    upload, download = (count, 0) if direction == "upload" else (0, count)
    server_words = ("server", f"TX={download}", f"RX={upload}", "json")
    client_words = ("client", f"TX={upload}", f"RX={download}", "json", "time", "sconnect:lastbyte")
    server_line = setting.server(
        *program, "interface", setting.pair.b.ifname, *more, *server_words, *check
    )
    client_line = setting.client(
        *program, "interface", setting.pair.a.ifname, *more, *client_words, *check
    )
    with running(server_line) as server:
        text, client_used = run(client_line)
        # It was told how many connections there will be, and ends after them.
        server_used = server.finish(20)
        _succeeded(server.output())
    report = _succeeded(text)
    if (report["engine"], report["link"]) != (engine, link):
        raise BenchError(f"quic_echo took {report['engine']} over {report['link']}")
    return Transfer(report["time"], count * connections, server_used, client_used)


def _succeeded(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text)
    if report["results"]["has_failed"] or report["wrong_bytes"]:
        raise BenchError(f"quic_echo: {report['results']['fail_descr'] or 'wrong bytes came'}")
    return report


# --- others ---


def aioquic_asyncio(setting: Setting, direction: Direction, count: int) -> Transfer:
    """aioquic's own asyncio server and client, as shipped."""
    program = (sys.executable, "-m", "bench.aioquic_asyncio")
    address = setting.pair.b.ipv4
    with running(setting.server(*program, "server", address)) as server:
        text, client_used = run(setting.client(*program, "client", address, direction, str(count)))
        server_used = server.stop()
    return Transfer(json.loads(text)["seconds"], count, server_used, client_used)


def gtls(
    setting: Setting, direction: Direction, count: int, *, has_gso: bool, is_checked: bool = False
) -> Transfer:
    """ngtcp2's example programs, as Debian has them: HTTP/3, a file down, or one up in a POST.

    They print no times. So the time is that of the whole client less that of one which moves a
    single byte.
    """
    environment = {} if has_gso else {"LD_PRELOAD": str(setting.folder / "no_gso.so")}
    served, up = setting.folder / "served", setting.folder / "up"
    path = _file_of(served / "content" if direction == "download" else up, count, is_checked)
    server_line = setting.server(
        *("gtlsserver", "--quiet", "--htdocs", str(served)),
        *(setting.pair.b.ipv4, str(PORT)),
        *(str(setting.folder / "key.pem"), str(setting.folder / "certificate.pem")),
    )
    with running(
        server_line, environment=environment, is_ready=partial(is_bound, port=PORT)
    ) as server:
        alone, _ = _gtlsclient(setting, environment, "one")
        if direction == "upload":
            seconds, used = _gtlsclient(setting, environment, "one", f"--data={path}", "-mPOST")
        elif is_checked:
            come = setting.folder / "come"
            seconds, used = _gtlsclient(setting, environment, "content", f"--download={come}")
            if (come / "content").read_bytes() != path.read_bytes():
                raise BenchError("gtlsclient got other bytes than gtlsserver had")
        else:
            seconds, used = _gtlsclient(setting, environment, "content")
        server_used = server.stop()
    return Transfer(seconds - alone, count, server_used, used)


def _gtlsclient(
    setting: Setting, environment: dict[str, str], name: str, *words: str
) -> tuple[float, Used]:
    address = setting.pair.b.ipv4
    line = setting.client(
        *("gtlsclient", "--quiet", "--no-quic-dump", "--no-http-dump"),
        *("--exit-on-all-streams-close", *words),
        *(address, str(PORT), f"https://{address}:{PORT}/{name}"),
    )
    start = time.perf_counter()
    _, used = run(line, environment=environment)
    return time.perf_counter() - start, used


def _file_of(path: Path, count: int, has_content: bool) -> Path:
    """A file of that many bytes: holes, which cost the server nothing to read, or content."""
    with path.open("wb") as file:
        if has_content:
            file.write(os.urandom(count))
        file.truncate(count)
    return path


def raw_frames(setting: Setting, direction: Direction, count: int) -> Transfer:
    """Frames of the MTU's size from AF_XDP to AF_XDP, received and dropped: no QUIC, no transport.

    What counts of a frame is what a datagram in it would carry.
    """
    frame_bytes = setting.mtu_bytes + _ETHERNET_BYTES
    frames = math.ceil(count / (setting.mtu_bytes - _HEADER_BYTES))
    a, b = setting.pair.a.ifname, setting.pair.b.ifname
    if direction == "upload":
        send, sender, take, taker = setting.client, a, setting.server, b
    else:
        send, sender, take, taker = setting.server, b, setting.client, a
    receiver = Process(take(sys.executable, "-m", "bench.blast", taker, setting.mode, str(frames)))
    try:
        receiver.wait_ready()
        feeder = ("-m", "bench.pyxdp_pps", "--feed", sender, "--size", str(frame_bytes))
        source = Process(send(sys.executable, *feeder))
        try:
            used = receiver.finish()
            found = json.loads(receiver.output())
            fed = source.stop()
        finally:
            source.close()
    finally:
        receiver.close()
    return Transfer(
        found["seconds"], found["packets"] * (setting.mtu_bytes - _HEADER_BYTES), fed, used
    )


def why_no_gtls() -> str:
    """Why ngtcp2's programs can't be measured here; empty if they can."""
    for program, where in (("gtlsserver", "ngtcp2-server"), ("gtlsclient", "ngtcp2-client")):
        if not shutil.which(program):
            return f"{program} is not here: it is in Debian's package {where}"
    if not shutil.which("cc"):
        return "there is no C compiler, for bench/no_gso.c"
    return ""


def fill_folder(folder: Path) -> None:
    """What ngtcp2's programs need: a certificate, something to serve, and bench/no_gso.c built."""
    (folder / "served").mkdir()
    (folder / "come").mkdir()
    (folder / "served" / "one").write_bytes(b"1")
    tls = TlsConfig.self_signed(["localhost"])
    for name, pem in (("certificate", tls.certificate), ("key", tls.key)):
        assert isinstance(pem, bytes)
        (folder / f"{name}.pem").write_bytes(pem)
    words = ("-shared", "-fPIC", "-O2", "-o", str(folder / "no_gso.so"), str(_HERE / "no_gso.c"))
    subprocess.run(["cc", *words], check=True)


# --- tuning of the receiving side (docs/performance.md) ---


def _write_to_interface(side: netns.Side, name: str, value: str) -> None:
    """Write a file of /sys/class/net/IFACE; /sys of the namespace is mounted for that alone."""
    line = f"mount -t sysfs sysfs /sys && echo {value} > /sys/class/net/{side.ifname}/{name}"
    netns.run("nsenter", f"--net={side.path}", "unshare", "--mount", "sh", "-c", line)


@contextlib.contextmanager
def packet_steering(side: netns.Side, cpu: int) -> Iterator[None]:
    """RPS: the kernel's receive path of the interface runs on that CPU, not on the sender's."""
    _write_to_interface(side, "queues/rx-0/rps_cpus", f"{1 << cpu:x}")
    try:
        yield
    finally:
        _write_to_interface(side, "queues/rx-0/rps_cpus", "0")


@contextlib.contextmanager
def napi_thread(side: netns.Side, cpu: int) -> Iterator[None]:
    """The driver's receive path runs in a thread of its own on that CPU: for native XDP."""
    before = set(_napi_threads(side))
    ethtool: Sequence[str] = ("nsenter", f"--net={side.path}", "ethtool", "-K", side.ifname, "gro")
    # veth has NAPI from the first XDP program on, or with GRO: so it is there before a program is.
    netns.run(*ethtool, "on")
    try:
        _write_to_interface(side, "threaded", "1")
        threads = set(_napi_threads(side)) - before
        if not threads:
            raise BenchError("this kernel made no NAPI thread")
        for pid in threads:
            os.sched_setaffinity(pid, {cpu})
        yield
    finally:
        _write_to_interface(side, "threaded", "0")
        netns.run(*ethtool, "off")


def _napi_threads(side: netns.Side) -> Iterator[int]:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # that process has ended
            if comm.read_text(errors="replace").startswith(f"napi/{side.ifname}"):
                yield int(comm.parent.name)
