"""`hoststack serve`: an HTTP/3 server of ASGI applications and files."""

from __future__ import annotations

import argparse
import os
import sys

from hoststack.serve.options import PREFIX, add_options, read_settings
from hoststack.serve.settings import ServeError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="serve an ASGI application, or files, over HTTP/3",
        description="Serves an ASGI application such as FastAPI's, or a folder of files, over "
        "HTTP/3. SIGTERM and Ctrl-C end it when the requests in progress have ended, a second one "
        "at once; SIGHUP reads the certificates again.",
        epilog=f"Each option is also an environment variable ({PREFIX}CERTFILE; several values "
        "have commas between them) and a setting in the TOML file of --config (certfile). Options "
        "override variables, and variables the file. Exit status: 0 it was told to end; 1 it could "
        "not go on; 2 wrong settings; 3 the application failed at its start.",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # Imported here: other commands need none of it, and --help neither.
    from hoststack.serve.command import serve

    try:
        return serve(read_settings(options, os.environ))
    except ServeError as error:
        print(f"hoststack: {error}", file=sys.stderr)
        return error.status
