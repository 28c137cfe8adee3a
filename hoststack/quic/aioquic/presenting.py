"""The certificates of connections: which one a server presents, and what the sides presented."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from aioquic._buffer import Buffer
from aioquic.tls import Context, pull_client_hello
from cryptography.hazmat.primitives.serialization import Encoding

from hoststack.quic.certificate import Presented, within_chain

#: As in hoststack/native/quic/server_names.c: some clients send addresses.
_NAME: Final = re.compile(r"[a-z0-9._:-]{1,255}")


def choose_certificate(
    tls: Context, presented: Presented, address: str, on_name: Callable[[str | None], None]
) -> None:
    """Have a server present the certificate for the name that its client asks for, or for the
    address at which it came. `on_name` gets the name.

    Of a group aioquic uses one certificate: here the first one whose signature the client accepts.
    """
    handle = tls._server_handle_hello

    def choosing(input_buf: Buffer, *output: Buffer) -> None:
        start = input_buf.tell()
        hello = pull_client_hello(input_buf)
        input_buf.seek(start)
        name = (hello.server_name or "").lower()
        asked = name if _NAME.fullmatch(name) else None
        on_name(asked)
        group = presented.group_for(asked or address)
        for each in (*group, group[0]):  # if the client accepts none, aioquic refuses it
            tls.certificate, *tls.certificate_chain = each.chain
            tls.certificate_private_key = each.private_key
            if {*tls._signature_algorithms_for_private_key()} & {
                *(hello.signature_algorithms or ())
            }:
                break
        handle(input_buf, *output)

    tls._server_handle_hello = choosing  # type: ignore[method-assign,assignment]


def peers_chain(tls: Context) -> tuple[bytes, ...]:
    """Return what the peer presented; see Handshake."""
    if tls._peer_certificate is None:
        return ()
    chain = [tls._peer_certificate, *tls._peer_certificate_chain]
    return within_chain(each.public_bytes(Encoding.DER) for each in chain)


def own_certificate(tls: Context, *, is_resumed: bool) -> bytes | None:
    """Return what this side presented; see Handshake."""
    is_presented = not is_resumed and (not tls._is_client or tls._certificate_request is not None)
    if tls.certificate is None or not is_presented:
        return None
    return tls.certificate.public_bytes(Encoding.DER)
