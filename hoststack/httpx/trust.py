"""Which certificates a transport trusts, and which it shows: httpx's `verify` and `cert`."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from hoststack.quic.certificate import TlsConfigError
from hoststack.quic.tls import TlsConfig

#: A client's certificate: a PEM file that has its key, too, or both files.
Certificate = str | Path | tuple[str | Path, str | Path]
Verify = bool | str | Path | TlsConfig


def tls_config(verify: Verify, cert: Certificate | None, *, trust_env: bool) -> TlsConfig:
    """Return the TlsConfig of a transport's arguments.

    `verify` is True for the default authorities, False to accept any certificate, the path of a PEM
    file or of a folder of them, or a TlsConfig. The default authorities are those of SSL_CERT_FILE
    or SSL_CERT_DIR with `trust_env`, of certifi where it is installed (httpx needs it, httpx2 does
    not), or the system's. Raises TypeError, ValueError, and TlsConfigError.
    """
    if isinstance(verify, ssl.SSLContext):
        raise TypeError(
            "verify: QUIC can't use an ssl.SSLContext, which encrypts TCP: give True, False, the "
            "path of a PEM file of authorities, or a hoststack.TlsConfig"
        )
    if isinstance(verify, TlsConfig):
        if cert is not None:
            raise ValueError("cert: put certificate and key into the TlsConfig of `verify`")
        return verify
    if not isinstance(verify, bool | str | Path):
        raise TypeError(
            "verify: give True, False, a path or a hoststack.TlsConfig, "
            f"not {type(verify).__name__}"
        )
    certificate, key = _certificate(cert)
    if verify is False:
        return TlsConfig(verify=False, certificate=certificate, key=key)
    path = _default_authorities(trust_env=trust_env) if verify is True else Path(verify)
    ca = _authorities(path) if path is not None else None
    return TlsConfig(ca=ca, certificate=certificate, key=key)


def _certificate(cert: Certificate | None) -> tuple[Path | None, Path | None]:
    match cert:
        case None:
            return None, None
        case str() | Path():
            return Path(cert), Path(cert)
        case (certificate, key):
            return Path(certificate), Path(key)
    raise TypeError(
        "cert: give the path of a PEM file, or (certificate, key): a key with a password has to be "
        "written without one (openssl pkey -in KEY)"
    )


def _default_authorities(*, trust_env: bool) -> Path | None:
    """Return the file or folder of the default authorities; None for the system's."""
    if trust_env:
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if os.environ.get(name):
                return Path(os.environ[name])
    try:
        import certifi
    except ImportError:
        return None
    return Path(certifi.where())


def _authorities(path: Path) -> bytes | Path:
    """Return the PEM text of a folder's certificates, as OpenSSL's `capath`; a file's path as it
    is, which TlsConfig reads."""
    if not path.is_dir():
        return path
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    pem = b"\n".join(
        text for file in files if b"-----BEGIN CERTIFICATE-----" in (text := file.read_bytes())
    )
    if not pem:
        raise TlsConfigError(f"the folder {str(path)!r} has no certificates: it needs PEM files")
    return pem
