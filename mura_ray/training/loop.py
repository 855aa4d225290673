"""The training loop of one worker: the paper's recipe (section 3.1), epoch by epoch.

Knows no Ray and no storage. Where a `torch.distributed` process group is up, all its workers train one network: each
takes its slice of every global batch, and losses are means over global batches, so the number of workers changes
nothing but speed and the statistics of BatchNorm.
"""

import functools
import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mura_ray.config import TrialConfig
from mura_ray.data.augment import augment, to_unit
from mura_ray.data.loader import Batch, SplitLoader
from mura_ray.data.prefetch import prefetch, to_device
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.loss import bce_sum, image_weights
from mura_ray.training.recorded import Inputs, Recorded

OnBatch = Callable[[Batch], None]
"""Called after the step of each global batch with this worker's part of it."""

CHECK_EVERY = {"cpu": 1, "cuda": 32}
"""Steps between looks at the losses: on a GPU each look waits for all the work that was queued."""

VALIDATION_BATCH = 32
"""Images of a global batch in validation, unless training has more: a forward pass of 8 leaves most of a GPU idle."""


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite, and would again. Its `args`: what; where and with what; number of the batch."""

    def __str__(self) -> str:
        """All but the number."""
        return "\n".join(self.args[:2])


class BatchLoss(NamedTuple):
    """Of one global batch, this worker's part: the loss is a scalar on the device that nothing has waited for."""

    batch: int
    sample_ids: list[int]
    loss: torch.Tensor


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

    `network` is the bare network, which validates and is saved. `model` is the same one as it trains: inside
    DistributedDataParallel where there are several workers, and compiled where that is asked for. `recorded` replays
    its passes where they are to be a CUDA graph.
    `class_weights` is float32 [7, 2], indexed [study type, label], on the host. `loss_sum` is float64 [], what this
    worker adds to the progress's. `unchecked` are losses that nobody has looked at yet.
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
    unchecked: list[BatchLoss] = field(default_factory=list)
    recorded: Recorded | None = None


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
    """Puts a network on its device, in DDP where there are several workers, with its optimiser and schedule.

    Raises:
        ValueError: a way to compile that this device or this number of workers does not have.
    """
    compiled = compile_mode(config, device.type, num_workers())
    # Of the whole process, and on a CPU of no effect. Without these lines torch has convolutions of fp32 use TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = True  # pays because all batches of a run have one shape
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model: nn.Module = network
    if num_workers() > 1:
        if config.sync_batch_norm and device.type == "cuda":
            network = cast(AbnormalityNet, nn.SyncBatchNorm.convert_sync_batchnorm(network))
        # It all-reduces the gradients bucket by bucket, beside the rest of the backward pass; as views of the buckets
        # they need no copy of their own. Training reads no running statistics: `validate` sends them round, not every
        # step. `static_graph` would gain nothing where every parameter has a gradient at every step.
        model = DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
        )
    if compiled == "kernels":
        model = cast(nn.Module, torch.compile(model, dynamic=False))
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
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    run = Run(config, train, valid, class_weights, device, network, model, optimiser, schedule, Progress(), loss_sum)
    if compiled == "graphs":
        run.recorded = Recorded(functools.partial(_passes, run), network)
    return run


def compile_mode(config: TrialConfig, device_type: str, workers: int) -> Literal["none", "kernels", "graphs"]:
    """How a trial's network is compiled on so many workers.

    Raises:
        ValueError: as the setting says it cannot be.
    """
    on_gpu = device_type == "cuda"
    if config.compile == "auto":
        return "graphs" if on_gpu and workers == 1 else "none"
    if config.compile == "graphs" and not (on_gpu and workers == 1):
        raise ValueError(
            f"compile: graphs needs a GPU and one worker a trial, not {workers} on {device_type}: use compile: auto, "
            "which takes graphs where it can"
        )
    if config.compile == "kernels" and on_gpu and workers > 1 and config.sync_batch_norm:
        raise ValueError(
            f"compile: kernels on {workers} GPUs: each synchronised BatchNorm waits for the other GPUs, which no "
            "compiled network can; use compile: auto or none, one worker a trial, or sync_batch_norm: false"
        )
    return config.compile


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
    with closing(train_inputs(run, epoch)) as batches:
        for batch, inputs in batches:
            loss = train_step(run, inputs, batch.global_size)
            run.loss_sum += loss
            run.progress.batches_done = batch.index + 1
            # Not the batch itself: the loader uses its memory again once nobody refers to any part of it.
            run.unchecked.append(BatchLoss(batch.index, batch.sample_ids.tolist(), loss))
            if len(run.unchecked) >= CHECK_EVERY[run.device.type]:
                _check_finite(run)
            if on_batch is not None:
                on_batch(batch)
    gather_loss(run)
    return run.progress.loss_sum / (run.train.num_batches * run.config.batch_size)


def train_inputs(run: Run, epoch: int) -> Generator[tuple[Batch, Inputs], None, None]:
    """The batches of an epoch, from where the run is, augmented on the device, one ahead of the step."""
    weights = run.class_weights if run.config.weighted_loss else torch.ones_like(run.class_weights)

    def prepare(batch: Batch) -> Inputs:
        images = augment(
            to_device(batch.images, run.device),
            batch.sample_ids,
            seed=run.config.seed,
            epoch=epoch,
            settings=run.config.augmentation,
        )
        return _inputs(run, batch, images, weights)

    return prefetch(run.train.epoch(epoch, start=run.progress.batches_done), prepare, run.device)


def train_step(run: Run, inputs: Inputs, global_size: int) -> torch.Tensor:
    """One step of the optimiser.

    Args:
        run: this worker's run; its model is in training mode.
        inputs: this worker's part of a global batch. Their shape is the same at every step.
        global_size: images of the global batch, over all workers.

    Returns:
        The loss, summed over this worker's images: float32 [], on the device; nothing has waited for it.
    """
    loss = (run.recorded or functools.partial(_passes, run))(inputs, num_workers() / global_size)
    run.optimiser.step()
    return loss


def _passes(run: Run, inputs: Inputs, factor: float) -> torch.Tensor:
    run.optimiser.zero_grad(set_to_none=True)
    loss = bce_sum(_forward(run, run.model, inputs.images), inputs.labels, inputs.weights)
    # DDP averages the workers' gradients; the factor makes that average the gradient of the mean over the global batch.
    (loss * factor).backward()
    return loss.detach()


def gather_loss(run: Run) -> None:
    """Adds the workers' losses since the last time to the progress. All of them call it at the same batch.

    Raises:
        NonFiniteLossError: one of this worker's is not finite.
    """
    _check_finite(run)
    run.progress.loss_sum += _sum_over_workers(run.loss_sum)
    run.loss_sum.zero_()


def _check_finite(run: Run) -> None:
    losses = torch.stack([part.loss for part in run.unchecked]).tolist() if run.unchecked else []
    for part, loss in zip(run.unchecked, losses, strict=True):
        if not math.isfinite(loss):
            what = f"training loss became {loss} at batch {part.batch} of epoch {run.progress.epochs_done + 1}"
            raise _not_finite(run, what, f"sample ids: {part.sample_ids}\n", part.batch)
    run.unchecked.clear()


def _not_finite(run: Run, what: str, where: str = "", batch: int = -1) -> NonFiniteLossError:
    remedy = "a smaller learning_rate, or precision: fp32, is the usual remedy"
    return NonFiniteLossError(f"the {what}; {remedy}", f"{where}settings: {run.config}", batch)


@torch.no_grad()
def validate(run: Run) -> float:
    """The paper's weighted loss, mean over all images of the validation split, each seen once by one worker.

    It is the weighted loss whatever a run trains with, so that all runs of a search are ranked by the same quantity.
    The network runs uncompiled: it would be compiled once more without gradients, and again for a smaller last batch.

    Raises:
        NonFiniteLossError: it is not finite.
    """

    def prepare(batch: Batch) -> Inputs:
        return _inputs(run, batch, to_unit(to_device(batch.images, run.device)), run.class_weights)

    _share_buffers(run.network)
    run.network.eval()
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    with closing(prefetch(run.valid.epoch(), prepare, run.device)) as batches:
        for _, inputs in batches:
            if len(inputs.labels):
                total += bce_sum(_forward(run, run.network, inputs.images), inputs.labels, inputs.weights)
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


def _inputs(run: Run, batch: Batch, images: torch.Tensor, class_weights: torch.Tensor) -> Inputs:
    weights = image_weights(batch.labels, batch.type_index, class_weights)
    return Inputs(images, to_device(batch.labels, run.device), to_device(weights, run.device))


def _forward(run: Run, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if run.config.precision == "bf16":
        # Each weight is used once; and a recording must keep no copy of the weights from before it.
        with torch.autocast(run.device.type, torch.bfloat16, cache_enabled=False):
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
