"""The README's first example, with a browser that trusts the certificate's CA: told nothing, it
comes by TCP first, and by HTTP/3 afterwards."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from tests.serve.conftest import run_server
from tests.support import chromium
from tests.support.certificates import chain_pem, issued, key_pem

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
    if shutil.which("certutil") is None:
        pytest.skip("certutil is not installed: scripts/bootstrap.sh test brings libnss3-tools")
    for name in ("hypercorn", "fastapi"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[test]'")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [program] = re.findall(r"^```python main.py\n(.*?)^```", readme, re.M | re.S)
    (tmp_path / "main.py").write_text(program)
    root = issued("root")
    leaf = issued("leaf", root, names=["localhost"])
    (tmp_path / "cert.pem").write_bytes(chain_pem(leaf[0]))
    (tmp_path / "key.pem").write_bytes(key_pem(leaf[1]))
    words = ("--certfile", "cert.pem", "--keyfile", "key.pem", "--tcp")
    options = (
        # Of this host, whatever the port, Chromium accepts HTTP/3 with a certificate of no public
        # CA. Another port than the server's: nothing is forced there.
        "--origin-to-force-quic-on=localhost:1",
        "--host-resolver-rules=MAP localhost 127.0.0.1",
    )
    with (
        run_server(tmp_path, "main:app", *words) as served,
        chromium.started(*options, authority=chain_pem(root[0])) as browser,
    ):
        browser.go(f"https://localhost:{served.port}/")
        first = browser.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert first in ("h2", "http/1.1")
        assert browser.run(_ASK)[-1] == "h3"
        browser.go(f"https://localhost:{served.port}/")
        assert '{"http":"3"}' in browser.evaluate("document.body.innerText")
        assert served.stop() == 0
