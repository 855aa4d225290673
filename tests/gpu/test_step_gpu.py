"""The training step where only a GPU shows it: CUDA graphs, copies on a stream of their own, SyncBN over two GPUs.

On a CPU alone these are skipped. Instead of the copies' there is tests/unit/test_prefetch.py (the order, without a
stream). Nothing stands in for graphs and SyncBN: torch has none for CPUs.
"""

import copy
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from mura_ray.config import TrialConfig
from mura_ray.data.prefetch import prefetch, to_device
from mura_ray.ports import free_port
from mura_ray.training import loop
from tests.batches import CONFIG, SIZE, WEIGHTS, MemoryLoader, SmallNetwork, torch_settings_kept

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, this machine has none"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def process_wide_settings() -> Iterator[None]:
    with torch_settings_kept():
        yield


def make_run(device: torch.device = GPU, rank: int = 0, world_size: int = 1, **settings: Any) -> loop.Run:
    config = TrialConfig.model_validate(CONFIG.model_dump() | settings)
    train, valid = (MemoryLoader(number, SIZE, rank=rank, world_size=world_size) for number in (64, 20))
    return loop.prepare_run(config, SmallNetwork(), cast(Any, train), cast(Any, valid), WEIGHTS, device)


def train_two_epochs(run: loop.Run) -> list[float]:
    losses = []
    for epoch in (1, 2):
        losses += [loop.train_epoch(run, epoch), loop.validate(run)]
        loop.finish_epoch(run, epoch, losses[-1])
    return losses


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 1e-2), ("bf16", 3e-2)])
def test_cuda_graphs_train_as_the_eager_step_does(precision: str, tolerance: float) -> None:
    eager, graphs = make_run(compile="none", precision=precision), make_run(compile="graphs", precision=precision)
    assert train_two_epochs(graphs) == pytest.approx(train_two_epochs(eager), rel=tolerance)
    assert list(graphs.network.state_dict()) == list(SmallNetwork().state_dict())


def test_cuda_graphs_are_what_a_single_gpu_takes_by_itself_and_validation_does_without() -> None:
    run = make_run()
    assert run.recorded is not None
    loop.train_epoch(run, 1)
    gradients = [parameter.grad for parameter in run.network.parameters()]
    loop.validate(run)
    loop.train_epoch(run, 2)
    assert all(a is b for a, b in zip(gradients, (p.grad for p in run.network.parameters()), strict=True))
    assert make_run(compile="none").recorded is None


def test_a_recorded_run_continues_from_a_checkpoint() -> None:
    first, later = make_run(), make_run()
    train_two_epochs(first)
    loop.train_epoch(later, 1)  # recorded already
    loop.restore_run(later, copy.deepcopy(first.network.state_dict()), copy.deepcopy(loop.run_state(first)))
    assert loop.train_epoch(later, 3) == pytest.approx(loop.train_epoch(first, 3), rel=1e-3)
    assert loop.validate(later) == pytest.approx(loop.validate(first), rel=1e-2)


def test_a_step_on_the_gpu_is_the_step_on_the_cpu() -> None:
    on_gpu, on_cpu = make_run(compile="none"), make_run(torch.device("cpu"), compile="none")
    assert train_two_epochs(on_gpu) == pytest.approx(train_two_epochs(on_cpu), rel=1e-2)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_the_one_asked_for_and_stays(channels_last: bool) -> None:
    run = make_run(channels_last=channels_last)
    train_two_epochs(run)
    kernels = [module.weight for module in run.network.modules() if isinstance(module, nn.Conv2d)]
    large = [kernel for kernel in kernels if kernel.shape[1] > 1 and kernel.shape[2] > 1]
    assert large
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) == channels_last for kernel in large)


def test_batches_prepared_on_a_stream_of_their_own_arrive_whole_and_in_order() -> None:
    closed = []

    def batches() -> Generator[int, None, None]:
        try:
            yield from range(50)
        finally:
            closed.append(True)

    def prepare(number: int) -> tuple[torch.Tensor, ...]:
        return (to_device(torch.full((1 << 20,), number), GPU) * 2,)

    busy = torch.rand(2048, 2048, device=GPU)
    sums = []
    for number, (tensor,) in prefetch(batches(), prepare, GPU):
        for _ in range(4):  # the step's stream lags behind the copies, whose memory must not be used again meanwhile
            busy = busy @ busy / 2048
        sums.append((number, tensor.sum()))
        del tensor
    assert [(number, total.item()) for number, total in sums] == [(n, 2 * n * (1 << 20)) for n in range(50)]
    assert closed == [True]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("compiled", ["none", "graphs"])
def test_a_step_does_not_wait_for_the_gpu(compiled: str) -> None:
    run = make_run(compile=compiled)
    loop.train_epoch(run, 1)
    run.progress = loop.Progress()
    run.model.train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch, inputs in loop.train_inputs(run, 2):
            loop.train_step(run, inputs, batch.global_size)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _worker(rank: int, port: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    run = make_run(torch.device("cuda", rank), rank, 2)
    losses = train_two_epochs(run)
    torch.save({"losses": losses, "network": run.network.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@needs_two
def test_two_gpus_with_synchronised_batch_norm_train_as_one(tmp_path: Path) -> None:
    port = free_port()
    torch.multiprocessing.spawn(_worker, (port, str(tmp_path)), nprocs=2)  # pyright: ignore
    alone = make_run(compile="none")
    expected = train_two_epochs(alone)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True, map_location=GPU)
        assert found["losses"] == pytest.approx(expected, rel=1e-3)
        for name, tensor in alone.network.state_dict().items():
            torch.testing.assert_close(found["network"][name], tensor, rtol=1e-2, atol=1e-3)
