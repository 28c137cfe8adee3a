"""HTTP/3: our server, and clients in Python by others."""

from __future__ import annotations

import pytest

from tests.apps.http3.processes import ADDRESS

SESSIONS = 20
SIZES = (0, 6, 1000, 100_000)


@pytest.mark.parametrize("profile", ["chrome", "safari"])
def test_curl_as_browsers_send(port: int, profile: str) -> None:
    """curl, with nghttp3 or quiche below it, loses no response in 20 sessions: none waits for an
    entry of QPACK's table that is still on its way. Its Firefox connects to no server."""
    requests = pytest.importorskip("curl_cffi", reason="curl_cffi is not installed").requests
    from curl_cffi import CurlHttpVersion

    for _ in range(SESSIONS):
        with requests.Session(
            impersonate=profile, verify=False, http_version=CurlHttpVersion.V3ONLY
        ) as session:
            for size_bytes in SIZES:
                headers = {"x-custom": "a value that comes again"}
                url = f"https://{ADDRESS}:{port}/{size_bytes}"
                response = session.get(url, headers=headers, timeout=60)
                assert (response.status_code, len(response.content)) == (200, size_bytes)


@pytest.mark.filterwarnings("ignore")
def test_niquests(port: int) -> None:
    niquests = pytest.importorskip("niquests", reason="niquests is not installed")
    for _ in range(SESSIONS):
        with niquests.Session(disable_http1=True, disable_http2=True) as session:
            session.quic_cache_layer.add_domain(ADDRESS, port)
            for size_bytes in SIZES:
                url = f"https://{ADDRESS}:{port}/{size_bytes}"
                response = session.get(url, verify=False, timeout=60)
                assert (response.status_code, len(response.content)) == (200, size_bytes)
                assert response.http_version == 30
