"""HTTP/3 on the memory link, by each layer."""

from __future__ import annotations

import pytest

from hoststack.http3 import about_connection


@pytest.fixture(params=["nghttp3", "aioquic"], autouse=True)
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A layer's name; in this process it is the one that connections take."""
    if request.param not in about_connection.available_layers():
        pytest.skip("nghttp3 was not built in: scripts/bootstrap.sh, then make build")
    monkeypatch.setattr(about_connection, "available_layers", lambda: [request.param])
    return str(request.param)
