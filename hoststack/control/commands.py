"""The commands of the debug CLI, named as in VPP."""

from __future__ import annotations

from typing import Final

from hoststack.boundary.protocols import Protocol
from hoststack.control.grammar import (
    Choice,
    Command,
    CommandError,
    Number,
    Option,
    Seconds,
    Size,
    Spec,
    Text,
    UriText,
    completions,
    find_spec,
    read_arguments,
    shown,
)

#: The longest line; nothing longer is typed by hand.
MAX_LINE_CHARACTERS: Final = 4096

#: Valid FIFO sizes, as in hoststack/native/memory/fifo.py, limited to what a connection can use.
_FIFO: Final = Size("SIZE", 1024, 1 << 30)
#: Parsed by hoststack/session/rules.py.
_RULE: Final = (
    "[appns ID] [scope local|global|all] proto quic|tcp|udp LOCAL/LENGTH PORT REMOTE/LENGTH PORT"
)
_MOST_BYTES: Final = 1 << 50
#: Protocols whose connections have streams.
ECHO_PROTOCOLS: Final[tuple[Protocol, ...]] = ("quic", "tcp")
#: The application protocol (ALPN) of `test echo`.
ECHO_ALPN: Final = ("echo",)

SPECS: Final = (
    Spec(("help",), "this list, or the grammar of a command", rest="about", rest_name="COMMAND"),
    Spec(("session", "enable"), "allow new connections and listeners"),
    Spec(("session", "disable"), "refuse new connections and listeners; existing ones continue"),
    Spec(
        ("test", "echo", "server"),
        "listen, and send received data back; or stop",
        options=(
            Option("stop", "stop"),
            Option("uri", "uri", UriText(ECHO_PROTOCOLS)),
            Option("fifo-size", "fifo_bytes", _FIFO),
            Option("no-echo", "no_echo"),
        ),
    ),
    Spec(
        ("test", "echo", "clients"),
        "connect, send on streams, and measure",
        options=(
            Option("uri", "uri", UriText(ECHO_PROTOCOLS), is_required=True),
            Option("nclients", "clients", Number("N", 1, 65536)),
            Option("streams", "streams", Number("M", 1, 65536)),
            Option("quic-streams", "streams", Number("M", 1, 65536)),
            Option("bytes", "bytes", Size("B", 1, _MOST_BYTES)),
            Option("mbytes", "bytes", Size("B", 1, _MOST_BYTES, shift=20)),
            Option("gbytes", "bytes", Size("B", 1, _MOST_BYTES, shift=30)),
            Option("test-timeout", "test_timeout_s", Seconds()),
            Option("syn-timeout", "connect_timeout_s", Seconds()),
            Option("test-bytes", "check"),
            Option("no-return", "no_return"),
            Option("fifo-size", "fifo_bytes", _FIFO),
        ),
    ),
    Spec(
        ("show", "session"),
        "sessions: counts, a list (verbose), with all their layers (verbose 2)",
        options=(
            Option("verbose", "verbose", Number("N", 0, 3), without=1),
            Option("thread", "worker", Number("N", 0, 255)),
            Option("index", "index", Number("N", 0, (1 << 32) - 1)),
            Option("limit", "limit", Number("N", 1, 100_000)),
        ),
    ),
    Spec(
        ("show", "quic"),
        "counters of the QUIC engines, and settings of new connections",
        options=(Option("verbose", "verbose", Number("N", 0, 1), without=1),),
    ),
    Spec(("show", "xdp"), "the steering program's verdicts, and the AF_XDP sockets"),
    Spec(
        ("show", "app"),
        "applications, and how many sessions they have; or the namespaces (ns)",
        options=(Option("ns", "namespaces"),),
    ),
    Spec(("show", "errors"), "what was dropped, by reason"),
    Spec(("show", "workers"), "the workers, their links, engines and load"),
    Spec(("show", "udp"), "UDP ports in use, and datagrams"),
    Spec(("tls", "reload"), "ask applications to read their certificates again"),
    Spec(("clear", "errors"), "start error counts from zero"),
    Spec(
        ("quic", "set", "cc"),
        "congestion control of new connections that name none",
        values=(("cc", Choice(("cubic", "bbr", "reno"))),),
    ),
    Spec(
        ("quic", "set", "fifo-size"),
        "FIFOs, and so windows, of new connections that name none",
        values=(("fifo_bytes", _FIFO),),
    ),
    Spec(
        ("session", "rule", "add"),
        "allow or deny connections between two prefixes; port 0 is any",
        rest="rule",
        needs_rest=True,
        rest_name=f"{_RULE} action allow|deny [tag TAG]",
    ),
    Spec(
        ("session", "rule", "del"),
        "delete the rule between two prefixes",
        rest="rule",
        needs_rest=True,
        rest_name=_RULE,
    ),
    Spec(("session", "rule", "show"), "the session rules, the most specific first"),
    Spec(
        ("app", "ns", "add"),
        "add a namespace for applications, or change its secret and scopes",
        options=(
            Option("id", "id", Text("ID"), is_required=True),
            Option("secret", "secret", Text("SECRET", 256), is_required=True),
            Option("scope", "scope", Choice(("local", "global", "all"))),
        ),
    ),
)


def parse(line: str) -> Command:
    """Parse a line; raises CommandError."""
    if len(line) > MAX_LINE_CHARACTERS:
        raise CommandError(f"a line has {MAX_LINE_CHARACTERS} characters at most")
    words = line.split()
    spec, depth = find_spec(words, SPECS)
    arguments = read_arguments(spec, words[depth:])
    if spec.name == "test echo server" and not ("uri" in arguments or "stop" in arguments):
        raise CommandError(f"'test echo server' needs uri URI, or stop: {spec.usage}")
    return Command(spec.name, arguments)


def complete(line: str) -> list[str]:
    """Return completions of a line's last word, or of the next word after a trailing space.

    The words after `help` are those of commands.
    """
    if len(line) > MAX_LINE_CHARACTERS:
        return []
    words = line.split(maxsplit=1)
    if words and "help".startswith(words[0]) and len(words[0]) < len(line.lstrip()):
        return completions(words[1] if len(words) > 1 else "", SPECS)
    return completions(line, SPECS)


def help_about(line: str) -> list[Spec]:
    """Return the commands that start with a line's words; raises CommandError for none."""
    words = line.split()
    found = [
        spec
        for spec in SPECS
        if all(full.startswith(word) for full, word in zip(spec.words, words, strict=False))
    ]
    if not found:
        raise CommandError(f"there is no command {shown(line)}: `help` lists them")
    return found
