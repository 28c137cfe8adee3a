"""`hoststack xdp load|unload|status`: an interface's steering program, pinned."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterator
from typing import Final

import pyxdp
from hoststack.link.base import Endpoint, LinkError
from hoststack.link.xdp.steering import Steering, unload
from hoststack.native.wire._wire import ffi

#: The name by which the kernel knows our program.
PROGRAM_NAME: Final = "hs_steer"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `xdp` and its three verbs to the command line."""
    parser = commands.add_parser(
        "xdp",
        help="load, unload or show an interface's steering program",
        description="A stack loads the steering program itself and unloads it when it ends."
        " A program that `load` loaded stays until `unload`, and stacks on that interface use it.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    load = verbs.add_parser("load", help="load the program; it stays until `unload`")
    load.add_argument("interface", metavar="IFACE")
    load.add_argument(
        "--mode",
        choices=("auto", "native", "generic"),
        default="auto",
        help="by the driver (native), by the kernel (generic), or the best that works (auto)",
    )
    load.set_defaults(run=_load)

    unloading = verbs.add_parser("unload", help="remove the program that `load` loaded")
    unloading.add_argument("interface", metavar="IFACE")
    unloading.set_defaults(run=_unload)

    status = verbs.add_parser(
        "status",
        help="show program, mode, maps, ports and counters",
        description="Exit status 0 if the interface carries the steering program, else 1.",
    )
    status.add_argument("interface", metavar="IFACE")
    status.set_defaults(run=_status)


def _load(options: argparse.Namespace) -> int:
    name: str = options.interface
    nic = pyxdp.describe_interface(name)
    loaded = _adopt_or_clear(name)
    if loaded is not None:
        mode, program_id = loaded.mode, loaded.program_id
        loaded.close()
        if options.mode not in ("auto", mode):
            raise LinkError(
                errno.EEXIST,
                f"{name} has the program in {mode} mode already; first `hoststack xdp unload"
                f" {name}`",
            )
        print(f"{name}: the program is loaded already (id {program_id}, {mode} mode)")
        return 0
    steering = Steering.load(name, nic.rx_queues, mode=options.mode)
    try:
        steering.pin()
        print(
            f"{name}: program {PROGRAM_NAME} loaded (id {steering.program_id}, {steering.mode}"
            f" mode); it stays until `hoststack xdp unload {name}`"
        )
    finally:
        steering.close()
    return 0


def _adopt_or_clear(name: str) -> Steering | None:
    """Return the program loaded before; removes pins of an interface that no longer exists."""
    try:
        return Steering.adopt(name)
    except LinkError as error:
        if error.errno != errno.ENODEV:
            raise
        unload(name)
        return None


def _unload(options: argparse.Namespace) -> int:
    name: str = options.interface
    if unload(name):
        print(f"{name}: the program is removed")
        return 0
    for program in pyxdp.attached_programs(name):
        if program.name == PROGRAM_NAME:
            raise LinkError(
                errno.EBUSY,
                f"the program on {name} (id {program.program_id}) belongs to a stack that runs,"
                " which removes it when it ends",
            )
        raise LinkError(
            errno.EBUSY,
            f"{name} has another program, {program.name!r} (id {program.program_id}), which"
            f" is not removed; `ip link set dev {name} xdp off` removes it",
        )
    print(f"{name}: there was no program to unload")
    return 0


def _status(options: argparse.Namespace) -> int:
    name: str = options.interface
    attached = pyxdp.attached_programs(name)
    ours = [program for program in attached if program.name == PROGRAM_NAME]
    if not ours:
        others = ", ".join(f"{program.name!r} (id {program.program_id})" for program in attached)
        print(
            f"{name}: no steering program"
            + (f"; it carries {others}" if others else f"; `hoststack xdp load {name}` loads it"),
            file=sys.stderr,
        )
        return 1
    (program,) = ours
    pinned = _adopt_or_clear(name)
    if pinned is not None:
        pinned.close()
    owner = "kept by `hoststack xdp load`" if pinned else "held by a stack that runs"
    print(f"{name}: {PROGRAM_NAME}, id {program.program_id}, {program.mode} mode, {owner}")
    with pyxdp.Program.from_id(program.program_id) as loaded:
        for line in _describe(loaded, Steering(loaded, name, is_pinned=pinned is not None)):
            print(f"  {line}")
    return 0


def _describe(program: pyxdp.Program, steering: Steering) -> Iterator[str]:
    yield f"steering  {_config(program)}"
    yield f"ports     {', '.join(map(_show_endpoint, steering.ports())) or 'none'}"
    yield "maps"
    for owned in program.maps.values():
        yield f"  {owned.name:13}id {owned.id}, room for {owned.max_entries}"
    yield "verdicts"
    for verdict, count in steering.counters().items():
        yield f"  {verdict:28}{count:>14}"


def _config(program: pyxdp.Program) -> str:
    raw = program.maps["hs_config"].lookup(0)
    config = ffi.from_buffer("struct hs_steer_config *", raw or b"")
    if not config.workers:
        return "nothing yet: no stack has used it"
    return (
        f"{config.workers} {'worker' if config.workers == 1 else 'workers'}, host {config.host},"
        f" rotation {config.rotation}"
    )


def _show_endpoint(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"
