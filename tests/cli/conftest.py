"""The veth pair of pyxdp's tests, here too."""

from tests.pyxdp.conftest import Veth, extension, make_veth, privileged, veth

__all__ = ["Veth", "extension", "make_veth", "privileged", "veth"]
