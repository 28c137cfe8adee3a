"""`hoststack serve` with two engines and two applications, and clients whose addresses change: each
request reaches the application that has its connection, and none fails."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.daemon.conftest import PATIENCE_S
from tests.serve.conftest import run_server, write_application
from tests.support.moving import Outcome, ask_while_moving

CONNECTIONS, MOVES = 10, 3


def test_clients_move_and_no_request_fails(tmp_path: Path) -> None:
    async def ask(port: int) -> Outcome:
        with trio.fail_after(PATIENCE_S):
            return await ask_while_moving(f"127.0.0.1:{port}", CONNECTIONS, MOVES, 0)

    write_application(tmp_path)
    words = ("--workers", "2", "--apps", "2", "--cli-socket", str(tmp_path / "cli.sock"))
    with run_server(tmp_path, "main:app", *words) as served:
        outcome = trio.run(ask, served.port)
        assert served.stop() == 0
    assert (outcome.failures, outcome.stuck) == ([], [])
    assert outcome.moves == CONNECTIONS * MOVES
    assert outcome.requests > CONNECTIONS * MOVES
    assert "Traceback" not in served.log
