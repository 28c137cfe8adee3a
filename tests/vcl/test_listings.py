"""VPP's two listings of a QUIC client and server on VCL, line by line, and what each call says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.daemon.conftest import PATIENCE_S, Daemon
from tests.vcl.conftest import CERT, KEY, config_file_of

SERVER = """
import sys
from hoststack.vcl import *

cert, key = (open(name, "rb").read() for name in sys.argv[1:3])
assert vppcom_app_create("server") == VPPCOM_OK
listener = vppcom_session_create(VPPCOM_PROTO_QUIC, False)
assert listener >= 0
assert vppcom_session_tls_add_cert(listener, cert) == VPPCOM_OK
assert vppcom_session_tls_add_key(listener, key) == VPPCOM_OK
assert vppcom_session_bind(listener, vppcom_endpt_t("127.0.0.1", 0)) == VPPCOM_OK
assert vppcom_session_listen(listener, 10) == VPPCOM_OK
print(vppcom_session_attr(listener, Attr.GET_LCL_ADDR)[1], flush=True)
assert vppcom_session_is_connectable_listener(listener) == 0
peer = vppcom_endpt_t()
connection = vppcom_session_accept(listener, peer, 0)
assert connection >= 0
assert peer.ip == "127.0.0.1" and peer.port > 0
assert vppcom_session_is_connectable_listener(connection) == 1
stream = vppcom_session_accept(connection, peer, 0)
assert stream >= 0
assert vppcom_session_is_connectable_listener(stream) == 0
assert vppcom_session_n_accepted(listener) == vppcom_session_n_accepted(connection) == 1
buffer = bytearray(100)
count = vppcom_session_read(stream, buffer)
print(bytes(buffer[:count]).decode(), flush=True)
assert vppcom_session_close(stream) == VPPCOM_OK
assert vppcom_session_close(connection) == VPPCOM_OK
assert vppcom_session_close(listener) == VPPCOM_OK
vppcom_app_destroy()
"""

CLIENT = """
import sys
from hoststack.vcl import *

cert, key = (open(name, "rb").read() for name in sys.argv[1:3])
assert vppcom_app_create("client") == VPPCOM_OK
connection = vppcom_session_create(VPPCOM_PROTO_QUIC, False)
assert connection >= 0
assert vppcom_session_tls_add_cert(connection, cert) == VPPCOM_OK
assert vppcom_session_tls_add_key(connection, key) == VPPCOM_OK
assert vppcom_session_connect(connection, sys.argv[3]) == VPPCOM_OK
stream = vppcom_session_create(VPPCOM_PROTO_QUIC, False)
assert vppcom_session_stream_connect(stream, connection) == VPPCOM_OK
assert vppcom_session_write(stream, b"hello") == 5
assert vppcom_session_close(stream) == VPPCOM_OK
assert vppcom_session_close(connection) == VPPCOM_OK
vppcom_app_destroy()
"""


def test_the_two_listings(daemon: Daemon, tmp_path: Path) -> None:
    files = []
    for name, content in (("cert.pem", CERT), ("key.pem", KEY)):
        (tmp_path / name).write_bytes(content)
        files.append(str(tmp_path / name))
    environment = {"VCL_CONFIG": config_file_of(daemon, tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        try:
            assert server.stdout is not None
            uri = f"quic://127.0.0.1:{int(server.stdout.readline())}"
            client = subprocess.run(
                [sys.executable, "-c", CLIENT, *files, uri],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                env=environment,
                check=False,
            )
            assert (client.returncode, client.stderr) == (0, "")
            out, err = server.communicate(timeout=PATIENCE_S)
            assert (server.returncode, out, err) == (0, "hello\n", "")
        finally:
            server.kill()
