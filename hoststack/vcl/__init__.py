"""VCL: sessions with blocking calls and epoll, as in VPP's VCL library, on a daemon's stack.

Programs need no trio. docs/vcl.md describes the calls, their errors and the configuration.
"""

from hoststack.vcl import constants
from hoststack.vcl.app import CertKeyPair
from hoststack.vcl.attributes import Attr
from hoststack.vcl.config import VclConfig, VclConfigError, load_config
from hoststack.vcl.connecting import STREAMS_PER_CONNECTION
from hoststack.vcl.constants import *  # noqa: F403
from hoststack.vcl.epoll import EpollEvent
from hoststack.vcl.functions import (
    vcl_poll_t,
    vppcom_add_cert_key_pair,
    vppcom_app_create,
    vppcom_app_destroy,
    vppcom_cert_key_pair_t,
    vppcom_del_cert_key_pair,
    vppcom_endpt_t,
    vppcom_epoll_create,
    vppcom_epoll_ctl,
    vppcom_epoll_wait,
    vppcom_poll,
    vppcom_retval_str,
    vppcom_select,
    vppcom_session_accept,
    vppcom_session_attr,
    vppcom_session_bind,
    vppcom_session_close,
    vppcom_session_connect,
    vppcom_session_create,
    vppcom_session_get_error,
    vppcom_session_is_connectable_listener,
    vppcom_session_listen,
    vppcom_session_n_accepted,
    vppcom_session_read,
    vppcom_session_recvfrom,
    vppcom_session_sendto,
    vppcom_session_shutdown,
    vppcom_session_stream_connect,
    vppcom_session_terminate,
    vppcom_session_tls_add_cert,
    vppcom_session_tls_add_key,
    vppcom_session_write,
    vppcom_worker_index,
    vppcom_worker_register,
    vppcom_worker_unregister,
)
from hoststack.vcl.objects import Session, application, worker
from hoststack.vcl.waiting import EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, VclPoll

__all__ = [
    "EPOLL_CTL_ADD",
    "EPOLL_CTL_DEL",
    "EPOLL_CTL_MOD",
    "STREAMS_PER_CONNECTION",
    "Attr",
    "CertKeyPair",
    "EpollEvent",
    "Session",
    "VclConfig",
    "VclConfigError",
    "VclPoll",
    "application",
    "load_config",
    "vcl_poll_t",
    "vppcom_add_cert_key_pair",
    "vppcom_app_create",
    "vppcom_app_destroy",
    "vppcom_cert_key_pair_t",
    "vppcom_del_cert_key_pair",
    "vppcom_endpt_t",
    "vppcom_epoll_create",
    "vppcom_epoll_ctl",
    "vppcom_epoll_wait",
    "vppcom_poll",
    "vppcom_retval_str",
    "vppcom_select",
    "vppcom_session_accept",
    "vppcom_session_attr",
    "vppcom_session_bind",
    "vppcom_session_close",
    "vppcom_session_connect",
    "vppcom_session_create",
    "vppcom_session_get_error",
    "vppcom_session_is_connectable_listener",
    "vppcom_session_listen",
    "vppcom_session_n_accepted",
    "vppcom_session_read",
    "vppcom_session_recvfrom",
    "vppcom_session_sendto",
    "vppcom_session_shutdown",
    "vppcom_session_stream_connect",
    "vppcom_session_terminate",
    "vppcom_session_tls_add_cert",
    "vppcom_session_tls_add_key",
    "vppcom_session_write",
    "vppcom_worker_index",
    "vppcom_worker_register",
    "vppcom_worker_unregister",
    "worker",
]
__all__ += constants.__all__
