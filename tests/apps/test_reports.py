"""What quic_echo says: checks of bytes, progress, and reports."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from apps.quic_echo import options
from apps.quic_echo.crew import Crew
from apps.quic_echo.main import main
from apps.quic_echo.options import parse_options
from apps.quic_echo.progress import progress_line, show_progress
from apps.quic_echo.record import Record
from apps.quic_echo.report import json_report, text_report
from apps.quic_echo.timing import Timing
from apps.quic_echo.usage import USAGE


def make_crew(words: str) -> Crew:
    return Crew(parse_options([*words.split(), "uri", "quic://127.0.0.1:1"]), Timing())


def make_record(words: str = "client") -> Record:
    return make_crew(words).records[0]


def data(offset: int, size: int) -> memoryview:
    return memoryview(bytes((offset + index) & 0xFF for index in range(size)))


@pytest.mark.parametrize("offset", [0, 1, 255, 256, 1000003])
def test_right_bytes(offset: int) -> None:
    record = make_record("client test-bytes rx-buf 64K")
    record.check_bytes("stream", offset, data(offset, 65536))
    assert record.wrong_bytes == 0
    assert record.exit_status == 0


def test_wrong_bytes_are_counted_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record("client test-bytes")
    wrong = bytearray(data(5, 1000))
    wrong[7] ^= 1
    wrong[999] ^= 1
    record.check_bytes("stream", 5, memoryview(wrong))
    assert record.wrong_bytes == 2
    assert record.exit_status == 1
    assert "stream byte 12 was 0x0d, expected 0x0c" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "ends"), [("test-bytes", False), ("test-bytes:assert", True)])
def test_assert_ends_the_run_at_the_first_wrong_byte(word: str, ends: bool) -> None:
    async def receive_a_wrong_byte() -> None:
        crew = make_crew(f"client {word}")
        record = crew.records[0]
        crew.join(record)
        record.check_bytes("stream", 0, memoryview(b"\1"))
        await trio.testing.wait_all_tasks_blocked()
        assert record.scope.cancel_called is ends

    trio.run(receive_a_wrong_byte)


def test_failures_are_told_once_and_not_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    for number in range(100):
        record.fail(f"failure {number}")
        record.fail(f"failure {number % 3}")
    assert len(capsys.readouterr().err.splitlines()) < 20
    assert "and 90 more" in json.loads(json_report(record))["results"]["fail_descr"]


def test_progress_line() -> None:
    crew = make_crew("client TX=1M nclients 2/2")
    crew.records[0].tx_bytes = crew.records[0].rx_bytes = 1 << 20
    line = progress_line(2.0, 1 << 20, 250_000, crew)
    assert line == "TX 4.194 Mb/s, RX 1.000 Mb/s, 25 %"
    assert progress_line(1.0, 0, 250_000_000, make_crew("server")) == "TX 0 b/s, RX 2.000 Gb/s"


@pytest.mark.parametrize(
    ("words", "is_terminal", "expected"),
    [
        ("client", True, "\r\x1b[KTX 0 b/s"),
        ("client", False, ""),
        ("client log=0", True, ""),
        ("client stats 3", False, "quic_echo: TX 0 b/s, RX 0 b/s"),
    ],
)
def test_progress_on_terminals_alone(
    words: str,
    is_terminal: bool,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)

    async def watch_for_10_seconds() -> None:
        with trio.move_on_after(10):
            await show_progress(make_crew(words))

    trio.run(watch_for_10_seconds, clock=trio.testing.MockClock(autojump_threshold=0))
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert bool(err) == bool(expected)


def test_the_threads_of_a_run_in_one_report() -> None:
    crew = make_crew("client socket-name here nthreads 3 nclients 8")
    assert [record.options.connections for record in crew.records] == [3, 3, 2]
    for number, record in enumerate(crew.records, 1):
        record.tx_bytes = number
        record.counts.connected.q = number
    crew.records[2].fail("the third one's", status=1)
    assert (crew.tx_bytes, crew.rx_bytes) == (6, 0)
    report = json.loads(json_report(crew.total()))
    assert report["tx_data"] == 6
    assert report["closing"]["connected"] == {"q": 6, "s": 0}
    assert report["results"] == {"has_failed": 1, "fail_descr": "the third one's"}


def test_a_report_without_the_events_it_should_time() -> None:
    record = make_record("client time sconnect:lastbyte")
    assert "Missing Start Timing Event (sconnect)!" in text_report(record)
    report = json.loads(json_report(record))
    assert report["start_evt_missing"]
    assert report["end_evt_missing"]
    assert report["rx_bits_per_second"] == 0


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "--help"]) == 0
    assert capsys.readouterr().out == USAGE


@pytest.mark.parametrize("word", [*options._FLAGS, *options._VALUES, *options._EQUALS])
def test_help_and_docs_have_every_word(word: str) -> None:
    docs = Path(__file__).parents[2] / "docs" / "quic_echo.md"
    for text in (USAGE.replace("[:assert]", " test-bytes:assert"), docs.read_text()):
        assert re.search(rf"(?m)(^ +|`|\s){re.escape(word)}\b", text), word
