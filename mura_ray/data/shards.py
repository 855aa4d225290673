"""Shards: FFCV's .beton files of one-channel images. Writes one, describes one, and joins several into one.

A file is a header, a descriptor per field, the metadata (fixed-size values and pointers, one row a sample), pages with
the images, and a table of allocations. It holds neither a checksum nor a magic number, and FFCV answers damage with
wrong images or a crash: whoever opens a file verifies its hash first.
"""

import os
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Value
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from mura_ray.data._ffcv import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    MIN_PAGE_SIZE,
    DatasetWriter,
    Field,
    FieldDescType,
    HeaderType,
    IntField,
    MemoryAllocator,
    NDArrayField,
    worker_job_indexed_dataset,
)
from mura_ray.data.shard_plan import PAGE_BYTES

assert PAGE_BYTES == MIN_PAGE_SIZE

_FIELDS = ("image", "label", "study_type", "sample_id")
_METADATA_TYPE = np.dtype([("image", "<u8"), ("label", "<i8"), ("study_type", "<i8"), ("sample_id", "<i8")])
_METADATA_START = HeaderType.itemsize + len(_FIELDS) * FieldDescType.itemsize


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file's header says: its number of images and their side in pixels."""

    num_images: int
    image_size: int


def write_shard(
    path: Path, images: np.ndarray, labels: np.ndarray, type_index: np.ndarray, sample_ids: np.ndarray
) -> None:
    """Writes a file that stock FFCV reads; the same arrays always give the same bytes.

    FFCV's own writer, run in this process and not in forks of it, where an exception leaves it waiting for ever.

    Args:
        path: where; overwritten.
        images: uint8 [n, S, S], n at least 1.
        labels: integers [n], 0 or 1.
        type_index: integers [n], index in `domain.STUDY_TYPES`.
        sample_ids: int64 [n].
    """
    assert images.dtype == np.uint8
    size = images.shape[1]
    assert images.shape == (len(labels), size, size)
    assert len(labels) == len(type_index) == len(sample_ids) > 0
    kinds = NDArrayField(np.dtype("u1"), (1, size, size)), IntField(), IntField(), IntField()
    fields: dict[str, Field] = dict(zip(_FIELDS, kinds, strict=True))
    writer = DatasetWriter(str(path), fields, page_size=PAGE_BYTES, num_workers=1)
    writer.num_samples = len(labels)
    writer.prepare()
    metadata = writer.metadata_sm
    assert isinstance(metadata, SharedMemory)
    try:
        samples = list(zip(images, labels, type_index, sample_ids, strict=True))
        work, allocations = queue.SimpleQueue(), queue.SimpleQueue()
        work.put([(row, row) for row in range(len(samples))])
        work.put(None)
        allocator = MemoryAllocator(writer.fname, writer.data_region_start, PAGE_BYTES)
        worker_job_indexed_dataset(
            work, metadata, writer.metadata_type, fields, allocator, Value("Q", 0), allocations, samples
        )
        writer.finalize(allocations.get())
    finally:
        metadata.close()
        metadata.unlink()


def read_facts(path: Path) -> Facts:
    """Reads and checks a file's header.

    Raises:
        ValueError: the file is missing, cut off, or not a shard of ours.
    """
    layout = _read_layout(path)
    return Facts(layout.num_images, layout.image_size)


class Merger:
    """Joins shards into one file with one header, in their order, whatever order they arrive in.

    The file has its full size from the start, so that a full disk is known before the work; it becomes readable when
    the last shard is in and `finish` was called.

    Args:
        path: where; overwritten.
        shards: number of images and of bytes of each shard.

    Raises:
        OSError: the disk has no room for it.
    """

    def __init__(self, path: Path, shards: Sequence[tuple[int, int]]) -> None:
        self._num_images = [count for count, _ in shards]
        self._pages_bytes = [
            num_bytes - _pages_start(count) - count * ALLOC_TABLE_TYPE.itemsize for count, num_bytes in shards
        ]
        self._total = sum(self._num_images)
        self._table_start = _pages_start(self._total) + sum(self._pages_bytes)
        self._head: _Layout | None = None
        self._file = path.open("wb")
        try:
            os.posix_fallocate(self._file.fileno(), 0, self._table_start + self._total * ALLOC_TABLE_TYPE.itemsize)
        except OSError:
            self._file.close()
            raise

    def place(self, number: int, content: bytes) -> None:
        """Puts the shard of that number where it belongs, with its pointers shifted. Safe to call from several threads.

        Raises:
            ValueError: it is not a shard of the size that was announced, or of another image size than the others.
        """
        layout = _layout_of(content, f"shard {number}")
        if (layout.num_images, layout.pages_bytes) != (self._num_images[number], self._pages_bytes[number]):
            raise ValueError(f"shard {number} holds {layout.num_images} images in {len(content)} bytes; convert again")
        head = self._head = self._head or layout
        if layout.image_size != head.image_size:
            raise ValueError(
                f"shard {number} holds images of {layout.image_size} px, another of {head.image_size} px; convert again"
            )
        sample = sum(self._num_images[:number])
        pages = _pages_start(self._total) + sum(self._pages_bytes[:number])
        rows, allocations = layout.metadata(), layout.table()
        rows["image"] = rows["image"] - layout.pages_start + pages
        allocations["ptr"] = allocations["ptr"] - layout.pages_start + pages
        allocations["sample_id"] += sample
        self._write(rows.tobytes(), _METADATA_START + sample * _METADATA_TYPE.itemsize)
        self._write(memoryview(content)[layout.pages_start : layout.table_start], pages)
        self._write(allocations.tobytes(), self._table_start + sample * ALLOC_TABLE_TYPE.itemsize)

    def finish(self) -> None:
        """Writes the header."""
        assert self._head is not None
        header = self._head.header.copy()
        header["num_samples"], header["alloc_table_ptr"] = self._total, self._table_start
        self._write(header.tobytes() + self._head.descriptors, 0)

    def close(self) -> None:
        """Closes the file, finished or not."""
        self._file.close()

    def _write(self, content: bytes | memoryview, offset: int) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[written:], offset + written


def _pages_start(num_images: int) -> int:
    """Where the pages begin: at the first multiple of a page after the metadata."""
    return -(-(_METADATA_START + num_images * _METADATA_TYPE.itemsize) // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """A file's checked header, and where its parts lie. `content` is the whole file, or None where only its head is."""

    header: np.ndarray
    descriptors: bytes
    image_size: int
    content: bytes | None

    @property
    def num_images(self) -> int:
        return int(self.header["num_samples"])

    @property
    def pages_start(self) -> int:
        return _pages_start(self.num_images)

    @property
    def table_start(self) -> int:
        return int(self.header["alloc_table_ptr"])

    @property
    def pages_bytes(self) -> int:
        return self.table_start - self.pages_start

    def metadata(self) -> np.ndarray:
        assert self.content is not None
        return np.frombuffer(self.content, _METADATA_TYPE, self.num_images, _METADATA_START).copy()

    def table(self) -> np.ndarray:
        assert self.content is not None
        return np.frombuffer(self.content, ALLOC_TABLE_TYPE, self.num_images, self.table_start).copy()


def _layout_of(content: bytes, origin: str) -> _Layout:
    return _check_layout(content[:_METADATA_START], len(content), content, origin)


def _read_layout(path: Path) -> _Layout:
    try:
        with path.open("rb") as file:
            head = file.read(_METADATA_START)
            num_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ValueError(f"cannot read the shard {path}: {error.strerror}; convert again") from error
    return _check_layout(head, num_bytes, None, str(path))


def _check_layout(head: bytes, num_bytes: int, content: bytes | None, origin: str) -> _Layout:
    image_size = _image_size(head)
    if image_size is None:
        raise ValueError(f"{origin} is no shard of this program; convert again")
    header = np.frombuffer(head, HeaderType, 1)[0]
    layout = _Layout(header, head[HeaderType.itemsize :], image_size, content)
    num_pages = -(-layout.num_images // (PAGE_BYTES // image_size**2))
    if (
        layout.num_images < 1
        or layout.pages_bytes < num_pages * PAGE_BYTES
        or num_bytes != layout.table_start + layout.num_images * ALLOC_TABLE_TYPE.itemsize
    ):
        raise ValueError(f"{origin} is cut off or damaged: {num_bytes} bytes; convert again")
    return layout


def _image_size(head: bytes) -> int | None:
    """The side of the images, from a file's first bytes; None where they are not those of a shard of ours."""
    if len(head) < _METADATA_START:
        return None
    header = np.frombuffer(head, HeaderType, 1)[0]
    descriptors = np.frombuffer(head, FieldDescType, len(_FIELDS), offset=HeaderType.itemsize)
    names = tuple(bytes(name).rstrip(b"\0").decode("latin-1") for name in descriptors["name"])
    if (header["version"], header["page_size"], header["num_fields"]) != (CURRENT_VERSION, PAGE_BYTES, len(_FIELDS)):
        return None
    if names != _FIELDS:
        return None
    field = NDArrayField.from_binary(descriptors["arguments"][0])
    assert isinstance(field, NDArrayField)
    channels, height, width = field.shape
    return int(width) if channels == 1 and height == width and 0 < width * width <= PAGE_BYTES else None
