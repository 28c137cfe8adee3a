"""`hoststack doctor`: what it finds, on interfaces that have this or that amiss."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

import pyxdp
from hoststack.cli import machine_checks, nic_checks
from hoststack.cli.finding import Finding, Severity
from hoststack.cli.main import main
from hoststack.worker.engines import why_not_native

GOOD_NIC = pyxdp.Interface(
    name="net0",
    ifindex=7,
    driver="fast",
    mac="02:00:00:00:00:01",
    mtu_bytes=1500,
    rx_queues=2,
    tx_queues=2,
    is_up=True,
    has_carrier=True,
    xdp_features=frozenset({"basic", "redirect", "xsk-zerocopy"}),
)


def look_at(
    monkeypatch: pytest.MonkeyPatch,
    nic: pyxdp.Interface,
    programs: list[pyxdp.AttachedProgram] | None = None,
) -> dict[str, Finding]:
    """The findings about an interface that the kernel describes like that, by subject."""
    monkeypatch.setattr(pyxdp, "describe_interface", lambda name: nic)
    monkeypatch.setattr(pyxdp, "attached_programs", lambda name: programs or [])
    monkeypatch.setattr(pyxdp, "available", lambda: (True, ""))
    return {finding.subject: finding for finding in nic_checks.findings(nic.name)}


def test_a_good_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at(monkeypatch, GOOD_NIC)
    assert {finding.severity for finding in found.values()} == {Severity.GOOD}
    assert found["mode"].text == "fast: native"
    assert found["queues"].text.startswith("2 for receiving")


@pytest.mark.parametrize(
    ("subject", "severity", "change"),
    [
        ("state", Severity.BAD, {"is_up": False}),
        ("state", Severity.HINT, {"has_carrier": False}),
        ("mode", Severity.HINT, {"xdp_features": frozenset()}),
        ("mode", Severity.HINT, {"xdp_features": None}),
        ("MTU", Severity.BAD, {"mtu_bytes": 9000}),
    ],
)
def test_an_interface_found_wanting(
    monkeypatch: pytest.MonkeyPatch, subject: str, severity: Severity, change: dict[str, Any]
) -> None:
    found = look_at(monkeypatch, GOOD_NIC._replace(**change))[subject]
    assert found.severity is severity
    assert found.fix


def test_a_program_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pyxdp.AttachedProgram(42, "theirs", "native")
    found = look_at(monkeypatch, GOOD_NIC, [program])["program"]
    assert found.severity is Severity.BAD
    assert "'theirs' (id 42, native mode)" in found.text
    assert "xdp off" in found.fix


def test_no_such_interface(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nope0"]) == 1
    out = capsys.readouterr().out
    assert "there is no 'nope0'" in out
    assert out.splitlines()[-1].startswith("The best link, af_xdp, does not work here yet")


def test_status_is_0_only_if_af_xdp_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine: list[Finding] = []
    monkeypatch.setattr(machine_checks, "findings", lambda: machine)
    look_at(monkeypatch, GOOD_NIC)
    assert main(["doctor", "net0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "The best link works: af_xdp on net0."
    machine.append(Finding(Severity.HINT, "headers", "none", "install them"))
    assert main(["doctor", "net0"]) == 0
    machine.append(Finding(Severity.BAD, "kernel", "too old", "another"))
    assert main(["doctor", "net0"]) == 1
    machine.clear()
    look_at(monkeypatch, GOOD_NIC._replace(is_up=False))
    assert main(["doctor", "net0"]) == 1


def by_subject() -> dict[str, Finding]:
    return {finding.subject: finding for finding in machine_checks.findings()}


def test_every_finding_on_this_machine_that_is_wanting_has_a_fix() -> None:
    found = by_subject()
    assert {"kernel", "AF_XDP", "privilege", "pyxdp", "steering", "libraries"} <= set(found)
    for finding in found.values():
        assert bool(finding.fix) == (finding.severity is not Severity.GOOD)


def test_kernel_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "4.19.0-27-amd64")
    assert by_subject()["kernel"].severity is Severity.BAD
    monkeypatch.setattr("platform.release", lambda: "6.1.0-28-amd64")
    assert by_subject()["kernel"].severity is Severity.GOOD


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPERM, errno.ENOMEM])
def test_no_af_xdp_socket(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    assert by_subject()["AF_XDP"].severity is Severity.BAD


def test_no_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_effective_capabilities", lambda: 1 << 12)
    monkeypatch.setattr("resource.getrlimit", lambda which: (8 << 20, 8 << 20))
    found = by_subject()
    assert found["privilege"].text == "without CAP_NET_RAW, CAP_BPF, CAP_PERFMON"
    assert found["locked memory"].severity is Severity.BAD


def test_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pyxdp, "available", lambda: (False, "pyxdp's C part is not there; build"))
    monkeypatch.setattr(machine_checks, "files", lambda package: tmp_path)
    found = by_subject()
    assert found["pyxdp"].severity is Severity.BAD
    assert found["pyxdp"].text == "pyxdp's C part is not there"
    assert found["steering"].severity is Severity.BAD


def test_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "why_not_native", lambda: "it was not built: install it")
    found = by_subject()["native engine"]
    assert found == Finding(
        Severity.HINT,
        "native engine",
        "it was not built; the aioquic engine is used instead",
        "install it",
    )


def test_what_the_native_engine_was_built_against() -> None:
    if why_not_native():
        pytest.skip("the native engine was not built")
    found = by_subject()["native engine"]
    assert found.severity is Severity.GOOD
    assert re.fullmatch(
        r"built; ngtcp2 1\.\d+\.\d+( \(built against .+\))?, GnuTLS 3\.\d+\.\d+.*", found.text
    )


def test_what_was_left_out_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "left_out", lambda: ["xdp"])
    monkeypatch.setattr(pyxdp, "available", lambda: (False, "it was not built; build it"))
    found = by_subject()["pyxdp"]
    assert (found.severity, found.text) == (
        Severity.BAD,
        "left out of the build (HOSTSTACK_WITHOUT)",
    )


def test_kernel_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/named")
    found = by_subject()["headers"]
    assert (found.severity, found.fix) == (Severity.GOOD, "")
    assert "/named" in found.text
