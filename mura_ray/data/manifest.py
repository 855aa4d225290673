"""The shard manifest: what a converted data set consists of. It joins `convert` to `train`, and is written last."""

import hashlib
import io
import json
from collections.abc import Mapping

import pandas as pd
from pydantic import Field, ValidationError

from mura_ray import store
from mura_ray.config import Settings

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
TABLE_COLUMNS = (
    "sample_id", "path", "patient_id", "study_id", "study_type", "label", "width", "height", "sha256",
)  # fmt: skip
BOX_COLUMNS = ("sample_id", "finding", "x", "y", "width", "height")


class Shard(Settings):
    """One .beton file: its key below the data set's URI, its size and hash, and its number of images."""

    key: str
    bytes: int = Field(ge=0)
    sha256: str
    count: int = Field(ge=1)


class TypeCount(Settings):
    """Images and studies of one study type in one split, as [normal, abnormal]."""

    images: tuple[int, int]
    studies: tuple[int, int]


class Split(Settings):
    """The shards of one split in the order of its table, and the tables' hashes."""

    shards: tuple[Shard, ...]
    table_sha256: str
    boxes_sha256: str | None = None
    counts: dict[str, TypeCount]

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return sum(shard.count for shard in self.shards)


class Quarantined(Settings):
    """A file of the collection that is not in the shards, and why; its study's key, if no other view of that is."""

    path: str
    split: str
    reason: str
    lost_study: str | None = None


class Warned(Settings):
    """Files that are in the shards, but whose pixels or labels may mean less than they should, and why.

    `path` is the first of the split's `count`.
    """

    warning: str
    split: str
    count: int
    path: str


class Manifest(Settings):
    """All of a converted data set.

    `id` hashes the content: equal ids mean equal pixels, labels and splits. `source_id` hashes the collection as it was
    listed: studies, labels, boxes, and the files' names and sizes. Where `patients_known` is false, every study has a
    `patient_id` of its own.
    """

    format_version: int = FORMAT_VERSION
    name: str
    id: str
    source_id: str
    split_policy: str
    image_size: int
    splits: dict[str, Split]
    class_weights: dict[str, tuple[float, float]]
    quarantined: tuple[Quarantined, ...] = ()
    warned: tuple[Warned, ...] = ()
    patients_known: bool = True


def content_id(name: str, image_size: int, splits: Mapping[str, Split]) -> str:
    """The data set's id: sha256 over its name, image size and the tables, which hold every pixel hash and label."""
    content = [name, image_size, {key: split.table_sha256 for key, split in sorted(splits.items())}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(data: str, manifest: Manifest) -> None:
    """Writes `manifest.json`; from then on the folder is a data set."""
    store.write_bytes(store.join(data, "manifest.json"), manifest.model_dump_json(indent=2).encode() + b"\n")


def read_manifest(data: str) -> Manifest:
    """Reads `manifest.json` of a converted data set.

    Raises:
        ValueError: there is none (the conversion was not run, or did not finish), or it is of another format version.
    """
    uri = store.join(data, "manifest.json")
    if not store.exists(uri):
        raise ValueError(
            f"{data!r} is no converted data set: it has no manifest.json; run "
            f"`python -m mura_ray.convert --source DIR --dest {data}` to its end"
        )
    try:
        content = json.loads(store.read_bytes(uri))
    except ValueError as error:
        raise ValueError(f"{uri} is damaged: {error}; convert again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{uri} has format version {version!r}, this program reads {FORMAT_VERSION}; convert again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{uri} is damaged: {error}; convert again") from error


def manifest_sha256(data: str) -> str:
    """Hash of the manifest's bytes, which an ensemble records."""
    return hashlib.sha256(store.read_bytes(store.join(data, "manifest.json"))).hexdigest()


def read_table(data: str, split: str) -> pd.DataFrame:
    """The rows of a split, one an image, in shard order, with the columns `TABLE_COLUMNS`.

    Raises:
        ValueError: the data set has no such split, or its table is not the one that the manifest describes.
    """
    manifest = read_manifest(data)
    if split not in manifest.splits:
        raise ValueError(f"{data!r} has no split {split!r}; it has {', '.join(manifest.splits)}")
    text = _verified(store.join(data, f"{split}.csv"), manifest.splits[split].table_sha256)
    return pd.read_csv(
        io.BytesIO(text),
        dtype={"sample_id": "int64", "path": str, "patient_id": str, "study_id": str, "label": "int64"},
        keep_default_na=False,  # a patient may be called NA
    )


def read_boxes(data: str, split: str) -> pd.DataFrame | None:
    """Annotated findings of a split, columns `BOX_COLUMNS`, pixels of the original view; None where it has none."""
    described = read_manifest(data).splits[split]
    if described.boxes_sha256 is None:
        return None
    text = _verified(store.join(data, f"{split}.boxes.csv"), described.boxes_sha256)
    return pd.read_csv(io.BytesIO(text), dtype={"sample_id": "int64", "finding": str}, keep_default_na=False)


def _verified(uri: str, sha256: str) -> bytes:
    content = store.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{uri} is not the file that manifest.json describes; convert again")
    return content
