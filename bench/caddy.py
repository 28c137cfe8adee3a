"""caddy as a server to compare with."""

from __future__ import annotations

from pathlib import Path

from hoststack import TlsConfig


def caddyfile(folder: Path, address: str, port: int) -> Path:
    """Write a page of 6 bytes, `/page`, and return the Caddyfile of a server of it.

    It answers for the address and for localhost, which is the name that gtlsclient sends for it.
    """
    tls = TlsConfig.self_signed([address, "localhost"])
    for name, source in (("cert.pem", tls.certificate), ("key.pem", tls.key)):
        assert isinstance(source, bytes)
        (folder / name).write_bytes(source)
    (folder / "page").write_bytes(b"hello\n")
    path = folder / "Caddyfile"
    path.write_text(
        "{\nadmin off\nauto_https disable_redirects\n"
        f"default_sni {address}\nservers {{\nprotocols h1 h2 h3\n}}\n}}\n"
        f"https://{address}:{port}, https://localhost:{port} {{\nbind {address}\n"
        f"tls {folder}/cert.pem {folder}/key.pem\nroot * {folder}\nfile_server\n}}\n",
        encoding="ascii",
    )
    return path
