"""What lines the debug CLI understands, and what it says of others."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoststack.control.commands import MAX_LINE_CHARACTERS, SPECS, complete, help_about, parse
from hoststack.control.grammar import Command, CommandError

URI = "quic://10.0.0.1:1234"


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        ("help", "help", {"about": ""}),
        ("help show  ses", "help", {"about": "show ses"}),
        ("session enable", "session enable", {}),
        ("  ses   dis ", "session disable", {}),
        ("show session", "show session", {}),
        ("sh ses", "show session", {}),
        ("show session verbose", "show session", {"verbose": 1}),
        ("sh ses v 2", "show session", {"verbose": 2}),
        (
            "show session verbose thread 1 index 7",
            "show session",
            {"verbose": 1, "worker": 1, "index": 7},
        ),
        ("sh q v", "show quic", {"verbose": 1}),
        ("cl e", "clear errors", {}),
        ("quic set cc bbr", "quic set cc", {"cc": "bbr"}),
        ("q s c cu", "quic set cc", {"cc": "cubic"}),
        ("quic set fifo-size 64k", "quic set fifo-size", {"fifo_bytes": 65536}),
        ("quic set fifo-size 2Mb", "quic set fifo-size", {"fifo_bytes": 2 << 20}),
        ("test echo server uri quic://10.0.0.1/1234", "test echo server", {"uri": URI}),
        ("test echo server stop", "test echo server", {"stop": True}),
        (
            f"te e s no-echo fifo-size 4096 u {URI}",
            "test echo server",
            {"uri": URI, "fifo_bytes": 4096, "no_echo": True},
        ),
        (f"test echo client uri {URI}", "test echo clients", {"uri": URI}),
        (
            f"test echo clients uri {URI} nclients 3 streams 4 mbytes 2 test-t 1.5 test-b",
            "test echo clients",
            {
                "uri": URI,
                "clients": 3,
                "streams": 4,
                "bytes": 2 << 20,
                "test_timeout_s": 1.5,
                "check": True,
            },
        ),
        (
            f"test echo client uri {URI} quic-streams 2 gbytes 1 no-return syn-timeout 3",
            "test echo clients",
            {
                "uri": URI,
                "streams": 2,
                "bytes": 1 << 30,
                "no_return": True,
                "connect_timeout_s": 3.0,
            },
        ),
        (
            f"test echo client uri {URI} bytes 10k",
            "test echo clients",
            {"uri": URI, "bytes": 10240},
        ),
        (
            "session rule add proto quic  10.0.0.0/8 allow",
            "session rule add",
            {"rule": "proto quic 10.0.0.0/8 allow"},
        ),
        ("app ns add id blue secret 1234", "app ns add", {"id": "blue", "secret": "1234"}),
    ],
)
def test_lines_that_are_commands(line: str, name: str, arguments: dict[str, object]) -> None:
    command = parse(line)
    assert command == Command(name, arguments)
    assert pickle.loads(pickle.dumps(command)) == command
    assert json.loads(json.dumps(command.arguments)) == arguments


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "a command needs another word: app, clear, help, quic, session, show, test"),
        ("shwo session", "unknown word 'shwo': expected app, clear, help"),
        ("s session", "'s' is ambiguous: session, show"),
        ("show", "'show' needs another word: app, errors, quic, session, udp, workers, xdp"),
        ("show sesion", "unknown word 'sesion': expected app, errors"),
        ("show udp now", "unknown word 'now': no further word is expected here"),
        ("show app now", "unknown word 'now': expected ns"),
        ("show session verbos2", "unknown word 'verbos2': expected index, limit, thread"),
        ("show session verbose 9", "'9' after 'verbose': expected a number from 0 to 3"),
        ("show session verbose 1 verbose 2", "'verbose' is given twice"),
        ("show session index", "'index' needs another word: N"),
        ("quic set cc", "'quic set cc' needs another word: cubic|bbr|reno"),
        ("quic set cc vegas", "'vegas' after 'quic set cc': expected one of cubic, bbr, reno"),
        ("quic set fifo-size 12", "expected a size of 1024 to 1073741824 bytes"),
        ("quic set fifo-size 9999999999999999999999", "expected a size of"),
        ("test echo server", "needs uri URI, or stop"),
        ("test echo client nclients 3", "'test echo clients' needs uri URI"),
        ("test echo client uri udp://10.0.0.1:1", "the scheme 'udp' is not known here"),
        (f"test echo client uri {URI} nclients 0", "expected a number from 1 to 65536"),
        (f"test echo client uri {URI} test-timeout 0", "expected seconds, more than 0"),
        (f"test echo client uri {URI} bytes 1 mbytes 1", "'mbytes' is given twice, or conflicts"),
        ("session rule add", "'session rule add' needs more words: session rule add [appns ID]"),
        ("app ns add id blue", "'app ns add' needs secret SECRET"),
        ("x" * 100, "unknown word 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'"),
        ("show " + "x" * MAX_LINE_CHARACTERS, "a line has 4096 characters at most"),
    ],
)
def test_lines_that_are_none(line: str, said: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["app", "clear", "help", "quic", "session", "show", "test", "tls"]),
        ("s", ["session", "show"]),
        ("sh ", ["app", "errors", "quic", "session", "udp", "workers", "xdp"]),
        ("sh s", ["session"]),
        ("show session ", ["index", "limit", "thread", "verbose"]),
        ("show session verbose ", ["index", "limit", "thread"]),
        ("show session verbose 2 t", ["thread"]),
        ("show session index ", []),
        ("quic set ", ["cc", "fifo-size"]),
        ("quic set cc ", ["bbr", "cubic", "reno"]),
        ("quic set cc c", ["cubic"]),
        ("quic set cc cubic ", []),
        (f"test echo client uri {URI} te", ["test-bytes", "test-timeout"]),
        (f"test echo client uri {URI} bytes 1 m", []),
        ("help sh", ["show"]),
        ("help show s", ["session"]),
        ("nonsense ", []),
        ("show nonsense ", []),
        ("x" * (MAX_LINE_CHARACTERS + 1), []),
    ],
)
def test_completion(line: str, words: list[str]) -> None:
    assert complete(line) == words


def test_no_command_begins_with_another_one() -> None:
    for one in SPECS:
        for other in SPECS:
            assert one is other or other.words[: len(one.words)] != one.words


def test_the_manual_has_every_command_and_option() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "ctl.md").read_text(encoding="utf-8")
    for spec in SPECS:
        assert f"`{spec.name}" in manual, spec.name
        for option in spec.options:
            assert re.search(rf"[`\[ ]{option.keyword}[\] `]", manual), option.keyword


def test_help() -> None:
    assert list(SPECS) == help_about("")
    assert [spec.name for spec in help_about("quic set")] == ["quic set cc", "quic set fifo-size"]
    assert [spec.name for spec in help_about("sh se verbose")] == ["show session"]
    with pytest.raises(CommandError, match="there is no command 'quack'"):
        help_about("quack")


def understood(line: str) -> tuple[Command | None, str]:
    """The command, or else the error."""
    try:
        return parse(line), ""
    except CommandError as error:
        return None, str(error)


WORDS = st.one_of(
    st.sampled_from(
        sorted(
            {word for spec in SPECS for word in spec.words}
            | {option.keyword for spec in SPECS for option in spec.options}
            | {URI, "0", "1", "64k", "1.5", "-1", "9" * 30, "quic://[::1]:1", "id", "٣"}
        )
    ),
    st.text(max_size=8),
)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=9).map(" ".join)))
def test_any_line_is_a_command_or_an_error(line: str) -> None:
    complete(line)
    command, said = understood(line)
    if command is None:
        assert said
        assert said.isprintable()
    else:
        assert json.loads(json.dumps(command.arguments)) == command.arguments


@settings(deadline=None)
@given(st.data())
def test_what_completion_offers_can_stand_there(data: st.DataObject) -> None:
    line = ""
    while words := complete(line):
        line += data.draw(st.sampled_from(words)) + " "
        _, said = understood(line)
        assert "unknown" not in said
        assert "is given twice" not in said
