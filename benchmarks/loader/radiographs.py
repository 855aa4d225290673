"""Makes the same radiographs in the format of every contender."""

import hashlib
import importlib
import importlib.util
import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from benchmarks.loader.contenders import NUM_TAR_SHARDS, PNG_SIDE, Data
from mura_ray.data import shards
from mura_ray.data.cache import local_split
from mura_ray.data.manifest import Manifest, Shard, Split, write_manifest
from mura_ray.data.phantom_view import DIFFICULTIES, render_view
from mura_ray.data.shard_plan import num_shards
from mura_ray.domain import STUDY_TYPES
from mura_ray.images import resize_gray

NUM_DISTINCT = 280
"""Radiographs that are drawn; the others are these, shifted by some pixels."""

JPEG_QUALITY = 95


def make(data: Data) -> None:
    """Writes all formats whose packages are installed below an empty folder."""
    data.folder.mkdir(parents=True)
    images = make_pngs(data)
    data.raw.parent.mkdir()
    images.tofile(data.raw)
    make_shards(data, images)
    _make_tars(data, "raw", lambda number: images[number].tobytes())
    _make_tars(data, "jpeg", lambda number: _jpeg(images[number]))
    if importlib.util.find_spec("streaming"):
        _make_mds(data, "mds-raw", f"ndarray:uint8:{data.size},{data.size}", lambda number: images[number])
        _make_mds(data, "mds-jpeg", "bytes", lambda number: _jpeg(images[number]))


def fill_cache(data: Data) -> None:
    """Makes the verified local copy of this project's shards."""
    with local_split(str(data.folder / "shards"), "train", cache=data.folder / "cache"):
        pass


def make_pngs(data: Data) -> np.ndarray:
    """Writes the PNG files. Returns what all the other formats hold: uint8 [num_images, size, size]."""
    images = np.empty((data.num_images, data.size, data.size), np.uint8)
    data.png(0).parent.mkdir()

    def make_one(number: int) -> None:
        gray = np.roll(drawn[number % len(drawn)], number // len(drawn), axis=1)
        data.png(number).write_bytes(cv2.imencode(".png", gray)[1].tobytes())
        images[number] = resize_gray(gray, data.size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(draw, range(min(NUM_DISTINCT, data.num_images))))
        for _ in pool.map(make_one, range(data.num_images)):
            pass
    return images


def draw(number: int) -> np.ndarray:
    """A phantom radiograph, uint8 [H, W], its longer side `PNG_SIDE`."""
    study_type = STUDY_TYPES[number % len(STUDY_TYPES)]
    gray, _ = render_view(study_type, number % 2, DIFFICULTIES["medium"], (0, number), 0)
    scale = PNG_SIDE / max(gray.shape)
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def make_shards(data: Data, images: np.ndarray) -> None:
    """This project's data set, with one split; an image's sample id is its number."""
    folder, listed = data.folder / "shards", []
    (folder / "train").mkdir(parents=True)
    numbers = np.arange(data.num_images)
    for index, part in enumerate(np.array_split(numbers, num_shards(data.num_images, data.size))):
        key = f"train/shard-{index:05d}.beton"
        shards.write_shard(folder / key, images[part], part % 2, part % len(STUDY_TYPES), part)
        content = (folder / key).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        listed.append(Shard(key=key, bytes=len(content), sha256=sha256, count=len(part)))
    split = Split(shards=tuple(listed), table_sha256="", counts={})
    manifest = Manifest(
        name="benchmark", id="benchmark", source_id="", split_policy="", image_size=data.size,
        splits={"train": split}, class_weights={},
    )  # fmt: skip
    write_manifest(str(folder), manifest)


def _make_tars(data: Data, kind: str, content: Callable[[int], bytes]) -> None:
    """Tar files of near-equal size; the name of a member is its image's number."""
    (data.folder / f"tar-{kind}").mkdir()
    parts = np.array_split(np.arange(data.num_images), NUM_TAR_SHARDS)
    for path, part in zip(data.tar(kind), parts, strict=True):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in part.tolist():
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(body := content(number))
                tar.addfile(member, io.BytesIO(body))


def _make_mds(data: Data, folder: str, encoding: str, content: Callable[[int], Any]) -> None:
    streaming: Any = importlib.import_module("streaming")
    columns = {"image": encoding, "number": "int"}
    with streaming.MDSWriter(out=str(data.folder / folder), columns=columns) as writer:
        for number in range(data.num_images):
            writer.write({"image": content(number), "number": number})


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
