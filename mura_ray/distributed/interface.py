"""Over which network interface the workers of a run exchange gradients. Knows no Ray and no torch."""

import fcntl
import os
import socket
import struct
from contextlib import suppress

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
"""Linux' request for the address of a network interface."""


def gloo_interface(address: str) -> str:
    """The interface for gloo on a node with this address in the cluster, unless GLOO_SOCKET_IFNAME says which.

    By itself gloo takes the address of the machine's own name: 127.0.1.1 on a Debian machine, loopback where nothing
    knows the name, and then no other machine can connect. NCCL looks for an interface by itself.
    """
    return os.environ.get(GLOO_INTERFACE) or interface_of(address)


def interface_of(address: str) -> str:
    """The network interface that has an IPv4 address; "" where none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
