"""WebTransport over HTTP/3 (draft-ietf-webtrans-http3): sessions of streams and datagrams."""
