"""When a run leaves a checkpoint inside an epoch, and how often it may fail: what bounds the loss of work.

All workers of a run decide alike: rank 0 watches the clock, and tells the others at batches that all of them know.
"""

import json
import os
import time
from pathlib import Path
from typing import Literal

import ray.train
import torch
import torch.distributed as dist
from pydantic import Field

from mura_ray.config import Settings
from mura_ray.data.loader import Batch
from mura_ray.training.loop import num_workers

ASK_EVERY = {"cpu": 1, "cuda": 20}
"""Steps between agreements: on a GPU each waits for all the work that was queued."""

PREEMPTION_EVERY_S = 5.0
"""Between questions whether a node is about to be taken away; each is a round trip to the run's controller."""

SAMPLE_LOG = "MURA_SAMPLE_LOG"
"""Environment variable: a folder in which each worker notes the images of every step, to check a run's order."""

NOTICE_S, STAND_STILL_S = 120.0, 20.0
"""A node is taken away so long after the notice where that names no time (EC2's two minutes); and so long before it the
run leaves its last checkpoint and takes no further step, which would be lost."""

STANDS_STILL_FOR_S = 120.0
"""Ray ends the workers at the deadline; where it does not, the node was spared and the run goes on."""

Due = Literal["later", "now", "at once", "last"]
"""Whether a checkpoint is due: not, with its upload beside the next steps, stored before the next step, or stored and
no step after it."""


class Recovery(Settings):
    """How a run comes through faults. Steps are global batches."""

    checkpoint_steps: int = Field(default=500, ge=1, description="steps that a fault costs, at most")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="minutes that it costs, at most")
    max_failures: int = Field(default=3, ge=0, description="faults of workers or nodes that a run survives")
    resize_every_s: float = Field(
        default=60.0, gt=0, description="seconds between looks whether an elastic run can have more workers"
    )
    max_preemptions: int = Field(default=100, ge=0, description="announced losses of nodes that a run survives")


class CheckpointClock:
    """Says after each step whether to leave a checkpoint there. One for the life of a worker.

    It is due at every half of what a fault may cost: while a checkpoint is uploaded beside the steps, the one before it
    is what a fault leads back to.

    Args:
        recovery: the run's settings.
        device: where the run computes.
    """

    def __init__(self, recovery: Recovery, device: torch.device) -> None:
        self._recovery, self._device = recovery, device
        self._last_step = self._step = 0
        self._last_s = self._asked_s = time.monotonic()
        self._deadline_s: float | None = None  # when a node is taken away, seconds since the epoch

    def due(self) -> Due:
        """After each step, on every worker, alike."""
        self._step += 1
        if self._step % ASK_EVERY[self._device.type]:
            return "later"
        steps_are_due = self._step - self._last_step >= max(1, self._recovery.checkpoint_steps // 2)
        now = time.monotonic()
        time_is_due, ask, is_ending = self._agree(
            now - self._last_s >= 60 * self._recovery.checkpoint_minutes / 2,
            self._deadline_s is None and now - self._asked_s >= PREEMPTION_EVERY_S,
            self._deadline_s is not None and time.time() > self._deadline_s - STAND_STILL_S,
        )
        if is_ending:
            self._deadline_s = None
            return self._mark("last")
        if ask:
            self._asked_s = now
            info = ray.train.get_preemption_info()
            if info is not None:
                deadline_ms = info.deadline_ms or 1000 * (time.time() + NOTICE_S)
                self._deadline_s = deadline_ms / 1000
                return self._mark("at once")
        if not (steps_are_due or time_is_due):
            return "later"
        return self._mark("now" if self._recovery.checkpoint_steps > 1 else "at once")

    def _mark(self, answer: Due) -> Due:
        self._last_step, self._last_s = self._step, time.monotonic()
        return answer

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """Rank 0's flags, on every worker."""
        if num_workers() == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.uint8, device=self._device)
        dist.broadcast(shared, src=0)
        return tuple(bool(flag) for flag in shared.tolist())


def log_event(trial: str, event: str) -> None:
    """Notes the time of a worker's event beside the images of its steps (`log_samples`)."""
    if folder := os.environ.get(SAMPLE_LOG):
        with Path(folder, f"{trial}-{os.getpid()}.events").open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": event}) + "\n")


def log_samples(trial: str, epoch: int, batch: Batch, num_batches: int) -> None:
    """Notes a step's images where `SAMPLE_LOG` names a folder."""
    folder = os.environ.get(SAMPLE_LOG)
    if not folder:
        return
    context = ray.train.get_context()
    row = {
        "time": time.time(),
        "epoch": epoch,
        "batch": batch.index,
        "num_batches": num_batches,
        "rank": context.get_world_rank(),
        "workers": context.get_world_size(),
        "sample_ids": batch.sample_ids.tolist(),
    }
    with Path(folder, f"{trial}-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
