"""This project's loader."""

import atexit
import itertools
from contextlib import ExitStack

from benchmarks.loader.contenders import Data, Epoch, Epochs
from mura_ray.config import Augmentation
from mura_ray.data.augment import augment
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader

_open_files = ExitStack()
atexit.register(_open_files.close)


def open_plain(data: Data, workers: int) -> Epochs:
    """`local_split` and `SplitLoader`; where the cache has no copy yet, it is made first."""
    del workers
    loader, epochs = _open(data), itertools.count()
    return lambda: ((batch.images, batch.sample_ids) for batch in loader.epoch(next(epochs)))


def open_augmented(data: Data, workers: int) -> Epochs:
    """The same with lateral inversion and rotation up to 30 degrees, a batch at a time on the CPU."""
    del workers
    loader, epochs, settings = _open(data), itertools.count(), Augmentation()

    def epoch() -> Epoch:
        number = next(epochs)
        for batch in loader.epoch(number):
            yield augment(batch.images, batch.sample_ids, seed=0, epoch=number, settings=settings), batch.sample_ids

    return epoch


def _open(data: Data) -> SplitLoader:
    shards = data.remote and f"{data.remote}/shards"
    copy = local_split(shards or str(data.folder / "shards"), "train", cache=data.folder / "cache")
    return SplitLoader(_open_files.enter_context(copy), batch_size=data.batch, shuffle=True)
