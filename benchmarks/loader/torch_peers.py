"""torch's DataLoader on PNG files, the usual way and as fast as it gets, and on the plain array."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from benchmarks.loader.contenders import Data, Epochs
from mura_ray.images import resize_gray

Transform = Callable[[Image.Image], torch.Tensor]

# The augmentations work on PIL images because that is where torchvision is fastest (a rotated gray image: 0.8 ms
# against 1.1 ms as a tensor); bilinear, as this project's.
_AUGMENTATIONS = (
    v2.RandomHorizontalFlip(),
    v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),  # pyright: ignore[reportArgumentType]
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
)


def open_png_pil(data: Data, workers: int) -> Epochs:
    """Pillow decodes to RGB and scales."""
    return _loader(_PngPil(data, v2.PILToTensor()), data, workers)


def open_png_pil_augmented(data: Data, workers: int) -> Epochs:
    """The same, flipped, rotated and normalised by torchvision."""
    normalise = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return _loader(_PngPil(data, v2.Compose([*_AUGMENTATIONS, normalise])), data, workers)


def open_png_cv2(data: Data, workers: int) -> Epochs:
    """OpenCV decodes to one channel and averages over areas."""
    return _loader(_PngCv2(data), data, workers)


def open_png_cv2_augmented(data: Data, workers: int) -> Epochs:
    """The same, flipped, rotated and normalised by torchvision, in one channel."""
    return _loader(_PngCv2(data, v2.Compose([*_AUGMENTATIONS, v2.Normalize([0.449], [0.226])])), data, workers)


def open_raw_images(data: Data, workers: int) -> Epochs:
    """A view of each image in the plain array; the DataLoader stacks them."""
    return _loader(_Raw(data), data, workers)


def open_raw_batches(data: Data, workers: int) -> Epochs:
    """A copy of each batch at once: the bulk reading of torch's documentation, without automatic batching."""
    dataset = _Raw(data)
    sampler = BatchSampler(RandomSampler(dataset), data.batch, drop_last=False)
    loader: DataLoader[Any] = DataLoader(
        dataset, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def _loader(dataset: "Dataset[Any]", data: Data, workers: int) -> Epochs:
    loader = DataLoader(
        dataset, batch_size=data.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
    )  # fmt: skip
    return lambda: iter(loader)


def _one_thread(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)


class _PngPil(Dataset):
    def __init__(self, data: Data, transform: Transform) -> None:
        self._data, self._transform = data, transform

    def __len__(self) -> int:
        return self._data.num_images

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        with Image.open(self._data.png(number)) as file:
            image = file.convert("RGB").resize((self._data.size, self._data.size), Image.Resampling.BILINEAR)
        return self._transform(image), number


class _PngCv2(Dataset):
    def __init__(self, data: Data, transform: Transform | None = None) -> None:
        self._data, self._transform = data, transform

    def __len__(self) -> int:
        return self._data.num_images

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        gray = cv2.imread(str(self._data.png(number)), cv2.IMREAD_GRAYSCALE)
        assert gray is not None
        scaled = resize_gray(gray, self._data.size)
        if self._transform is None:
            return torch.from_numpy(scaled)[None], number
        return self._transform(Image.fromarray(scaled)), number


class _Raw(Dataset):
    def __init__(self, data: Data) -> None:
        shape = (data.num_images, 1, data.size, data.size)
        # Copy-on-write, because torch wants writable memory; nothing writes.
        self._array = np.memmap(data.raw, np.uint8, "c", shape=shape)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, number: "int | list[int]") -> Any:
        if isinstance(number, int):
            return torch.from_numpy(self._array[number]), number
        return torch.from_numpy(self._array.take(number, axis=0)), torch.tensor(number)
