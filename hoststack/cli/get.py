"""`hoststack get`: request URLs over HTTP/3."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

import hoststack
from hoststack.cli.getting import Downloads, Exit, FailedError, Settings
from hoststack.cli.targets import Target, parse_place, parse_target, place_outputs

E = TypeVar("E", bound=BaseException)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `get` to the command line."""
    parser = commands.add_parser(
        "get",
        help="request URLs over HTTP/3",
        description="Requests URLs over HTTP/3, those of one host in parallel over one connection,"
        " and writes their content to standard output or to files. Exit status as curl's:"
        " docs/cli.md.",
    )
    parser.add_argument("urls", metavar="URL", nargs="+", help="https://HOST[:PORT]/PATH")
    _add_request(parser)
    _add_output(parser)
    _add_connection(parser)
    parser.set_defaults(run=_run)


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request")
    group.add_argument("-X", "--request", metavar="METHOD", help="default: GET, with -d POST")
    group.add_argument(
        "-H",
        "--header",
        metavar="FIELD",
        action="append",
        default=[],
        help="'NAME: VALUE'; may be given again",
    )
    group.add_argument(
        "-d",
        "--data",
        metavar="DATA",
        action="append",
        help="content; @FILE is a file's, @- that of standard input; several are joined by '&'",
    )
    group.add_argument("-I", "--head", action="store_true", help="request with HEAD, show fields")
    group.add_argument("-L", "--location", action="store_true", help="follow redirects")
    group.add_argument("-f", "--fail", action="store_true", help="a status of 400 or more fails")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        action="append",
        type=Path,
        help="into a file, given once for each URL; or into a folder, once for all",
    )
    group.add_argument(
        "-O", "--remote-name", action="store_true", help="into files of the URLs' names"
    )
    group.add_argument("-i", "--include", action="store_true", help="show the header fields, too")
    group.add_argument("-v", "--verbose", action="store_true", help="say on stderr what happens")
    group.add_argument(
        "--json",
        action="store_true",
        help="a line of JSON for each URL, with timings, in place of content without -o or -O",
    )


def _add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    trust = group.add_mutually_exclusive_group()
    trust.add_argument("-k", "--insecure", action="store_true", help="accept any certificate")
    trust.add_argument("--cacert", metavar="FILE", help="trust these authorities, PEM")
    group.add_argument("--cert", metavar="FILE", help="the client's certificate, PEM")
    group.add_argument("--key", metavar="FILE", help="its key, PEM")
    group.add_argument("--connect-timeout", metavar="SECONDS", type=_seconds, default=10.0)
    group.add_argument("--max-time", metavar="SECONDS", type=_seconds, help="for each URL")
    group.add_argument(
        "--resolve",
        metavar="HOST:PORT:ADDRESS",
        action="append",
        default=[],
        help="connect to this address for that host and port",
    )
    group.add_argument(
        "--session-file", metavar="FILE", type=Path, help="resume sessions that this file stores"
    )
    group.add_argument(
        "--early-data", action="store_true", help="send in the first flight (0-RTT) if possible"
    )
    group.add_argument("--interface", metavar="IFACE", help="AF_XDP on this interface")
    group.add_argument(
        "--link", choices=("auto", "af_xdp", "udp"), help="default: udp without --interface"
    )
    group.add_argument("--engine", choices=("auto", "native", "aioquic"), default="auto")
    group.add_argument("--socket", metavar="PATH", help="attach to that daemon")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("name a time above 0, of a day at most")
    return value


def _run(options: argparse.Namespace) -> int:
    status = Exit.DONE
    ended_by: BaseException | None = None
    try:
        status = _get(options)
    except* FailedError as group:
        error = _first(group)
        status = error.status
        print(f"hoststack get: {error}", file=sys.stderr)
    except* (BrokenPipeError, KeyboardInterrupt) as interrupts:
        ended_by = _first(interrupts)
    if ended_by is not None:
        raise ended_by  # outside the group: for `main`
    return status


def _get(options: argparse.Namespace) -> Exit:
    targets = _targets(options)
    sessions = _sessions(options)
    downloads = Downloads(_settings(options, sessions))
    trio.run(partial(_get_all, options, downloads, targets))
    if sessions is not None:
        sessions.save(options.session_file)
    return downloads.status


def _first(group: BaseExceptionGroup[E]) -> E:
    found: Any = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    first: E = found
    return first


def _targets(options: argparse.Namespace) -> list[Target]:
    try:
        targets = [parse_target(url) for url in options.urls]
        return place_outputs(targets, options.output or [], by_name=options.remote_name)
    except ValueError as error:
        raise FailedError(Exit.URL, str(error)) from None


def _sessions(options: argparse.Namespace) -> hoststack.SessionCache | None:
    if options.session_file is None:
        if options.early_data:
            raise FailedError(
                Exit.USAGE,
                "--early-data: give --session-file too, as it needs an earlier session's ticket",
            )
        return None
    try:
        return hoststack.SessionCache.load(options.session_file)
    except (OSError, ValueError) as error:
        raise FailedError(Exit.USAGE, f"--session-file: {error}") from None


def _settings(options: argparse.Namespace, sessions: hoststack.SessionCache | None) -> Settings:
    try:
        hoststack.TlsConfig(ca=options.cacert)
    except hoststack.TlsConfigError as error:
        raise FailedError(Exit.CA_FILE, str(error)) from None
    try:
        tls = hoststack.TlsConfig(
            ca=options.cacert,
            verify=not options.insecure,
            certificate=options.cert,
            key=options.key,
            sessions=sessions,
        )
    except hoststack.TlsConfigError as error:
        raise FailedError(Exit.USAGE, str(error)) from None
    try:
        places = dict(parse_place(text) for text in options.resolve)
        headers = [_header(text) for text in options.header]
    except ValueError as error:
        raise FailedError(Exit.USAGE, str(error)) from None
    content = _content(options.data)
    method = "HEAD" if options.head else "GET" if content is None else "POST"
    return Settings(
        method=options.request or method,
        headers=headers,
        content=content,
        tls=tls,
        places=places,
        connect_timeout_s=options.connect_timeout,
        max_time_s=options.max_time or float("inf"),
        follows=options.location,
        fails=options.fail,
        shows_fields=options.include or options.head,
        is_verbose=options.verbose,
        as_json=options.json,
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"-H {text!r}: write it as 'NAME: VALUE'")
    return name.strip(), value.strip()


def _content(data: Sequence[str] | None) -> bytes | None:
    if data is None:
        return None
    parts = []
    for text in data:
        try:
            if text == "@-":
                parts.append(sys.stdin.buffer.read())
            elif text.startswith("@"):
                parts.append(Path(text[1:]).read_bytes())
            else:
                parts.append(os.fsencode(text))
        except (OSError, ValueError) as error:
            raise FailedError(Exit.READ, f"-d {text}: {error}") from None
    return b"&".join(parts)


async def _get_all(
    options: argparse.Namespace, downloads: Downloads, targets: Sequence[Target]
) -> None:
    config = hoststack.QuicConfig(
        early_data=options.early_data, handshake_timeout_s=options.connect_timeout
    )
    try:
        async with _stack(options, config) as stack:
            await downloads.run(stack, targets)
    except (hoststack.LinkError, hoststack.AttachError) as error:
        raise FailedError(Exit.CONNECT, str(error)) from None
    except ValueError as error:
        raise FailedError(Exit.USAGE, str(error)) from None


def _stack(options: argparse.Namespace, config: hoststack.QuicConfig) -> Any:
    if options.socket is not None:
        if options.interface or options.link or options.engine != "auto":
            raise FailedError(
                Exit.USAGE, "--socket: the daemon has the interface, the link and the engine"
            )
        return hoststack.attach(options.socket, name="get", config=config)
    link: Any = options.link or ("auto" if options.interface else "udp")
    return hoststack.open_stack(options.interface, link=link, engine=options.engine, config=config)
