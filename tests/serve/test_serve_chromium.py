"""The README's first example, with a browser: told nothing, it comes by TCP first, and by HTTP/3
afterwards."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.serve.conftest import run_server
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
    for name in ("hypercorn", "fastapi"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[test]'")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [program] = re.findall(r"^```python main.py\n(.*?)^```", readme, re.M | re.S)
    (tmp_path / "main.py").write_text(program)
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
        browser.go(f"https://localhost:{served.port}/")
        assert '{"http":"3"}' in browser.evaluate("document.body.innerText")
        assert served.stop() == 0
