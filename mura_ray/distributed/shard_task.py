"""The work of one conversion task: some images of a collection become one shard and a record of what it was made from.

Knows nothing of the other shards, nor of the cluster that it runs on.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from mura_ray import images, s3, store
from mura_ray.config import Settings
from mura_ray.data.manifest import Shard
from mura_ray.dicom import read_radiograph
from mura_ray.domain import STUDY_TYPES, Study, View
from mura_ray.scratch import scratch_folder

WORK = "_work"
"""Folder in the data set's, for what an unfinished conversion keeps."""

_RECIPE = (
    2  # counts up when the same input would give another shard or record, so that unfinished work is not taken over
)
_REPORT_EVERY = 16  # images


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a collection, and what tells cheaply whether its file has changed."""

    sample_id: int
    view: View
    study: Study
    file: s3.FileStat


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What one task does: these images, read below `root`, become the file `key` below `dest`."""

    root: str
    dest: str
    key: str
    image_size: int
    images: tuple[SourceImage, ...]

    @property
    def uri(self) -> str:
        """Where the shard goes."""
        return store.join(self.dest, self.key)

    @property
    def record_uri(self) -> str:
        """Where the record is left."""
        return store.join(self.dest, WORK, f"{self.key}.json")

    @property
    def fingerprint(self) -> str:
        """Hash of all that the shard is made from."""
        sources = [
            (i.view.path, i.file.num_bytes, i.file.version, i.study.study_type, i.study.label) for i in self.images
        ]
        return hashlib.sha256(repr((_RECIPE, self.image_size, sources)).encode()).hexdigest()


class StoredImage(Settings):
    """An image that is in a shard.

    Its original size in pixels, the hash of the pixels that were stored, and the warnings of `dicom.Radiograph`.
    """

    width: int
    height: int
    sha256: str
    warnings: tuple[str, ...] = ()


class DamagedImage(Settings):
    """An image that could not be decoded, and why."""

    reason: str


class ShardRecord(Settings):
    """What a finished job leaves: one result for each of its images, and the shard unless all of them are damaged."""

    fingerprint: str
    shard: Shard | None
    results: tuple[StoredImage | DamagedImage, ...]


def convert_shard(job: ShardJob) -> Iterator[int | ShardRecord]:
    """Does a job, unless an earlier run did it from the same input.

    Yields:
        The number of images done since the last time; in the end the record.
    """
    record = _read_record(job)
    if record is not None:
        yield len(job.images)
        yield record
        return
    results: list[StoredImage | DamagedImage] = []
    stored: list[SourceImage] = []
    pixels = np.empty((len(job.images), job.image_size, job.image_size), np.uint8)  # a shard's worth: 124 MiB at most
    contents = store.read_many(store.join(job.root, image.view.path) for image in job.images)
    for number, (image, content) in enumerate(zip(job.images, contents, strict=True), start=1):
        try:
            radiograph = read_radiograph(content)
        except ValueError as error:
            results.append(DamagedImage(reason=str(error)))
        else:
            height, width = radiograph.gray.shape
            resized = pixels[len(stored)] = images.resize_gray(radiograph.gray, job.image_size)
            stored.append(image)
            results.append(
                StoredImage(
                    width=width,
                    height=height,
                    sha256=hashlib.sha256(resized.tobytes()).hexdigest(),
                    warnings=radiograph.warnings_as(image.study.study_type),
                )
            )
        if number % _REPORT_EVERY == 0:
            yield _REPORT_EVERY
    yield len(job.images) % _REPORT_EVERY
    record = ShardRecord(
        fingerprint=job.fingerprint, shard=_write_shard(job, stored, pixels[: len(stored)]), results=tuple(results)
    )
    store.write_bytes(job.record_uri, record.model_dump_json().encode())
    yield record


def _read_record(job: ShardJob) -> ShardRecord | None:
    """The record of an earlier run, if its input was the same and its shard is there and whole."""
    if not store.exists(job.record_uri):
        return None
    try:
        record = ShardRecord.model_validate_json(store.read_bytes(job.record_uri))
    except ValidationError:
        return None
    if record.fingerprint != job.fingerprint:
        return None
    return record if record.shard is None or _is_whole(job.uri, record.shard.sha256) else None


def _is_whole(uri: str, sha256: str) -> bool:
    return store.is_file(uri) and hashlib.sha256(store.read_bytes(uri)).hexdigest() == sha256


def _write_shard(job: ShardJob, stored: Sequence[SourceImage], pixels: np.ndarray) -> Shard | None:
    if not stored:
        return None
    from mura_ray.data import shards  # here, because it imports torch: the driver, which imports this module, need not

    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:  # FFCV's writer wants a file
        path = Path(folder, store.name(job.key))
        shards.write_shard(
            path,
            images=pixels,
            labels=np.array([image.study.label for image in stored]),
            type_index=np.array([STUDY_TYPES.index(image.study.study_type) for image in stored]),
            sample_ids=np.array([image.sample_id for image in stored], dtype=np.int64),
        )
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        store.write_file(job.uri, path)
        return Shard(key=job.key, bytes=path.stat().st_size, sha256=sha256, count=len(stored))
