"""How fast the workers of a training run would exchange gradients: a process group of its own, timed.

The workers import torch, the process that asks does not.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.exceptions
from ray._common.network_utils import find_free_port
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NUM_PARAMETERS = 12_486_145
"""Of the network: a float32 gradient of each is what the workers of a run exchange in every step."""

NUM_ROUNDS = 5
START_TIMEOUT_S = 180.0
"""For the workers' processes to import torch, which takes a busy machine a minute."""

GROUP_TIMEOUT_S = 60.0
"""For the group to form, and for each exchange."""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """An all-reduce of the network's gradients over some workers; bandwidths in bytes a second.

    Attributes:
        backend: nccl or gloo.
        num_workers: in the group.
        num_nodes: that they are on.
        num_bytes: of the gradients.
        seconds: for one exchange; the median of some, of the slowest worker.
    """

    backend: str
    num_workers: int
    num_nodes: int
    num_bytes: int
    seconds: float

    @property
    def algorithm_bandwidth(self) -> float:
        """Gradients a second."""
        return self.num_bytes / self.seconds

    @property
    def bus_bandwidth(self) -> float:
        """What each link carries, whatever the number of workers: of n, each sends 2(n-1)/n times the gradients."""
        return self.algorithm_bandwidth * 2 * (self.num_workers - 1) / self.num_workers


class GroupError(Exception):
    """No group could be formed, or it broke.

    Attributes:
        address: where the first worker listened; "" where it did not come that far.
    """

    def __init__(self, reason: str, address: str = "") -> None:
        super().__init__(reason)
        self.address = address


class _Worker:
    """An actor: one member of the group."""

    def address(self) -> str:
        """Imports torch. Where the group could meet at this worker."""
        import torch.distributed  # noqa: F401 - imported here, so that the time it takes is not the group's

        return f"{ray.util.get_node_ip_address()}:{find_free_port()}"

    def join(self, backend: str, address: str, rank: int, num_workers: int) -> None:
        import torch.distributed

        from mura_ray.distributed.process_group import use_cluster_interface

        use_cluster_interface()
        torch.distributed.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=num_workers,
            timeout=timedelta(seconds=GROUP_TIMEOUT_S),
        )
        torch.distributed.barrier()

    def measure(self, backend: str) -> float:
        import torch.distributed

        device = "cuda" if backend == "nccl" else "cpu"
        gradients = torch.ones(NUM_PARAMETERS, device=device)
        seconds = []
        for _ in range(NUM_ROUNDS + 1):
            torch.distributed.barrier()
            started = time.perf_counter()
            torch.distributed.all_reduce(gradients)
            if backend == "nccl":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            gradients.fill_(1.0)
        return statistics.median(seconds[1:])  # the first sets connections up


def measure_all_reduce(backend: str, node_ids: Sequence[str]) -> AllReduce:
    """Times an exchange of the network's gradients.

    Args:
        backend: nccl, for workers that each take a GPU, or gloo, for workers that take nothing.
        node_ids: the node of each worker.

    Raises:
        GroupError: it did not come about.
    """
    remote: Any = ray.remote(num_cpus=0, num_gpus=1 if backend == "nccl" else 0)(_Worker)
    workers = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id in node_ids
    ]
    address = ""
    try:
        address = _all([worker.address.remote() for worker in workers], START_TIMEOUT_S)[0]
        joining = [worker.join.remote(backend, address, rank, len(workers)) for rank, worker in enumerate(workers)]
        _all(joining, 2 * GROUP_TIMEOUT_S)
        seconds = _all([worker.measure.remote(backend) for worker in workers], (NUM_ROUNDS + 1) * GROUP_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise GroupError(explain(error), address) from error
    finally:
        for worker in workers:
            ray.kill(worker)
    return AllReduce(backend, len(workers), len(set(node_ids)), 4 * NUM_PARAMETERS, max(seconds))


def _all(refs: list[Any], timeout_s: float) -> list[Any]:
    """The answers of all workers; raises as soon as one of them fails."""
    deadline, waiting = time.monotonic() + timeout_s, list(refs)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ray.exceptions.GetTimeoutError(
                f"{len(waiting)} of {len(refs)} workers did not answer in {timeout_s:.0f} s"
            )
        ray.get(ready)
    return ray.get(refs)


def explain(error: ray.exceptions.RayError) -> str:
    """What an error of Ray's says, in one line, without the traceback."""
    reason = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return f"{type(reason).__name__}: {lines[0] if lines else 'no reason given'}"
