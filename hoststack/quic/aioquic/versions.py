"""Version negotiation, as far as aioquic leaves it to nobody (RFC 9368).

aioquic begins again after a Version Negotiation packet, which anybody on the way can forge, and
does not look afterwards whether the server would have spoken a version that it likes better.
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection, QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion


def check_downgrade(connection: QuicConnection) -> None:
    """Have a client check which version it came to, once the server's parameters are there.

    Raises QuicConnectionError, as RFC 9368 section 4 wants it.
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
        # Section 8: servers that speak version 1 alone need not say so.
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
