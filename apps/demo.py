"""`make demo`: quic_echo between two network namespaces over AF_XDP, with counters as proof; then
the same with a daemon on each side.

Without root, or where namespaces or BPF are forbidden: the same over UDP sockets on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final, NoReturn

from apps.demo_daemons import WORKERS, show_daemons
from apps.demo_sides import (
    DemoError,
    Result,
    Side,
    finish,
    run,
    show_command,
    start,
    until_it_listens,
)

CONNECTIONS: Final = 2
STREAMS: Final = 4
STREAM_MBYTES: Final = 8
PORT: Final = 4433
LOAD: Final = ["nclients", f"{CONNECTIONS}/{STREAMS}", "test-bytes:assert"]

#: Namespaces are named after this and the process, so that runs do not collide.
_PREFIX: Final = "hsdemo"
#: The kernel's counters of UDP over IPv4 and IPv6; all must stay at zero.
_KERNEL_COUNTERS: Final = ("InDatagrams", "NoPorts", "InErrors", "OutDatagrams")


class NotHereError(DemoError):
    """AF_XDP can't be shown on this machine, or by this user; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if all bytes arrived and the proof holds."""
    argparse.ArgumentParser(prog="demo", description=__doc__).parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        try:
            with two_namespaces() as (server, client):
                return show_af_xdp(server, client)
        except NotHereError as error:
            print(f"No AF_XDP here: {error}. So the same over UDP sockets on loopback:\n")
            here = "127.0.0.1"
            return show_udp(Side("server", here), Side("client", here))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def show_af_xdp(server: Side, client: Side) -> int:
    """Transfer over AF_XDP, and print figures and proof; return the exit status."""
    print("quic_echo over AF_XDP, in two network namespaces joined by a veth pair:\n")
    result = transfer(server, client)
    show_figures(result)
    flaws = show_proof(result)
    if flaws:
        print(f"\nThe proof FAILS: {'; '.join(flaws)}.")
        return 1
    print("\nProven: XDP took every datagram to AF_XDP sockets, and the kernel's UDP saw none.")
    show_figures(show_daemons(server, client, LOAD, STREAM_MBYTES))
    return 0


def show_udp(server: Side, client: Side) -> int:
    """Transfer over UDP sockets, and print figures; return the exit status."""
    show_figures(transfer(server, client))
    show_figures(show_daemons(server, client, LOAD, STREAM_MBYTES))
    print("\nEvery byte came and was right. As root, `make demo` shows it over AF_XDP.")
    return 0


def transfer(server: Side, client: Side) -> Result:
    """Run quic_echo on both sides to a good end. Raises DemoError, or NotHereError if it can't
    start."""
    host = f"quic://{server.address}"
    # On loopback, which all programs share, the kernel picks a port.
    server_words = server.quic_echo(["uri", f"{host}:{PORT if server.namespace else 0}", *LOAD])
    with start(server, server_words) as serving:
        port, said = until_it_listens(serving)
        if not port:
            raise _no_server(server, said.removeprefix("quic_echo: ") or "no server")
        show_command(server, server_words)
        uri = f"{host}:{port}"
        client_words = client.quic_echo(["uri", uri, *LOAD, f"TX={STREAM_MBYTES}M"])
        show_command(client, client_words)
        with start(client, client_words) as asking:
            reports = {"client": finish(client, asking), "server": finish(server, serving)}
    kernel = {side.role: kernel_udp(side) for side in (server, client) if side.namespace}
    return Result(reports, kernel)


def _no_server(side: Side, why: str) -> DemoError:
    """Return the error of a failed server: without AF_XDP the demo falls back to UDP sockets,
    without these it fails."""
    return NotHereError(why) if side.interface else DemoError(f"no server: {why}")


def kernel_udp(side: Side) -> dict[str, int]:
    """Return the kernel's UDP counters in a namespace of the demo, both IP versions."""
    lines = run(*side.inside(["cat", "/proc/net/snmp", "/proc/net/snmp6"])).splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp: "))
    counters = dict(zip(names, map(int, values), strict=True))
    for line in lines:
        name, _, value = line.partition(" ")
        if name.startswith("Udp6"):
            name = name.removeprefix("Udp6")
            counters[name] = counters.get(name, 0) + int(value)
    return {name: counters[name] for name in _KERNEL_COUNTERS}


def show_figures(result: Result) -> None:
    """Print how much came, how long each phase took, and the throughput."""
    report = result.reports["client"]
    events = report["events"]
    mbytes = report["rx_data"] >> 20
    print(
        f"\n{CONNECTIONS} connections with {STREAMS} streams each: {mbytes} MiB sent, echoed, "
        "and every byte checked on both sides"
    )
    phases = (
        ("handshakes", "qconnect", "qconnected"),
        ("streams", "sconnect", "sconnected"),
        ("transfer", "sconnected", "lastbyte"),
    )
    for name, first, last in phases:
        print(f"  {name:<12}{(events[last] - events[first]) * 1e3:10.1f} ms")
    seconds = events["lastbyte"] - events["sconnect"]
    print(f"  {'throughput':<12}{report['rx_data'] * 8 / seconds / 1e9:10.3f} Gbit/s each way")


def show_proof(result: Result) -> list[str]:
    """Print XDP's counters beside the kernel's; return what contradicts the claim."""
    flaws: list[str] = []
    rows: list[tuple[str, dict[str, int]]] = []
    links = {role: report["link_statistics"] for role, report in result.reports.items()}
    for title, name in (
        ("XDP: redirected by connection ID", "xdp_redirected_by_cid"),
        ("XDP: redirected as new", "xdp_redirected_as_new"),
        ("XDP: redirect failed", "xdp_redirect_failed"),
        ("AF_XDP: datagrams received", "rx_datagrams"),
        ("AF_XDP: datagrams sent", "tx_datagrams"),
    ):
        rows.append((title, {role: link[name] for role, link in links.items()}))
    for name in _KERNEL_COUNTERS:
        rows.append((f"kernel UDP: {name}", {r: k[name] for r, k in result.kernel.items()}))
    print(f"\n{'The proof':<36}{'server':>12}{'client':>12}")
    for title, values in rows:
        print(f"  {title:<34}{values['server']:>12}{values['client']:>12}")
    for role, link in links.items():
        redirected = link["xdp_redirected_by_cid"] + link["xdp_redirected_as_new"]
        if not 0 < link["rx_datagrams"] <= redirected:
            flaws.append(f"the {role} received datagrams that XDP did not redirect")
        if link["xdp_redirect_failed"]:
            flaws.append(f"redirects failed at the {role}")
        if any(result.kernel[role].values()):
            flaws.append(f"the kernel's UDP handled datagrams at the {role}")
    return flaws


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[Side, Side]]:
    """Server and client, joined by a veth pair, for the length of the block. Raises
    NotHereError."""
    if os.geteuid() != 0:
        raise NotHereError("it needs root, and this is an ordinary user")
    _sweep()
    stem = f"{_PREFIX}-{os.getpid()}"
    server = Side("server", "10.99.0.1", f"{stem}-server", "demo0")
    client = Side("client", "10.99.0.2", f"{stem}-client", "demo1")
    with contextlib.ExitStack() as undo:
        undo.callback(_ignore_signals, False)
        try:
            _make_namespaces(undo, server, client)
            yield server, client
        finally:
            # Signals must not interrupt the cleanup.
            _ignore_signals(True)


def _make_namespaces(undo: contextlib.ExitStack, server: Side, client: Side) -> None:
    try:
        for side in (server, client):
            undo.callback(_delete_namespace, side.namespace)
            run("ip", "netns", "add", side.namespace)
        # One queue for each of a daemon's workers.
        queues = ("numrxqueues", str(WORKERS), "numtxqueues", str(WORKERS))
        peer = ("peer", "name", client.interface, "netns", client.namespace, *queues)
        link = ("link", "add", server.interface, *queues, "type", "veth", *peer)
        run("ip", "-n", server.namespace, *link)
        for side in (server, client):
            ip = ("ip", "-n", side.namespace)
            run(*ip, "link", "set", "lo", "up")
            run(*ip, "link", "set", side.interface, "addrgenmode", "none")
            run(*ip, "address", "add", f"{side.address}/24", "dev", side.interface)
            run(*ip, "link", "set", side.interface, "up")
    except DemoError as error:
        raise NotHereError(f"network namespaces can't be made here ({error})") from None


def _delete_namespace(name: str) -> None:
    if os.path.exists(f"/run/netns/{name}"):
        subprocess.run(["ip", "netns", "del", name], check=False)


def _sweep() -> None:
    """Remove the namespaces of demos that were killed."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == _PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _delete_namespace(name)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, with the exit status that shells report for a signal."""
    raise SystemExit(128 + number)


def _ignore_signals(ignore: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if ignore else _end)


if __name__ == "__main__":
    sys.exit(main())
