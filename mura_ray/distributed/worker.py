"""One training run under Ray Train: `train_worker` runs on every worker, `torch_trainer` starts them."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from pydantic import Field
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

from mura_ray import s3, store
from mura_ray.config import Settings, TrialConfig
from mura_ray.data.cache import local_split
from mura_ray.data.loader import Batch, SplitLoader
from mura_ray.data.manifest import manifest_sha256, read_manifest
from mura_ray.distributed.faults import FaultLog, StopAtNonFiniteLoss
from mura_ray.distributed.process_group import ClusterTorchConfig
from mura_ray.distributed.recovery import (
    STANDS_STILL_FOR_S,
    CheckpointClock,
    Recovery,
    log_event,
    log_samples,
)
from mura_ray.distributed.tracking import copy_printer, is_epoch, step_printer
from mura_ray.domain import weights_matrix
from mura_ray.model.checkpoint import CheckpointMeta, load_network, load_state, save_checkpoint
from mura_ray.model.densenet import build_network
from mura_ray.scratch import scratch_folder
from mura_ray.training import loop

LOOK_EVERY_S = "0.5"
"""Between the controller's looks at its workers: for so long may a fault, or a stored checkpoint, go unnoticed."""

NOT_VALIDATED = 1e30
"""Validation loss of a checkpoint inside an epoch, for Ray Train's ranking: never the best. Ray's record is JSON, which
has neither NaN nor infinity; without a number there a run whose controller was lost cannot go on."""


class Resources(Settings):
    """What each run takes of the cluster: its workers, and the CPUs and GPUs of each.

    With `min_workers` a run is elastic: it goes on with as few while nodes are missing.
    """

    workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0.0, ge=0)


class RunSpec(Settings):
    """All that a worker needs to know, as plain values: it travels to other machines."""

    trial: str
    config: TrialConfig
    data: str
    data_id: str
    data_manifest_sha256: str
    initial_weights: str | None
    resources: Resources
    recovery: Recovery = Recovery()


def run_spec(
    trial: str,
    config: TrialConfig,
    data: str,
    initial_weights: str | None,
    resources: Resources,
    recovery: Recovery | None = None,
) -> RunSpec:
    """Describes a run on a converted data set, checked against it before anything starts.

    Args:
        trial: name of the run.
        config: its settings.
        data: URI of the data set.
        initial_weights: URI of prepared weights (`model.densenet.prepare_initial_weights`), or None for random ones.
        resources: what it takes of the cluster.
        recovery: how it comes through faults.

    Raises:
        ValueError: settings that do not fit the data set or the resources, or more workers than images in a batch.
    """
    manifest = read_manifest(data)
    if config.image_size != manifest.image_size:
        raise ValueError(
            f"image_size is {config.image_size}, but {data!r} holds images of {manifest.image_size} pixels: "
            f"set image_size: {manifest.image_size}, or convert with --image-size {config.image_size}"
        )
    for split in ("train", "valid"):
        if split not in manifest.splits:
            raise ValueError(f"{data!r} has no split {split!r}, which training needs; it has {list(manifest.splits)}")
    if resources.workers > config.batch_size:
        raise ValueError(
            f"{resources.workers} workers share a batch of {config.batch_size} images: raise batch_size or take fewer"
        )
    loop.compile_mode(config, "cuda" if resources.gpus_per_worker else "cpu", resources.workers)
    num_train = manifest.splits["train"].num_images
    if num_train < config.batch_size:
        raise ValueError(f"the training split has {num_train} images, less than one batch of {config.batch_size}")
    return RunSpec(
        trial=trial,
        config=config,
        data=data,
        data_id=manifest.id,
        data_manifest_sha256=manifest_sha256(data),
        initial_weights=initial_weights,
        resources=resources,
        recovery=recovery or Recovery(),
    )


def torch_trainer(
    spec: RunSpec, storage: str, callbacks: Sequence[ray.train.UserCallback] = ()
) -> ray.train.torch.TorchTrainer:
    """The trainer of a run. Under the same storage and trial name it continues from the latest checkpoint there.

    Keeps two checkpoints: the one with the lowest validation loss and the latest.
    """
    resources = spec.resources
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", LOOK_EVERY_S)
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=spec.model_dump(mode="json"),
        torch_config=ClusterTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
            elastic_resize_monitor_interval_s=spec.recovery.resize_every_s,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=spec.trial,
            storage_path=storage,
            # The last may end the run; the one before it has kept by then why.
            callbacks=[*callbacks, FaultLog(store.join(storage, spec.trial)), StopAtNonFiniteLoss()],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # one line a report and worker is too much
            failure_config=ray.train.FailureConfig(
                max_failures=spec.recovery.max_failures, max_preemption_failures=spec.recovery.max_preemptions
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val_loss", checkpoint_score_order="min"
            ),
        ),
    )


def checkpoint_uri(checkpoint: ray.train.Checkpoint, storage: str) -> str:
    """The URI of a checkpoint that lies in a run's storage; Ray leaves out the scheme."""
    return f"{s3.SCHEME}{checkpoint.path}" if store.is_s3(storage) else checkpoint.path


def train_worker(settings: dict[str, Any]) -> None:
    """Trains on this worker, epoch by epoch, and reports each epoch's validation loss with a checkpoint.

    Args:
        settings: a `RunSpec` as plain values.
    """
    spec = RunSpec.model_validate(settings)
    log_event(spec.trial, "started")
    with ExitStack() as copies:
        paths = {
            split: copies.enter_context(local_split(spec.data, split, progress=copy_printer(spec.trial, split)))
            for split in ("train", "valid")
        }
        run = _prepare(spec, paths)
        clock = CheckpointClock(spec.recovery, run.device)
        while not loop.is_complete(run):
            _report(spec, run, _train_epoch(spec, run, clock))
        run.train.close()
        run.valid.close()


def _train_epoch(spec: RunSpec, run: loop.Run, clock: CheckpointClock) -> dict[str, Any]:
    """Trains and validates the next epoch. Returns what is reported of it."""
    epoch = run.progress.epochs_done + 1
    learning_rate = run.optimiser.param_groups[0]["lr"]
    started = time.monotonic()
    train_loss = loop.train_epoch(run, epoch, _step_hook(spec, run, clock, epoch))
    val_loss = loop.validate(run)
    loop.finish_epoch(run, epoch, val_loss)
    return {
        "epoch": epoch,
        "batches_done": 0,
        "val_loss": val_loss,
        "train_loss": train_loss,
        "learning_rate": learning_rate,
        "epoch_s": time.monotonic() - started,
        "workers": loop.num_workers(),
    }


def _prepare(spec: RunSpec, paths: Mapping[str, Path]) -> loop.Run:
    """Loaders, network and optimiser of this worker, continued from the run's latest checkpoint where there is one."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(spec.resources.cpus_per_worker)
    config = spec.config

    def split_loader(split: str) -> SplitLoader:
        return SplitLoader(
            paths[split],
            batch_size=config.batch_size if split == "train" else max(config.batch_size, loop.VALIDATION_BATCH),
            rank=rank,
            world_size=workers,
            shuffle=split == "train",
            seed=config.seed,
        )

    run = loop.prepare_run(
        config,
        build_network(spec.initial_weights, config.seed),
        split_loader("train"),
        split_loader("valid"),
        torch.from_numpy(weights_matrix(read_manifest(spec.data).class_weights)),
        ray.train.torch.get_device(),
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        log_event(spec.trial, "restoring")
        with checkpoint.as_directory() as directory:
            loop.restore_run(run, load_network(Path(directory)).state_dict(), load_state(Path(directory)))
        log_event(spec.trial, "restored")
        place = f"after epoch {run.progress.epochs_done}, batch {run.progress.batches_done} of the next"
        print(f"{spec.trial} continues {place}", flush=True)
    return run


def _step_hook(spec: RunSpec, run: loop.Run, clock: CheckpointClock, epoch: int) -> loop.OnBatch:
    """What happens after each step: a note where the epoch stands, and now and then a checkpoint."""
    is_first = ray.train.get_context().get_world_rank() == 0
    num_batches = run.train.num_batches
    tell = step_printer(spec.trial, spec.config, epoch, num_batches, run.progress.batches_done) if is_first else None

    def after_step(batch: Batch) -> None:
        log_samples(spec.trial, epoch, batch, num_batches)
        if tell is not None:
            tell(batch)
        due = clock.due()
        if due == "later" or run.progress.batches_done == num_batches:  # the epoch's own checkpoint comes at its end
            return
        loop.gather_loss(run)
        metrics = {"epoch": epoch, "batches_done": run.progress.batches_done, "val_loss": NOT_VALIDATED}
        _report(spec, run, metrics, wait=due != "now")
        if due == "last":
            print(f"{spec.trial} waits: a node is about to be taken away", flush=True)
            time.sleep(STANDS_STILL_FOR_S)

    return after_step


def _report(spec: RunSpec, run: loop.Run, metrics: dict[str, Any], *, wait: bool = True) -> None:
    """Reports on every worker; rank 0 brings the checkpoint, which is stored before the next step or beside the steps.

    The one before it is stored by then in any case, so that a fault leads back by two checkpoints at most.
    """
    checkpoint = None
    is_first = ray.train.get_context().get_world_rank() == 0
    if is_first:
        _wait_until_stored()
        directory = tempfile.mkdtemp(dir=scratch_folder())  # removed by Ray, after the upload
        meta = CheckpointMeta(
            trial=spec.trial,
            epoch=metrics["epoch"],
            batches_done=metrics["batches_done"],
            val_loss=metrics["val_loss"] if is_epoch(metrics) else None,
            image_size=spec.config.image_size,
            config=spec.config,
            data_id=spec.data_id,
            data_manifest_sha256=spec.data_manifest_sha256,
        )
        save_checkpoint(Path(directory), run.network, meta, loop.run_state(run))
        checkpoint = ray.train.Checkpoint.from_directory(directory)
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
    if wait and is_first and metrics["batches_done"]:
        _wait_until_stored()


def _wait_until_stored() -> None:
    """Until Ray Train has recorded all checkpoints that were reported: the upload alone makes none of them count."""
    ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
