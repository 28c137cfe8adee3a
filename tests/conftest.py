"""What all tests share: what root is needed for, and namespaces joined by a veth pair."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest

from hoststack.worker import engines
from tests.support import netns


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_root: makes network namespaces, loads XDP programs")
    config.addinivalue_line("markers", "alone: looks at the whole machine, or at the time")
    # What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until the tests are collected


#: Files whose tests take half a minute and more together. They come first: at the end, one of them
#: would keep one process busy while the others have nothing left.
LONG = (
    "test_quic_echo_udp.py",
    "test_sanitizers.py",
    "test_packaging.py",
    "test_corpus.py",
    "test_http3_gtlsclient.py",
    "test_programs.py",
    "test_in_daemon.py",
    "test_quic_echo_af_xdp.py",
    "test_lossy_hop.py",
    "test_docs.py",
    "test_serve_command.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    # What is there now stays. Collections that look at it take half a second each.
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root") and (why := netns.why_not()):
        pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests of malformed text log has to reach the process that reports: as UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(params=["native", "aioquic"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A QUIC engine's name; in this process "auto" takes that one. Tests run once with each."""
    if request.param not in engines.available_engines():
        pytest.skip(
            f"the {request.param} engine was not built: scripts/bootstrap.sh, then make build"
        )
    monkeypatch.setattr(engines, "available_engines", lambda: [request.param])
    return str(request.param)


@pytest.fixture
def veth_pair() -> Iterator[netns.VethPair]:
    """Two namespaces joined by a veth pair."""
    with netns.veth_pair() as pair:
        yield pair


@pytest.fixture
def make_veth_pair() -> Iterator[Callable[..., netns.VethPair]]:
    """The same, with an MTU and a number of queues of one's own."""
    with ExitStack() as undo:
        yield lambda **options: undo.enter_context(netns.veth_pair(**options))
