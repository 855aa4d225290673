"""Over which network interface the workers of a run exchange gradients."""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

import ray.util
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # ioctl: an interface's IPv4 address


def use_cluster_interface() -> None:
    """Lets gloo listen where the other nodes reach this one, unless GLOO_SOCKET_IFNAME says where.

    By itself it takes the address of the machine's own name: 127.0.1.1 on a Debian machine, loopback where nothing
    knows the name, and then no other machine can connect. NCCL looks for an interface by itself.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The name of this machine's interface with an IPv4 address; None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(query, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


class _Backend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        worker_group.execute(use_cluster_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class ClusterTorchConfig(TorchConfig):
    """Ray Train's process group, over the cluster's network."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What Ray Train starts it with."""
        return _Backend
