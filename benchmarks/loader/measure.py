"""Measures one contender; runs in that contender's own process, where the open loader is kept between the calls."""

import gc
import importlib
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.loader.contenders import Contender, Data, Epochs

CLOSE = 4.0
"""Mean difference in gray values, over an image, up to which another decoder or another scaling counts as close."""

warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are tried, too

_open: list[tuple[Epochs, Iterator[Any]]] = []  # the contender that is open, and its first epoch


@dataclass(frozen=True)
class Round:
    """What one round took."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def images_per_s(self) -> float:
        """Throughput."""
        return self.images / self.seconds


@dataclass(frozen=True)
class FirstEpoch:
    """From nothing to the first batch, to the end of the first epoch; and how long the second one took."""

    first_batch_s: float
    epoch_s: float
    second_epoch_s: float


def seconds_to_first_batch(contender: Contender, data: Data, workers: int) -> float:
    """Opens the contender, its modules being imported already, and keeps it open."""
    opener = _opener(contender)
    started = time.perf_counter()
    epochs = opener(data, workers)
    batches = iter(epochs())
    first = next(batches)
    seconds = time.perf_counter() - started
    assert len(first[0]) == data.batch
    _open.append((epochs, batches))
    return seconds


def warm_up(seconds: float) -> None:
    """Reads the first epoch to its end, and others for so many seconds in all."""
    epochs, batches = _open[0]
    started = time.perf_counter()
    for _ in batches:
        pass
    while time.perf_counter() - started < seconds:
        for _ in epochs():
            pass


def trial_images_per_s(contender: Contender, data: Data, workers: int, seconds: float) -> float:
    """Throughput over about so many seconds, after the batches that were under way before; to choose the workers."""
    epochs = _opener(contender)(data, workers)
    batches = itertools.chain.from_iterable(epochs() for _ in itertools.count())
    for _ in itertools.islice(batches, 4 * max(workers, 1)):
        pass
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += len(next(batches)[0])
    took = time.perf_counter() - started
    del batches
    gc.collect()
    return images / took


def check_epoch(data: Data, pixels: str) -> None:
    """Reads an epoch and checks that every image is in it once, and looks as it should.

    Raises:
        ValueError: it is not so.
    """
    array = np.memmap(data.raw, np.uint8, "r", shape=(data.num_images, data.size, data.size))
    seen: list[int] = []
    for images, numbers in _open[0][0]():
        seen.extend(numbers.tolist())
        if images.shape[-2:] != (data.size, data.size) or len(images) != len(numbers):
            raise ValueError(f"a batch of {len(numbers)} images has the shape {tuple(images.shape)}")
        if pixels == "augmented":
            if images.dtype != torch.float32 or not torch.isfinite(images).all():
                raise ValueError(f"augmented images are {images.dtype}, or not all finite")
            continue
        differences = np.abs(images[:, 0].numpy().astype(np.int16) - array[numbers.numpy()]).mean(axis=(1, 2))
        if differences.max() > (CLOSE if pixels == "close" else 0):
            raise ValueError(f"images differ from the array by {differences.max():.2f} gray values in the mean")
    if sorted(seen) != list(range(data.num_images)):
        raise ValueError(
            f"{len(seen)} images were delivered, {len(set(seen))} of them different, out of {data.num_images}"
        )


def run_round(data: Data, seconds: float) -> Round:
    """Whole epochs, for so many seconds at least."""
    images, cpu_before, started = 0, harness.cpu_seconds(os.getpid()), time.perf_counter()
    num_epochs = 0
    while (took := time.perf_counter() - started) < seconds:
        for batch, _ in _open[0][0]():
            images += len(batch)
        num_epochs += 1
    assert images == num_epochs * data.num_images
    return Round(images, took, harness.cpu_seconds(os.getpid()) - cpu_before)


def first_epochs(contender: Contender, data: Data, workers: int, environment: dict[str, str]) -> FirstEpoch:
    """From S3 and an empty folder: the first two epochs."""
    os.environ.update(environment)
    opener = _opener(contender)
    started = time.perf_counter()
    epochs = opener(data, workers)
    times, images = [], 0
    for _ in range(2):
        for batch, _ in epochs():
            if not images:
                times.append(time.perf_counter() - started)
            images += len(batch)
        times.append(time.perf_counter() - started)
    assert images == 2 * data.num_images
    return FirstEpoch(times[0], times[1], times[2] - times[1])


def close() -> None:
    """Ends the contender's workers and threads."""
    _open.clear()
    gc.collect()


def _opener(contender: Contender) -> Callable[[Data, int], Epochs]:
    module, _, function = contender.opener.partition(":")
    return getattr(importlib.import_module(f"benchmarks.loader.{module}"), function)
