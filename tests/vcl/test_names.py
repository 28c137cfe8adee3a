"""What a program of VCL's finds in `hoststack.vcl`."""

from __future__ import annotations

import errno

import pytest

from hoststack import vcl

FUNCTIONS = [
    "vppcom_app_create",
    "vppcom_app_destroy",
    "vppcom_session_create",
    "vppcom_session_tls_add_cert",
    "vppcom_session_tls_add_key",
    "vppcom_add_cert_key_pair",
    "vppcom_del_cert_key_pair",
    "vppcom_session_bind",
    "vppcom_session_listen",
    "vppcom_session_accept",
    "vppcom_session_connect",
    "vppcom_session_stream_connect",
    "vppcom_session_read",
    "vppcom_session_write",
    "vppcom_session_recvfrom",
    "vppcom_session_sendto",
    "vppcom_session_shutdown",
    "vppcom_session_close",
    "vppcom_session_terminate",
    "vppcom_session_is_connectable_listener",
    "vppcom_session_attr",
    "vppcom_select",
    "vppcom_poll",
    "vppcom_epoll_create",
    "vppcom_epoll_ctl",
    "vppcom_epoll_wait",
    "vppcom_session_n_accepted",
    "vppcom_session_get_error",
    "vppcom_worker_register",
    "vppcom_worker_unregister",
    "vppcom_worker_index",
    "vppcom_retval_str",
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert name in vcl.__all__
    assert callable(getattr(vcl, name))


def test_all_that_is_promised_is_there() -> None:
    assert len(set(vcl.__all__)) == len(vcl.__all__)
    assert not [name for name in vcl.__all__ if not hasattr(vcl, name)]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("GET_NREAD", 0),
        ("GET_PEER_ADDR", 6),
        ("GET_PROTOCOL", 9),
        ("SET_RX_FIFO_LEN", 15),
        ("SET_CONNECTED", 34),
        ("SET_CKPAIR", 35),
    ],
)
def test_attributes_have_vpps_numbers(name: str, number: int) -> None:
    assert getattr(vcl, f"VPPCOM_ATTR_{name}") == number == vcl.Attr[name]


def test_errors() -> None:
    assert vcl.VPPCOM_EAGAIN == -errno.EAGAIN
    assert vcl.vppcom_retval_str(vcl.VPPCOM_EBADFD) == "VPPCOM_EBADFD"
    assert vcl.vppcom_retval_str(vcl.VPPCOM_OK) == vcl.vppcom_retval_str(7) == "VPPCOM_OK"
    assert vcl.vppcom_retval_str(-9999) == "VPPCOM_UNKNOWN"
