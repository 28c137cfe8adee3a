"""`hoststack doctor [IFACE]`: what this machine lacks for AF_XDP, and how to fix it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from hoststack.cli import machine_checks, nic_checks
from hoststack.cli.finding import Finding, Severity

_MARKS = {Severity.GOOD: "ok", Severity.HINT: "hint", Severity.BAD: "BAD"}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="check what AF_XDP lacks on this machine, and say how to fix it",
        description="Checks kernel, privilege, libraries and interfaces, and says how to fix what"
        " is missing. Changes nothing. Exit status 0 only if the best link, af_xdp, works.",
    )
    parser.add_argument(
        "interface",
        nargs="?",
        metavar="IFACE",
        help="the interface to check (default: all that are up, of which one has to work)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 0 if AF_XDP works, else 1."""
    machine = list(machine_checks.findings())
    _show("this machine", machine)
    names = [options.interface] if options.interface else nic_checks.interfaces_up()
    fit = []
    for name in names:
        found = list(nic_checks.findings(name))
        _show(f"interface {name}", found)
        if not _is_bad(found):
            fit.append(name)
    if not names:
        print("No interface but loopback is up: `ip link set IFACE up`.")
    works = bool(fit) and not _is_bad(machine)
    if works:
        print(f"The best link works: af_xdp on {', '.join(fit)}.")
    else:
        print("The best link, af_xdp, does not work here yet; link udp does.")
    return 0 if works else 1


def _is_bad(found: Iterable[Finding]) -> bool:
    return any(finding.severity is Severity.BAD for finding in found)


def _show(title: str, found: list[Finding]) -> None:
    print(f"{title}:")
    for line in _lines(found):
        print(line)
    print()
    sys.stdout.flush()


def _lines(found: list[Finding]) -> Iterator[str]:
    width = max((len(finding.subject) for finding in found), default=0)
    for finding in found:
        yield f"  {_MARKS[finding.severity]:5}{finding.subject:{width}}  {finding.text}"
        if finding.fix:
            yield f"  {'':5}{'':{width}}  -> {finding.fix}"
