"""MosaicML streaming on its MDS shards."""

import warnings
from typing import Any

import cv2
import numpy as np
import torch
from streaming import StreamingDataLoader, StreamingDataset  # pyright: ignore[reportMissingImports]

from benchmarks.loader.contenders import Data, Epochs

warnings.filterwarnings("ignore", "The given NumPy array is not writable")


def open_raw(data: Data, workers: int) -> Epochs:
    """Encoding `ndarray` of fixed type and shape: no copy before the DataLoader stacks."""
    return _open(_RawDataset, data, "mds-raw", workers)


def open_jpeg(data: Data, workers: int) -> Epochs:
    """Gray JPEG as bytes, decoded by OpenCV: no slower than its encoding `jpeg`, which decodes by Pillow."""
    return _open(_JpegDataset, data, "mds-jpeg", workers)


def _open(kind: "type[StreamingDataset]", data: Data, folder: str, workers: int) -> Epochs:
    local, remote = str(data.folder / folder), data.remote and f"{data.remote}/{folder}"
    dataset: Any = kind(local=local, remote=remote, shuffle=True, batch_size=data.batch)
    loader = StreamingDataLoader(dataset, batch_size=data.batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


class _RawDataset(StreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample: Any = super().__getitem__(at)
        return torch.from_numpy(sample["image"])[None], sample["number"]


class _JpegDataset(StreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample: Any = super().__getitem__(at)
        gray = cv2.imdecode(np.frombuffer(sample["image"], np.uint8), cv2.IMREAD_GRAYSCALE)
        return torch.from_numpy(gray)[None], sample["number"]
