"""Both layers of HTTP/3, for tests that ask for it."""

from __future__ import annotations

import pytest

from hoststack.http3 import about_connection


@pytest.fixture(params=["nghttp3", "aioquic"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A layer's name; in this process it is the one that connections take."""
    if request.param not in about_connection.available_layers():
        pytest.skip("nghttp3 was not built in: scripts/bootstrap.sh, then make build")
    monkeypatch.setattr(about_connection, "available_layers", lambda: [request.param])
    return str(request.param)
