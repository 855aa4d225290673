"""Reads one split's .beton with FFCV in an order of our own, cut into global batches over any number of workers.

The order is a function of (seed, epoch) and the place in an epoch is a batch number, so that a run resumes inside an
epoch, on another number of workers too. Every trap of FFCV ends in this module.
"""

import contextlib
import queue
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mura_ray.data import shards
from mura_ray.data._ffcv import EpochIterator, IntDecoder, Loader, NDArrayDecoder


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One worker's part of a global batch, n images, on the host.

    Attributes:
        images: uint8 [n, 1, S, S].
        labels: float32 [n], 0 normal, 1 abnormal.
        type_index: int64 [n], index in `domain.STUDY_TYPES`.
        sample_ids: int64 [n], the same in every conversion of the collection.
        index: number of the global batch in the epoch.
        global_size: images of the global batch over all workers.
    """

    images: torch.Tensor
    labels: torch.Tensor
    type_index: torch.Tensor
    sample_ids: torch.Tensor
    index: int
    global_size: int


def global_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's images over all workers: an int64 permutation of 0 to num_images - 1."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def worker_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """A worker's part of a global batch. The sizes differ by one at most; the first workers have the larger parts."""
    share, extra = divmod(batch_size, world_size)
    start = rank * share + min(rank, extra)
    return slice(start, start + share + (rank < extra))


class SplitLoader:
    """Batches of one split, epoch after epoch.

    Args:
        path: the split's .beton, its hash already verified.
        batch_size: images of a global batch, over all workers.
        rank: number of this worker.
        world_size: number of workers, at most `batch_size`.
        shuffle: True for training: the order differs from epoch to epoch, and the last incomplete global batch is left
            out. False: the file's order, and every image exactly once over all workers; a worker without a part of
            the last batch gets an empty one, so that all take equally many steps.
        seed: of the order.

    Attributes:
        num_images: images of the split.
        num_batches: global batches of an epoch.

    Raises:
        ValueError: more workers than images in a batch, fewer training images than that, or no sound file.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool,
        seed: int = 0,
    ) -> None:
        assert 0 <= rank < world_size
        if world_size > batch_size:
            raise ValueError(
                f"{world_size} workers cannot share batches of {batch_size} images: "
                "raise the batch size or take fewer workers"
            )
        facts = shards.read_facts(path)
        if shuffle and facts.num_images < batch_size:
            raise ValueError(
                f"a batch of {batch_size} images does not fit a training set of {facts.num_images}: "
                "lower the batch size"
            )
        self.num_images = facts.num_images
        self.num_batches = self.num_images // batch_size if shuffle else -(-self.num_images // batch_size)
        self._image_size = facts.image_size
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._shuffle, self._seed = shuffle, seed
        part = worker_slice(batch_size, rank, world_size)
        self._loader = _open(path, part.stop - part.start)
        self._memory = _Memory(self._loader)
        self._reading: _Reading | None = None

    def epoch(self, epoch: int = 0, start: int = 0) -> Generator[Batch, None, None]:
        """This worker's part of each global batch. May be left early; only the epoch begun last can be read on.

        Args:
            epoch: number of the epoch, which the order depends on when shuffling.
            start: the first global batch to yield.
        """
        order = global_order(self.num_images, self._seed, epoch) if self._shuffle else np.arange(self.num_images)
        size = self._batch_size
        batches = [order[index * size : (index + 1) * size] for index in range(self.num_batches)][start:]
        parts = [batch[worker_slice(len(batch), self._rank, self._world_size)] for batch in batches]
        self.close()
        reading = self._reading = _Reading(self._loader, np.concatenate([order[:0], *parts]), self._memory)
        try:
            for index, (batch, part) in enumerate(zip(batches, parts, strict=True), start):
                if self._reading is not reading:
                    raise RuntimeError("this epoch cannot be read on: the loader was closed, or it began another")
                arrays = reading.take() if len(part) else self._no_images()
                yield Batch(*arrays, index=index, global_size=len(batch))
        finally:
            if self._reading is reading:
                self.close()

    def close(self) -> None:
        """Ends the thread that reads an epoch, if one does."""
        if self._reading is not None:
            self._reading.stop()
            self._reading = None

    def _no_images(self) -> tuple[torch.Tensor, ...]:
        size, integers = self._image_size, torch.empty(0, dtype=torch.int64)
        return torch.empty((0, 1, size, size), dtype=torch.uint8), torch.empty(0), integers, integers


def _open(path: Path, num_images: int) -> Loader:
    """FFCV's loader for batches of so many images; it compiles for seconds, so there is one a split."""
    num_torch_threads = torch.get_num_threads()
    try:
        return Loader(
            str(path),
            batch_size=num_images,
            num_workers=1,  # its decoder of arrays is one thread's work in any case: 90,000 images/s of 320 px
            os_cache=True,
            drop_last=False,
            seed=0,  # without one it draws from numpy's global generator
            pipelines={
                "image": [NDArrayDecoder()],
                "label": [IntDecoder()],
                "study_type": [IntDecoder()],
                "sample_id": [IntDecoder()],
            },
        )
    finally:
        torch.set_num_threads(num_torch_threads)  # it sets its own


class _Memory:
    """Memory for batches, used again once nobody refers to the batch that was in it.

    FFCV's own ring of buffers would have every batch copied out of it, which costs more than reading it.
    """

    _MOST = 8  # more are made where a user keeps batches, but not remembered
    _UNUSED = 3  # references to an array: the allocation, the loop's name and the call that counts

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._all: list[dict[str, Any]] = []

    def unused(self) -> dict[str, Any]:
        """What FFCV calls the memory allocations of its pipelines, for one batch."""
        for allocations in self._all:
            arrays = allocations["operation"].values()
            if all(array is None or sys.getrefcount(array) <= self._UNUSED for array in arrays):
                return allocations
        found = self._loader.graph.allocate_memory(self._loader.batch_size, 1)
        # Plain memory, where FFCV pins it: a copy of pinned memory to a GPU may still run when the batch is let go.
        made = {
            kind: {node: None if array is None else np.empty_like(array) for node, array in arrays.items()}
            for kind, arrays in found.items()
        }
        if len(self._all) < self._MOST:
            self._all.append(made)
        return made


class _Reading(EpochIterator):
    """FFCV's thread that reads given samples in batches, changed so that it neither hangs its user nor outlives it."""

    def __init__(self, loader: Loader, order: np.ndarray, memory: _Memory) -> None:
        self._num_torch_threads = torch.get_num_threads()
        self._memory = memory
        self._error: Exception | None = None
        super().__init__(loader, order)  # pyright: ignore[reportArgumentType] - any array of indices; starts the thread

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # FFCV's own thread would end without a word, and its user wait for ever
            self._error = error
            self.output_queue.put(None)

    def run_pipeline(self, b_ix, batch_indices, batch_slot, cuda_event):
        if b_ix == 0:
            torch.set_num_threads(self._num_torch_threads)  # the thread began by setting FFCV's number
        self.memory_allocations = self._memory.unused()
        return super().run_pipeline(b_ix, batch_indices, 0, cuda_event)

    def take(self) -> tuple[torch.Tensor, ...]:
        """The next batch: images, labels, type indices, sample ids, in memory that is theirs."""
        try:
            images, labels, type_index, sample_ids = next(self)
        except StopIteration:
            raise RuntimeError("FFCV could not read a batch") from self._error
        return (
            torch.from_numpy(images),
            torch.from_numpy(labels[:, 0].astype(np.float32)),
            torch.from_numpy(type_index[:, 0]),
            torch.from_numpy(sample_ids[:, 0]),
        )

    def stop(self) -> None:
        """Ends the thread, after the batch it is at, and waits for that."""
        self.iter_ixes = iter(())
        while self.is_alive():
            with contextlib.suppress(queue.Empty):  # it may be waiting to hand over a batch
                self.output_queue.get(timeout=0.01)
        self.close()
