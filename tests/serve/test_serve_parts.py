"""What the manager of `hoststack serve` is made of: watched files, progress."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from hoststack.serve.children import socket_pair
from hoststack.serve.manager import Manager
from hoststack.serve.orders import Counts, End, Failed, Ready, Start
from hoststack.serve.progress import Progress
from hoststack.serve.settings import ServeSettings
from hoststack.serve.watching import Watched, sources


def test_a_change_is_reported_once_it_is_over(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    one.write_text("1")
    watched = Watched(lambda: (str(one), str(two)))
    assert watched.changed() == []
    one.write_text("12")
    assert watched.changed() == []
    two.write_text("new")
    assert watched.changed() == [], "the other file has only begun to change"
    assert watched.changed() == [str(one), str(two)]
    assert watched.changed() == []
    two.unlink()
    assert [watched.changed(), watched.changed()] == [[], [str(two)]]


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As certbot and Kubernetes replace files."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cert.pem").write_text(name)
    (tmp_path / "live").symlink_to("first")
    path = str(tmp_path / "live" / "cert.pem")
    watched = Watched(lambda: (path,))
    (tmp_path / "next").symlink_to("second")
    os.replace(tmp_path / "next", tmp_path / "live")
    assert [watched.changed(), watched.changed()] == [[], [path]]


def test_sources_are_the_program_not_its_environment(tmp_path: Path) -> None:
    for name in ("main.py", "notes.txt", "pack/part.py", ".git/hook.py", "env/lib/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    found = {os.path.relpath(path, tmp_path) for path in sources([str(tmp_path)])}
    assert found == {"main.py", "pack/part.py"}


class Child:
    """An application that does nothing."""

    pid = 0

    def __init__(self) -> None:
        ours, theirs = socket_pair()
        self.end, self.its_end = End(ours), End(theirs)
        self.started_s = time.monotonic()
        self.is_killed = False

    def fileno(self) -> int:
        return self.its_end.fileno()

    def kill(self) -> None:
        self.is_killed = True

    def status(self) -> int:
        return -9

    def close(self) -> None:
        self.end.close()


def managing(settings: ServeSettings) -> tuple[Manager, Child]:
    child = Child()
    manager = Manager(settings, [], [], [], here=child)  # type: ignore[arg-type]
    manager._tick()
    return manager, child


def test_settings_reach_the_application_as_they_are() -> None:
    settings = ServeSettings(
        root="/caf\udce9", graceful_timeout=float("inf"), bind=("127.0.0.1:1", "[::1]:1")
    )
    _, child = managing(settings)
    [(order, _)] = child.its_end.orders() or ()
    assert isinstance(order, Start)
    assert order.read() == settings
    child.its_end.send(Failed("no /caf\udce9", 2))
    assert child.end.reports() == [Failed("no /caf\\udce9", 2)]


@pytest.mark.parametrize("is_ready", [False, True])
def test_an_application_that_has_not_started_is_not_waited_for(is_ready: bool) -> None:
    manager, child = managing(ServeSettings(app="a:b", graceful_timeout=1000))
    if is_ready:
        child.its_end.send(Ready())
        manager._on_reports(manager._slots[0])
    manager._stop()
    assert (manager._slots[0].kill_at_s - time.monotonic() < 100) == (not is_ready)
    manager._slots[0].kill_at_s = 0
    manager._tick()
    assert child.is_killed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    for stream, shown in (
        (io.StringIO(), ""),
        (Terminal(), "\r\x1b[K500 requests/s, 3 errors, 1.000 Gbit/s\r\x1b[K"),
    ):
        progress = Progress(stream)
        progress.show(10.0, [Counts(100, 0, 0)])
        progress.show(10.5, [Counts(9999, 9, 0)])
        progress.show(12.0, [Counts(600, 1, 0), Counts(500, 2, 250_000_000)])
        progress.clear()
        progress.clear()
        assert stream.getvalue() == shown
