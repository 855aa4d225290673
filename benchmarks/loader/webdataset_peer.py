"""WebDataset on tar shards, as its documentation recommends for speed: batches are made in the workers."""

import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import webdataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import default_collate

from benchmarks.loader.contenders import Data, Epochs

wds: Any = webdataset  # it has no types
SHUFFLE_BUFFER = 1000

warnings.filterwarnings("ignore", "The given buffer is not writable")


def open_raw(data: Data, workers: int) -> Epochs:
    """The pixels as they are."""
    shape = (1, data.size, data.size)
    return _open(data, "raw", workers, lambda content: torch.frombuffer(content, dtype=torch.uint8).view(shape))


def open_jpeg(data: Data, workers: int) -> Epochs:
    """Gray JPEG, decoded by OpenCV."""

    def decode(content: bytes) -> torch.Tensor:
        return torch.from_numpy(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE))[None]

    return _open(data, "jpeg", workers, decode)


def _open(data: Data, kind: str, workers: int, decode: Callable[[bytes], torch.Tensor]) -> Epochs:
    urls = [str(path) for path in data.tar(kind)]
    if data.remote:
        urls = [f"{data.remote}/tar-{kind}/{path.name}" for path in data.tar(kind)]

    def convert(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return decode(sample[kind]), int(sample["__key__"])

    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE_BUFFER).map(convert)
    dataset = dataset.batched(data.batch, collation_fn=default_collate)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)
