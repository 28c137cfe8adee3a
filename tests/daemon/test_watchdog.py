"""A worker that hangs is replaced, and the log says in what; one that merely waits is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hoststack.boundary.silence import Sample, counted_s, sample, whereabouts
from tests.daemon.conftest import PATIENCE_S, MakeDaemon


@pytest.mark.parametrize(
    ("state", "ran_s", "waited_s", "counts_s"),
    [
        ("S", 0.0, 0.0, 1.0),  # blocked in the kernel
        ("D", 0.0, 0.0, 1.0),
        ("T", 0.0, 0.0, 1.0),  # stopped by a signal
        ("R", 1.0, 0.0, 1.0),  # a loop without end
        ("R", 0.1, 0.9, 0.1),  # the same beside nine others
        ("R", 0.0, 0.0, 0.0),  # wants to run, and the kernel lets others
        ("S", 0.2, 0.7, 0.3),
        ("S", 0.0, 5.0, 0.0),  # it waited longer than this process looked
        ("t", 0.0, 0.0, 0.0),  # a debugger's
    ],
)
def test_what_counts(state: str, ran_s: float, waited_s: float, counts_s: float) -> None:
    before, now = Sample("S", 7.0, 3.0), Sample(state, 7.0 + ran_s, 3.0 + waited_s)
    assert counted_s(before, now, 1.0) == pytest.approx(counts_s)


@contextmanager
def child(program: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-c", f"print('here', flush=True); {program}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        try:
            yield process
        finally:
            process.kill()


def test_samples_of_real_processes() -> None:
    with child("import time; time.sleep(1000)") as sleeping:
        while (found := sample(sleeping.pid)) is None or found.state != "S":
            pass
        assert found.ran_s > 0
        assert "state S" in whereabouts(sleeping.pid)
        sleeping.send_signal(signal.SIGSTOP)
        while (found := sample(sleeping.pid)) is None or found.state != "T":
            pass
    assert sample(sleeping.pid) is None
    with child("exec('while True: pass')") as busy:
        first = sample(busy.pid)
        assert first is not None
        while (now := sample(busy.pid)) is None or now.ran_s < first.ran_s + 0.05:
            pass


def test_a_worker_that_is_stopped_is_replaced(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--workers", "2", "--watchdog-seconds", "2")
    assert daemon.ctl("show workers")
    pid = daemon.worker_pid(1)
    os.kill(pid, signal.SIGSTOP)
    daemon.wait_for(
        rf"worker process {pid} has not answered for \d\.\d s and is replaced; it hung in"
    )
    daemon.wait_for("worker 1 is process", 2)
    assert "state T" in daemon.log
    assert re.search(r"worker 1 died \(SIG(KILL|ABRT)\)", daemon.log)
    assert daemon.worker_pid(1) != pid
    assert daemon.ctl("show workers")
    assert "worker 0 died" not in daemon.log


def test_the_log_says_in_what_it_hung(
    make_daemon: MakeDaemon,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stack, of the process that hung; the one in its place is well."""
    folder = tmp_path_factory.mktemp("hanging")
    flag = folder / "has_hung"
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('worker_main' in word for word in sys.orig_argv):\n"
        f"    FLAG = {str(flag)!r}\n"
        "    import os, atexit\n"
        "    if not os.path.exists(FLAG):\n"
        "        open(FLAG, 'w').close()\n"
        "        from hoststack.worker.worker import Worker\n"
        "        async def a_turn_that_does_not_end(self):\n"
        "            os.read(os.pipe()[0], 1)\n"
        "        Worker.wait_turn = a_turn_that_does_not_end\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    daemon = make_daemon("--watchdog-seconds", "2")
    daemon.wait_for("has not answered for .*it hung in: state S")
    daemon.wait_for("a_turn_that_does_not_end")
    daemon.wait_for("worker 0 is process", 2)
    assert daemon.ctl("show workers")


def test_a_worker_that_is_starved_is_not_shot(make_daemon: MakeDaemon) -> None:
    """It gets next to no processor time for three times as long as it may hang."""
    daemon = make_daemon("--watchdog-seconds", "1")
    pid = daemon.worker_pid(0)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {core})
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    is_over = threading.Event()
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        for hog in hogs:
            os.sched_setaffinity(hog.pid, {core})
        is_over.wait(3)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait(PATIENCE_S)
    assert "has not answered" not in daemon.log
    assert daemon.worker_pid(0) == pid
