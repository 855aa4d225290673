"""The training loop of one worker: the paper's recipe (section 3.1), epoch by epoch.

Knows no Ray and no storage. Where a `torch.distributed` process group is up, all its workers train one network: each
takes its slice of every global batch, and losses are means over global batches, so the number of workers changes
nothing but speed and the statistics of BatchNorm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mura_ray.config import TrialConfig
from mura_ray.data.augment import augment, to_unit
from mura_ray.data.loader import Batch, SplitLoader
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.loss import weighted_bce_sum

OnBatch = Callable[[Batch], None]
"""Called after the step of each global batch with this worker's part of it."""

CHECK_EVERY = {"cpu": 1, "cuda": 32}
"""Steps between looks at the losses: on a GPU each look waits for all the work that was queued."""


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite. It would again: a run is the same each time."""


@dataclass
class Progress:
    """Where a run is. Epochs count from 1; `epochs_done` of them are complete, and `batches_done` of the next.

    `loss_sum` is the training loss over the images of these batches, as far as `gather_loss` has gathered it.
    """

    epochs_done: int = 0
    batches_done: int = 0
    loss_sum: float = 0.0
    best_val_loss: float = math.inf
    best_epoch: int = 0
    epochs_without_improvement: int = 0


@dataclass(eq=False)
class Run:
    """What one worker holds for the life of a run.

    `network` is the bare network, `model` the same inside DistributedDataParallel where there are several workers.
    `class_weights` is float32 [7, 2], indexed [study type, label], on the device. `loss_sum` is float64 [], what this
    worker adds to the progress's.
    """

    config: TrialConfig
    train: SplitLoader
    valid: SplitLoader
    class_weights: torch.Tensor
    device: torch.device
    network: AbnormalityNet
    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.ReduceLROnPlateau
    progress: Progress
    loss_sum: torch.Tensor


def num_workers() -> int:
    """Workers of the process group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def prepare_run(
    config: TrialConfig,
    network: AbnormalityNet,
    train: SplitLoader,
    valid: SplitLoader,
    class_weights: torch.Tensor,
    device: torch.device,
) -> Run:
    """Puts a network on its device, in DDP where there are several workers, with its optimiser and schedule."""
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model: nn.Module = network
    if num_workers() > 1:
        if config.sync_batch_norm and device.type == "cuda":
            network = cast(AbnormalityNet, nn.SyncBatchNorm.convert_sync_batchnorm(network))
        model = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    optimiser = torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="min", factor=config.lr_factor, patience=config.lr_patience
    )
    class_weights = class_weights.to(device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    return Run(config, train, valid, class_weights, device, network, model, optimiser, schedule, Progress(), loss_sum)


def train_epoch(run: Run, epoch: int, on_batch: OnBatch | None = None) -> float:
    """Trains an epoch to its end, from the batch that the run's progress names.

    Args:
        run: this worker's run.
        epoch: counts from 1; with the seed it decides the order of the images and their augmentation.
        on_batch: called after each global batch.

    Returns:
        The mean training loss per image, over all workers and all batches of the epoch.

    Raises:
        NonFiniteLossError: a loss is not finite.
    """
    run.model.train()
    weights = run.class_weights if run.config.weighted_loss else torch.ones_like(run.class_weights)
    recent: list[tuple[Batch, torch.Tensor]] = []
    for batch in run.train.epoch(epoch, start=run.progress.batches_done):
        images = augment(
            batch.images.to(run.device, non_blocking=True),
            batch.sample_ids,
            seed=run.config.seed,
            epoch=epoch,
            settings=run.config.augmentation,
        )
        loss = weighted_bce_sum(
            _forward(run, run.model, images), batch.labels.to(run.device), batch.type_index.to(run.device), weights
        )
        run.optimiser.zero_grad(set_to_none=True)
        # DDP averages the workers' gradients; this makes that average the gradient of the mean over the global batch.
        (loss * (num_workers() / batch.global_size)).backward()
        run.optimiser.step()
        run.loss_sum += loss.detach()
        run.progress.batches_done = batch.index + 1
        recent.append((batch, loss.detach()))
        if len(recent) >= CHECK_EVERY[run.device.type]:
            _check_finite(run, epoch, recent)
            recent.clear()
        if on_batch is not None:
            on_batch(batch)
    _check_finite(run, epoch, recent)
    gather_loss(run)
    return run.progress.loss_sum / (run.train.num_batches * run.config.batch_size)


def gather_loss(run: Run) -> None:
    """Adds the workers' losses since the last time to the progress. All of them call it at the same batch.

    Raises:
        NonFiniteLossError: the sum is not finite.
    """
    run.progress.loss_sum += _sum_over_workers(run.loss_sum)
    run.loss_sum.zero_()
    if not math.isfinite(run.progress.loss_sum):
        place = f"up to batch {run.progress.batches_done - 1} of epoch {run.progress.epochs_done + 1}"
        raise _not_finite(run, f"training loss became {run.progress.loss_sum} {place}")


def _check_finite(run: Run, epoch: int, recent: Sequence[tuple[Batch, torch.Tensor]]) -> None:
    losses = torch.stack([loss for _, loss in recent]).tolist() if recent else []
    for (batch, _), loss in zip(recent, losses, strict=True):
        if not math.isfinite(loss):
            what = f"training loss became {loss} at batch {batch.index} of epoch {epoch}"
            raise _not_finite(run, what, f"sample ids: {batch.sample_ids.tolist()}\n")


def _not_finite(run: Run, what: str, details: str = "") -> NonFiniteLossError:
    remedy = "a smaller learning_rate, or precision: fp32, is the usual remedy"
    return NonFiniteLossError(f"the {what}; {remedy}\n{details}settings: {run.config}")


@torch.no_grad()
def validate(run: Run) -> float:
    """The paper's weighted loss, mean over all images of the validation split, each seen once by one worker.

    It is the weighted loss whatever a run trains with, so that all runs of a search are ranked by the same quantity.

    Raises:
        NonFiniteLossError: it is not finite.
    """
    _share_buffers(run.network)
    run.network.eval()
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    for batch in run.valid.epoch():
        if len(batch.labels):
            logits = _forward(run, run.network, to_unit(batch.images.to(run.device, non_blocking=True)))
            total += weighted_bce_sum(
                logits, batch.labels.to(run.device), batch.type_index.to(run.device), run.class_weights
            )
    val_loss = _sum_over_workers(total) / run.valid.num_images
    if not math.isfinite(val_loss):
        raise _not_finite(run, f"validation loss became {val_loss} after epoch {run.progress.epochs_done + 1}")
    return val_loss


def finish_epoch(run: Run, epoch: int, val_loss: float) -> None:
    """Takes note of an epoch's validation loss: learning-rate schedule, best epoch, early stopping."""
    run.schedule.step(val_loss)
    progress = run.progress
    progress.epochs_done, progress.batches_done, progress.loss_sum = epoch, 0, 0.0
    if val_loss < progress.best_val_loss:
        progress.best_val_loss, progress.best_epoch, progress.epochs_without_improvement = val_loss, epoch, 0
    else:
        progress.epochs_without_improvement += 1


def is_complete(run: Run) -> bool:
    """Whether nothing is left to train: all epochs done, or too many in a row without improvement."""
    patience = run.config.early_stopping_epochs
    stopped_early = patience is not None and run.progress.epochs_without_improvement >= patience
    return stopped_early or run.progress.epochs_done >= run.config.epochs


def run_state(run: Run) -> dict[str, Any]:
    """Everything besides the network that continuing needs: tensors, numbers and containers only.

    Inside an epoch `gather_loss` comes first.
    """
    return {
        "optimiser": run.optimiser.state_dict(),
        "schedule": run.schedule.state_dict(),
        "progress": asdict(run.progress),
        "rng": torch.get_rng_state(),
    }


def restore_run(run: Run, network_state: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Continues from a checkpoint of this run: the inverse of `run_state`."""
    run.network.load_state_dict(network_state)
    run.optimiser.load_state_dict(state["optimiser"])
    run.schedule.load_state_dict(state["schedule"])
    run.progress = Progress(**state["progress"])
    torch.set_rng_state(state["rng"])


def _forward(run: Run, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if run.config.precision == "bf16":
        with torch.autocast(run.device.type, torch.bfloat16):
            return model(images).float()
    return model(images)


def _share_buffers(network: nn.Module) -> None:
    """Gives all workers rank 0's BatchNorm statistics; DDP does so before a training step, not after the last one."""
    if num_workers() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def _sum_over_workers(total: torch.Tensor) -> float:
    if num_workers() > 1:
        dist.all_reduce(total)
    return float(total)
