"""Checks of version negotiation that aioquic lacks (RFC 9368).

aioquic starts again after a Version Negotiation packet, which anyone on the path can forge, and
does not check afterwards whether the server supports a version that the client prefers.
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection, QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion


def check_downgrade(connection: QuicConnection) -> None:
    """Check a client's negotiated version, once the server's parameters have arrived.

    Raises QuicConnectionError, as RFC 9368 section 4 requires.
    """
    if not connection._is_client:
        return
    configuration = connection._configuration
    original, used = configuration.original_version, connection._crypto_packet_version
    information = connection._remote_version_information
    has_begun_again = connection._version_negotiated_incompatible
    if used != original:
        # RFC 9369 section 5: tickets and tokens are for the version that they came with, and the
        # next connection begins with the other one.
        connection.tls.new_session_ticket_cb = connection._token_handler = None
    if information is None:
        # Section 8: servers that support only version 1 need not send the parameter.
        is_good = used == (QuicProtocolVersion.VERSION_1 if has_begun_again else original)
    elif has_begun_again:
        wanted = (
            version
            for version in configuration.supported_versions
            if version in information.available_versions
        )
        is_good = used != original and next(wanted, None) == used
    else:
        is_good = True
    if not is_good:
        raise QuicConnectionError(
            QuicErrorCode.VERSION_NEGOTIATION_ERROR,
            QuicFrameType.CRYPTO,
            "the peer would have spoken another version of QUIC",
        )
