"""A headless Chromium, driven over its DevTools protocol.

The protocol runs over two pipes (`--remote-debugging-pipe`), so no port and no library are needed,
and the browser ends when the pipes are closed: also when the tests are killed.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

#: The shell is Chromium without windows, and a third of its size.
_NAMES: Final = ("chromium-headless-shell", "chromium")
_OPTIONS: Final = (
    "--headless",
    "--no-sandbox",  # refuses to run as root
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
_PATIENCE_S: Final = 60.0


class PageError(Exception):
    """A script in the page threw, or its promise was rejected; or the browser ended."""


def find() -> str | None:
    """Return Chromium's path, if it is installed."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


def why_not() -> str:
    """Return why there is no Chromium; "" if there is one."""
    return "" if find() else "no Chromium: scripts/bootstrap.sh test installs it"


def key_hash(certificate: bytes) -> str:
    """Return what `--ignore-certificate-errors-spki-list` takes, for a certificate in PEM."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode()


def certificate_hash(certificate: bytes) -> list[int]:
    """Return what WebTransport's `serverCertificateHashes` takes. The certificate must have a P-256
    key, and be valid for at most 14 days."""
    return list(x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()))


class Chromium:
    """A browser with one page. A method blocks: call it in a thread (`trio.to_thread.run_sync`)."""

    def __init__(self, process_id: int, to_browser: int, to_us: int) -> None:
        self.process_id = process_id
        self._to_browser, self._to_us = to_browser, to_us
        self._received = b""
        self._last_id = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self._call("Page.enable")

    def go(self, url: str, *, patience_s: float = _PATIENCE_S) -> None:
        """Open a page, and wait until it has loaded. Raises PageError if that fails."""
        found = self._call("Page.navigate", patience_s, url=url)
        if found.get("errorText"):
            raise PageError(f"{url}: {found['errorText']}")
        self.evaluate(
            "new Promise(done => document.readyState == 'complete' ? done()"
            " : addEventListener('load', () => done()))",
            patience_s=patience_s,
        )

    def evaluate(self, script: str, *, patience_s: float = _PATIENCE_S) -> Any:
        """Return the value of an expression in the page, or of its promise, by way of JSON. Raises
        PageError if it throws, or is rejected."""
        found = self._call(
            "Runtime.evaluate",
            patience_s,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raised = details.get("exception", {})
            raise PageError(raised.get("description") or raised.get("value") or details["text"])
        return found["result"].get("value")

    def run(self, body: str, *, patience_s: float = _PATIENCE_S, **names: Any) -> Any:
        """Return what the body of an asynchronous function returns; `names` are its variables."""
        variables = "".join(f"const {name} = {json.dumps(names[name])};\n" for name in names)
        return self.evaluate(f"(async () => {{\n{variables}{body}\n}})()", patience_s=patience_s)

    def _call(self, method: str, patience_s: float = _PATIENCE_S, **parameters: Any) -> Any:
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        text = json.dumps(command).encode() + b"\0"
        with suppress(BrokenPipeError):  # the answer tells it
            while text:
                text = text[os.write(self._to_browser, text) :]
        until = time.monotonic() + patience_s
        while True:
            answer = self._receive(until, method)
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self, until: float, method: str) -> Any:
        while b"\0" not in self._received:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._to_us], [], [], left)[0]:
                raise TimeoutError(f"no answer from the browser: {method}")
            chunk = os.read(self._to_us, 1 << 16)
            if not chunk:
                raise PageError(f"the browser ended: {method}")
            self._received += chunk
        text, _, self._received = self._received.partition(b"\0")
        return json.loads(text)


def _trust(home: Path, authority: bytes) -> None:
    """Put a certificate in PEM among the authorities of a user (NSS's database)."""
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    line = ["certutil", "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "authority", "-a"]
    subprocess.run(line, input=authority, check=True, capture_output=True)


@contextmanager
def started(*options: str, authority: bytes | None = None) -> Iterator[Chromium]:
    """A browser with these options more, and a profile of its own, until the end of the block. It
    trusts an authority, whose certificate is PEM.

    `--origin-to-force-quic-on=HOST:PORT` has it take HTTP/3 at once, and
    `--ignore-certificate-errors-spki-list=` with `key_hash` trust a certificate. WebTransport takes
    its `serverCertificateHashes` from the script.
    """
    path = find()
    assert path is not None, why_not()
    with ExitStack() as undo:
        folder = undo.enter_context(
            tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        )
        if authority is not None:
            _trust(Path(folder), authority)
        log = undo.enter_context(open(Path(folder) / "log", "wb"))
        (read_commands, to_browser), (to_us, write_answers) = _pipe(), _pipe()
        redirect = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'  # the protocol's descriptors
        profile = f"--user-data-dir={folder}/profile"
        process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", path, *_OPTIONS, profile, *options, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(read_commands, write_answers),
            start_new_session=True,
            env={**os.environ, "HOME": folder},
        )
        undo.callback(_end, process, to_browser, to_us)
        os.close(read_commands)
        os.close(write_answers)
        yield Chromium(process.pid, to_browser, to_us)


def _pipe() -> list[int]:
    """A pipe whose descriptors are none of those that are replaced in the browser."""
    low = os.pipe()
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in low]
    for each in low:
        os.close(each)
    return high


def _end(process: subprocess.Popen[bytes], to_browser: int, to_us: int) -> None:
    """End the browser, and what it started: they have a process group of their own."""
    with suppress(BrokenPipeError):
        os.write(to_browser, b'{"id": 0, "method": "Browser.close"}\0')
    os.close(to_browser)
    os.close(to_us)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
