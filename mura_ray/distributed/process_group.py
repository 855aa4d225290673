"""The process group of a run's workers, over the network of the cluster."""

import os
from dataclasses import dataclass

import ray.util
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from mura_ray.distributed.interface import GLOO_INTERFACE, gloo_interface


def use_cluster_interface() -> None:
    """Lets gloo, in this process, listen where the other nodes reach this one."""
    if name := gloo_interface(ray.util.get_node_ip_address()):
        os.environ[GLOO_INTERFACE] = name


class _Backend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        worker_group.execute(use_cluster_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class ClusterTorchConfig(TorchConfig):
    """Ray Train's process group, with `use_cluster_interface` on each worker before it."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What Ray Train starts it with."""
        return _Backend
