"""A browser that was told nothing comes by TCP first, and by HTTP/3 afterwards."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.serve.conftest import run_server, write_application
from tests.support import chromium
from tests.support.certificates import self_signed

#: Asks until it comes by HTTP/3, and returns the protocols.
_ASK = """
const seen = [];
while (seen.at(-1) != "h3" && seen.length < 500) {
    const url = `${location.origin}/?${seen.length}`;
    await (await fetch(url)).text();
    seen.push(performance.getEntriesByName(url)[0].nextHopProtocol);
    performance.clearResourceTimings();
}
return seen;
"""


def test_chromium_finds_http3_by_alt_svc(tmp_path: Path) -> None:
    if why := chromium.why_not():
        pytest.skip(why)
    if importlib.util.find_spec("hypercorn") is None:
        pytest.skip("hypercorn is not installed: pip install '.[test]'")
    write_application(tmp_path)
    certificate, key = self_signed(ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    words = ("--certfile", "cert.pem", "--keyfile", "key.pem", "--tcp")
    options = (
        f"--ignore-certificate-errors-spki-list={chromium.key_hash(certificate)}",
        # Of this host, whatever the port, Chromium accepts HTTP/3 with a certificate of no public
        # CA. Another port than the server's: nothing is forced there.
        "--origin-to-force-quic-on=localhost:1",
        "--host-resolver-rules=MAP localhost 127.0.0.1",
    )
    with run_server(tmp_path, "main:app", *words) as served, chromium.started(*options) as browser:
        browser.go(f"https://localhost:{served.port}/")
        first = browser.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert first in ("h2", "http/1.1")
        assert browser.run(_ASK)[-1] == "h3"
        assert served.stop() == 0
