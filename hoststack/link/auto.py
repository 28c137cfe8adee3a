"""Choosing a link: the best one that works here, with the reason why it is not a better one."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Literal

from hoststack.link.base import Link, LinkError
from hoststack.link.udp.link import UdpLink

if TYPE_CHECKING:
    from hoststack.link.xdp.rings import XdpMode

logger = logging.getLogger(__name__)

LinkName = Literal["auto", "af_xdp", "udp"]


def choose_link(
    interface: str | None,
    wanted: LinkName = "auto",
    *,
    mode: XdpMode = "auto",
    busy_poll_us: int = 0,
) -> tuple[Link, str]:
    """Return the link that was asked for; "auto" is AF_XDP where that works, else UDP sockets.

    With `busy_poll_us` the kernel is to poll the driver as well, where it can. The second value
    says in one line why the link is not AF_XDP, or does not poll; it is empty if nothing was
    substituted. The same line goes to the log, at WARNING.
    Raises LinkError where "af_xdp" is not possible, and for an interface that does not exist, even
    with "auto": that is a mistake to report, not one to work around.
    """
    link, reason = _choose(interface, wanted, mode)
    refusal = link.busy_poll(busy_poll_us) if busy_poll_us else ""
    reasons = "; ".join(filter(None, (reason, refusal)))
    if reasons:
        logger.warning("%s", reasons)
    return link, reasons


def _choose(interface: str | None, wanted: LinkName, mode: XdpMode) -> tuple[Link, str]:
    if wanted == "udp":
        return UdpLink(), ""
    if wanted not in ("auto", "af_xdp"):
        raise ValueError(f"there is no link {wanted!r}: use 'auto', 'af_xdp' or 'udp'")
    try:
        if interface is None:
            raise LinkError(errno.EINVAL, "AF_XDP needs an interface: name one")
        from hoststack.link.xdp.link import AfXdpLink

        return AfXdpLink.open(interface, mode=mode), ""
    except LinkError as error:
        if wanted == "af_xdp" or error.errno == errno.ENODEV:
            raise
        return UdpLink(), f"link udp instead of af_xdp: {error.strerror}"
