"""Who takes part, and on which files. Imports none of them: each has a process of its own."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

INSTALL = "uv pip install --python .venv/bin/python --no-deps -r benchmarks/requirements.txt"
NUM_TAR_SHARDS = 8
"""So that up to eight of WebDataset's workers have work."""

PNG_SIDE = 512
"""Longer side of the PNG files, as in MURA-v1.1."""

Epoch = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Batches of images, uint8 or float [n, C, S, S], and their numbers, int64 [n]."""

Epochs = Callable[[], Epoch]
"""Begins the next epoch, in another order."""


@dataclass(frozen=True)
class Data:
    """The same radiographs in every format, below one folder, and the batches they are read in.

    Attributes:
        folder: a folder for each format.
        num_images: numbered from 0; a multiple of `batch`.
        size: side of the images that are delivered, in pixels.
        batch: images of a batch.
        remote: where the same folders lie in S3, or None.
    """

    folder: Path
    num_images: int
    size: int
    batch: int
    remote: str | None = None

    @property
    def raw(self) -> Path:
        """The plain array, uint8 [num_images, size, size]."""
        return self.folder / "raw" / "images.u8"

    def png(self, number: int) -> Path:
        """One of the PNG files."""
        return self.folder / "png" / f"{number:06d}.png"

    def tar(self, kind: str) -> list[Path]:
        """WebDataset's shards, of `jpeg` or `raw`."""
        return [self.folder / f"tar-{kind}" / f"{number:03d}.tar" for number in range(NUM_TAR_SHARDS)]


@dataclass(frozen=True)
class Contender:
    """One way to read the radiographs.

    Attributes:
        name: in JSON.
        title: in the table.
        opener: `module:function`, of a module beside this one; from `Data` and a number of workers to `Epochs`.
        folder: of `Data`, what it reads.
        pixels: of what it delivers: those of the array, close to them (another decoder or scaling), or augmented.
        workers: numbers of workers to try, of which the fastest is kept.
        package: what must be installed.
    """

    name: str
    title: str
    opener: str
    folder: str
    pixels: Literal["exact", "close", "augmented"] = "exact"
    workers: tuple[int, ...] = (0,)
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


LIMIT, OURS = "memmap", "ours"
_TUNED = (0, 1, 2, 4)

CONTENDERS = (
    Contender(LIMIT, "np.memmap, two threads (the limit)", "limit:open_memmap", "raw"),
    Contender(OURS, "ours", "ours:open_plain", "shards"),
    Contender("ours_augmented", "ours + augmentation (CPU)", "ours:open_augmented", "shards", "augmented"),
    Contender("raw_batches", "DataLoader, raw array, whole batches", "torch_peers:open_raw_batches", "raw",
              workers=_TUNED),
    Contender("raw_images", "DataLoader, raw array, an image at a time", "torch_peers:open_raw_images",
              "raw", workers=_TUNED),
    Contender("png_pil", "DataLoader, PNG, PIL RGB + resize", "torch_peers:open_png_pil", "png", "close",
              workers=_TUNED),
    Contender("png_pil_augmented", "the same + augmentation", "torch_peers:open_png_pil_augmented", "png",
              "augmented", workers=_TUNED),
    Contender("png_cv2", "DataLoader, PNG, OpenCV gray + resize", "torch_peers:open_png_cv2", "png",
              workers=_TUNED),
    Contender("png_cv2_augmented", "the same + augmentation", "torch_peers:open_png_cv2_augmented", "png",
              "augmented", workers=_TUNED),
    Contender("webdataset_raw", "WebDataset, raw", "webdataset_peer:open_raw", "tar-raw", workers=_TUNED,
              package="webdataset"),
    Contender("webdataset_jpeg", "WebDataset, gray JPEG q95", "webdataset_peer:open_jpeg", "tar-jpeg",
              "close", workers=_TUNED, package="webdataset"),
    Contender("streaming_raw", "MosaicML streaming, raw", "streaming_peer:open_raw", "mds-raw",
              workers=_TUNED, package="streaming"),
    Contender("streaming_jpeg", "MosaicML streaming, gray JPEG q95", "streaming_peer:open_jpeg", "mds-jpeg",
              "close", workers=_TUNED, package="streaming"),
)  # fmt: skip
