"""Capture, replay and count packets: the library of the `pyxdp` command."""

from __future__ import annotations

from pyxdp.tools.capture import Capture
from pyxdp.tools.filters import FilterError
from pyxdp.tools.flows import Flow, FlowCounter, describe_flow
from pyxdp.tools.packets import CaptureFileError, Packet, PcapngWriter, read_packets
from pyxdp.tools.replay import Replayed, as_recorded, at_bits, at_once, at_packets, replay

__all__ = [
    "Capture",
    "CaptureFileError",
    "FilterError",
    "Flow",
    "FlowCounter",
    "Packet",
    "PcapngWriter",
    "Replayed",
    "as_recorded",
    "at_bits",
    "at_once",
    "at_packets",
    "describe_flow",
    "read_packets",
    "replay",
]
