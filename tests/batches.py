"""Batches from memory, a network that compiles in seconds, and torch's settings, for tests of the training loop."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torchvision.models import DenseNet

from mura_ray.config import TrialConfig
from mura_ray.data.loader import Batch, worker_slice
from mura_ray.model.densenet import AbnormalityNet

SIZE = 64
CONFIG = TrialConfig(image_size=SIZE, initial_weights="random", batch_size=8, epochs=2, learning_rate=1e-3)
WEIGHTS = torch.tensor([[0.4, 0.6]]).repeat(7, 1)
"""Of the classes, by study type and label."""


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Afterwards sets back what `prepare_run` sets for the whole process."""
    cudnn, cublas = cast(Any, torch.backends.cudnn), torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32, cudnn.benchmark
    yield
    cudnn.allow_tf32, cublas.allow_tf32, cudnn.benchmark = before


class MemoryLoader:
    """Random images and labels, shared among workers as `SplitLoader` does."""

    def __init__(self, num_images: int, size: int, batch_size: int = 8, rank: int = 0, world_size: int = 1) -> None:
        generator = np.random.default_rng(5)
        self.images = generator.integers(0, 256, (num_images, 1, size, size), dtype=np.uint8)
        self.labels = generator.integers(0, 2, num_images)
        self.num_images, self.num_batches = num_images, math.ceil(num_images / batch_size)
        self.closed = 0
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def epoch(self, epoch: int = 0, start: int = 0) -> Generator[Batch, None, None]:
        try:
            for index in range(start, self.num_batches):
                rows = np.arange(self.num_images)[index * self._batch_size : (index + 1) * self._batch_size]
                mine = rows[worker_slice(len(rows), self._rank, self._world_size)]
                yield Batch(
                    images=torch.from_numpy(self.images[mine]),
                    labels=torch.from_numpy(self.labels[mine]).float(),
                    type_index=torch.from_numpy(mine % 7),
                    sample_ids=torch.from_numpy(mine),
                    index=index,
                    global_size=len(rows),
                )
        finally:
            self.closed += 1


class SmallNetwork(AbnormalityNet):
    """The network with one layer in each of two dense blocks: compiled in seconds, where DenseNet-169 takes minutes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            body = DenseNet(growth_rate=8, block_config=(1, 1), num_init_features=8, num_classes=1)  # pyright: ignore
        self.features, self.classifier = body.features, body.classifier
