"""The loop on a network of a few weights, without BatchNorm, so that numbers can be compared exactly."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from mura_ray.config import Augmentation, TrialConfig
from mura_ray.data.loader import Batch
from mura_ray.ports import free_port
from mura_ray.training import loop
from tests.batches import MemoryLoader

SIZE, NUM_IMAGES = 32, 24
CONFIG = TrialConfig(
    image_size=SIZE, initial_weights="random", batch_size=8, epochs=3, learning_rate=1e-2, channels_last=False,
    augmentation=Augmentation(inversion_probability=0.5, rotation_deg=10),
)  # fmt: skip
WEIGHTS = torch.tensor([[0.4, 0.6]]).repeat(7, 1)


class TinyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(SIZE * SIZE, 1)

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        return self.layer(gray.flatten(1)).squeeze(1)


def make_run(config: TrialConfig = CONFIG, rank: int = 0, world_size: int = 1, num_valid: int = 20) -> loop.Run:
    train, valid = (MemoryLoader(number, SIZE, rank=rank, world_size=world_size) for number in (NUM_IMAGES, num_valid))
    return loop.prepare_run(
        config, cast(Any, TinyNetwork()), cast(Any, train), cast(Any, valid), WEIGHTS, torch.device("cpu")
    )


def train_two_epochs(run: loop.Run) -> dict[str, Any]:
    losses = []
    for epoch in (1, 2):
        losses.append((loop.train_epoch(run, epoch), loop.validate(run)))
        loop.finish_epoch(run, epoch, losses[-1][1])
    return {"losses": losses, "weight": run.network.layer.weight.detach().clone()}  # pyright: ignore


WORKERS = {"2 workers": (2, "none"), "3 workers": (3, "none"), "2 workers, compiled": (2, "kernels")}


def _worker(rank: int, ports: list[int], folder: str) -> None:
    """All trainings of `WORKERS`, one after the other, in the same processes: importing torch takes longest."""
    torch._inductor.config.compile_threads = 1  # no pool of processes in each worker
    for port, (name, (world_size, compiled)) in zip(ports, WORKERS.items(), strict=True):
        if rank >= world_size:
            continue
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
        config = TrialConfig.model_validate(CONFIG.model_dump() | {"compile": compiled})
        torch.save(train_two_epochs(make_run(config, rank, world_size)), f"{folder}/{name} {rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what each worker of each training ended with."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [free_port() for _ in WORKERS], str(folder)
    torch.multiprocessing.spawn(_worker, arguments, nprocs=3, daemon=True)  # pyright: ignore[reportPrivateImportUsage]
    return folder


@pytest.mark.parametrize("name", WORKERS)
def test_the_number_of_workers_changes_neither_weights_nor_losses(trained: Path, name: str) -> None:
    expected = train_two_epochs(make_run())
    for rank in range(WORKERS[name][0]):
        found = torch.load(trained / f"{name} {rank}.pt", weights_only=True)
        assert np.allclose(found["losses"], expected["losses"], rtol=1e-5)
        assert torch.allclose(found["weight"], expected["weight"], atol=1e-5)


def test_the_validation_loss_is_the_weighted_mean_over_all_images() -> None:
    run = make_run()
    images, labels = cast(Any, run.valid).images, cast(Any, run.valid).labels
    logits = run.network(torch.from_numpy(images) / 255).detach().numpy().astype(np.float64)
    probability = 1 / (1 + np.exp(-logits))
    terms = np.where(labels == 1, -0.6 * np.log(probability), -0.4 * np.log(1 - probability))
    assert loop.validate(run) == pytest.approx(terms.mean(), rel=1e-6)


def test_unweighted_training_is_still_ranked_by_the_weighted_loss() -> None:
    plain = make_run(CONFIG.model_copy(update={"weighted_loss": False}))
    weighted = make_run()
    assert loop.validate(plain) == loop.validate(weighted)
    assert loop.train_epoch(plain, 1) > 1.5 * loop.train_epoch(weighted, 1)


def test_a_restored_run_continues_as_if_it_had_not_stopped() -> None:
    whole = make_run()
    for epoch in (1, 2, 3):
        loop.train_epoch(whole, epoch)
        loop.finish_epoch(whole, epoch, loop.validate(whole))

    first = make_run()
    for epoch in (1, 2):
        loop.train_epoch(first, epoch)
        loop.finish_epoch(first, epoch, loop.validate(first))
    second = make_run()
    loop.restore_run(second, first.network.state_dict(), loop.run_state(first))
    assert second.progress == first.progress
    loop.train_epoch(second, 3)
    loop.finish_epoch(second, 3, loop.validate(second))

    assert second.progress == whole.progress
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name
    assert loop.is_complete(second)


class Stop(Exception):  # noqa: N818 - ends a run as a fault would
    pass


@pytest.mark.parametrize("batches_done", [1, 2, 3])
def test_a_run_restored_inside_an_epoch_continues_with_the_very_next_batch(batches_done: int) -> None:
    whole, first = make_run(), make_run()
    whole_losses = [loop.train_epoch(whole, 1)]
    loop.finish_epoch(whole, 1, loop.validate(whole))
    whole_losses.append(loop.train_epoch(whole, 2))

    loop.train_epoch(first, 1)
    loop.finish_epoch(first, 1, loop.validate(first))

    def stop(batch: Batch) -> None:
        if batch.index + 1 == batches_done:
            loop.gather_loss(first)
            raise Stop

    with pytest.raises(Stop):
        loop.train_epoch(first, 2, stop)
    second, seen = make_run(), []
    loop.restore_run(second, first.network.state_dict(), loop.run_state(first))
    loss = loop.train_epoch(second, 2, lambda batch: seen.append(batch.index))
    assert seen == list(range(batches_done, 3))
    assert loss == whole_losses[1]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


def test_the_learning_rate_falls_by_ten_when_the_validation_loss_does_not_improve() -> None:
    run = make_run(CONFIG.model_copy(update={"epochs": 10}))
    rates = []
    for epoch, val_loss in enumerate((0.5, 0.4, 0.41, 0.3), start=1):
        loop.finish_epoch(run, epoch, val_loss)
        rates.append(run.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])
    assert (run.progress.best_val_loss, run.progress.best_epoch) == (0.3, 4)


def test_early_stopping_counts_epochs_in_a_row() -> None:
    run = make_run(CONFIG.model_copy(update={"epochs": 10, "early_stopping_epochs": 2}))
    ended = []
    for epoch, loss in enumerate((0.5, 0.6, 0.4, 0.41, 0.42), start=1):
        loop.finish_epoch(run, epoch, loss)
        ended.append(loop.is_complete(run))
    assert ended == [False, False, False, False, True]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    run = make_run()
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("inf"))
    with pytest.raises(
        loop.NonFiniteLossError,
        match=r"training loss became .* at batch 0 of epoch 1; .*\nsample ids: \[0, 1, 2, .*\]\nsettings: .*",
    ):
        loop.train_epoch(run, 1)
