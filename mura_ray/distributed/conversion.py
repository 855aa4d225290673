"""Converts a collection to a data set: shards by Ray tasks, one a shard, then the tables and, last, the manifest.

Each finished shard leaves a record in `_work`, so that the same conversion, begun again after whatever ended it, does
only what is missing. Nothing in the result depends on when, where, in what order or how fast it was made.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import ray
import ray.exceptions

from mura_ray import store
from mura_ray.data.collection import Collection
from mura_ray.data.manifest import (
    BOX_COLUMNS,
    TABLE_COLUMNS,
    Manifest,
    Quarantined,
    Shard,
    Split,
    TypeCount,
    Warned,
    content_id,
    read_manifest,
    write_manifest,
)
from mura_ray.data.shard_plan import num_shards
from mura_ray.distributed.session import ray_session
from mura_ray.distributed.shard_task import (
    WORK,
    DamagedImage,
    ShardJob,
    ShardRecord,
    SourceImage,
    StoredImage,
    convert_shard,
)
from mura_ray.domain import ABNORMAL, NORMAL, STUDY_TYPES, image_count_weights

Progress = Callable[[int, int], None]
"""Called with the number of images that are done, and of all."""


_STRAY = re.compile(r"\.?shard-\d+\.beton.*")
"""Shards, and what `store.atomic_path` calls unfinished ones."""


def run_conversion(
    collection: Collection,
    dest: str,
    *,
    image_size: int,
    allow_damaged: bool,
    progress: Progress | None = None,
) -> Manifest:
    """Converts a collection, goes on with a conversion that was interrupted, or finds it done.

    Args:
        collection: what to convert.
        dest: URI of the data set.
        image_size: side of the stored images in pixels.
        allow_damaged: leave damaged images out and list them in the manifest, instead of failing.
        progress: is told how far the work is.

    Returns:
        The manifest of the data set, which is complete now.

    Raises:
        ValueError: images are damaged (all of them are named), `dest` holds something else, or a study type of `valid`
            or `test` is not in `train`.
    """
    plan = _Plan(collection, store.absolute(dest), image_size, _list_images(collection))
    _check_types({split: {image.study.study_type for image in found} for split, found in plan.sources.items()})
    manifest = _find_finished(plan)
    if manifest is None:
        _begin(plan)
        records = _run([job for jobs in plan.jobs.values() for job in jobs], progress)
        results = {
            split: [pair for job in jobs for pair in zip(job.images, records[job.key].results, strict=True)]
            for split, jobs in plan.jobs.items()
        }
        _check_damaged(_quarantine(results), allow_damaged)
        made = {split: [records[job.key].shard for job in jobs] for split, jobs in plan.jobs.items()}
        manifest = _finish(plan, results, {split: tuple(filter(None, found)) for split, found in made.items()})
    _check_damaged(manifest.quarantined, allow_damaged)
    store.remove_folder(store.join(plan.dest, WORK))
    return manifest


def sample_id(path: str) -> int:
    """An image's number in shards and tables: the first 63 bits of the SHA-256 of its path in the collection."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class _Plan:
    """What is to be converted to what."""

    collection: Collection
    dest: str
    image_size: int
    sources: dict[str, list[SourceImage]]

    @cached_property
    def jobs(self) -> dict[str, list[ShardJob]]:
        """By split, one for each shard."""
        jobs = {}
        for split, found in self.sources.items():
            count = num_shards(len(found), self.image_size)
            bounds = [len(found) * number // count for number in range(count + 1)]
            jobs[split] = [
                ShardJob(
                    root=self.collection.root,
                    dest=self.dest,
                    key=f"{split}/shard-{number:05d}.beton",
                    image_size=self.image_size,
                    images=tuple(found[bounds[number] : bounds[number + 1]]),
                )
                for number in range(count)
            ]
        return jobs

    @cached_property
    def source_id(self) -> str:
        """Hash of the collection as listed: splits, studies, labels, boxes, and the files' names and sizes."""
        listing = {
            split: [
                [i.study.key, i.study.label, i.view.path, i.file.num_bytes, [astuple(box) for box in i.view.boxes]]
                for i in found
            ]
            for split, found in self.sources.items()
        }
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _list_images(collection: Collection) -> dict[str, list[SourceImage]]:
    sources: dict[str, list[SourceImage]] = {}
    seen: dict[int, str] = {}
    paths = [view.path for studies in collection.splits.values() for study in studies for view in study.views]
    found = store.stat_files(collection.root, paths)
    for split, studies in collection.splits.items():
        sources[split] = []
        for study, view in [(each, view) for each in studies for view in each.views]:
            number, file = sample_id(view.path), store.join(collection.root, view.path)
            if number in seen:
                assert seen[number] == view.path, "two paths with the same first 63 bits of SHA-256"
                raise ValueError(f"{file} is in the collection twice: name each image once")
            seen[number] = view.path
            if view.path not in found:
                raise ValueError(f"there is no file {file}: restore it")
            sources[split].append(SourceImage(number, view, study, found[view.path]))
    return sources


def _check_types(types: Mapping[str, set[str]]) -> None:
    """Every study type needs class weights, and they come from training images."""
    for split, found in types.items():
        if not found:
            raise ValueError(f"split {split!r} has no sound image: add some, or leave the split out")
        if "train" in types and (unknown := found - types["train"]):
            raise ValueError(
                f"split {split!r} has studies of {', '.join(sorted(unknown))}, but train has none, and the loss takes "
                "its weights from there: add such studies to train, or take them out"
            )


def _find_finished(plan: _Plan) -> Manifest | None:
    """The manifest of this very conversion, if `dest` has one already."""
    if not store.exists(store.join(plan.dest, "manifest.json")):
        return None
    manifest = read_manifest(plan.dest)
    for what, old, new in (
        ("the collection", manifest.name, plan.collection.name),
        ("images of the size", manifest.image_size, plan.image_size),
        ("the splits", manifest.split_policy, plan.collection.split_policy),
        ("the studies and files with the hash", manifest.source_id, plan.source_id),
    ):
        if old != new:
            raise ValueError(
                f"{plan.dest} already is a data set with {what} {old!r}, not {new!r}: "
                "convert to another folder, or remove this one"
            )
    shards_listed = [shard for split in manifest.splits.values() for shard in split.shards]
    there = store.stat_files(plan.dest, [shard.key for shard in shards_listed])
    for shard in shards_listed:
        if shard.key not in there or there[shard.key].num_bytes != shard.bytes:
            uri = store.join(plan.dest, shard.key)
            raise ValueError(f"{uri} is missing or damaged: remove {plan.dest} and convert again")
    return manifest


def _begin(plan: _Plan) -> None:
    """Marks the folder as that of an unfinished conversion, or finds it marked by one with the same settings."""
    settings = {
        "collection": plan.collection.name,
        "splits": plan.collection.split_policy,
        "image size": plan.image_size,
    }
    mark = store.join(plan.dest, WORK, "settings.json")
    if store.exists(mark):
        if (old := json.loads(store.read_bytes(mark))) != settings:
            raise ValueError(
                f"{plan.dest} holds an unfinished conversion with {old}, not {settings}: "
                "convert to another folder, or remove this one"
            )
    elif store.is_file(plan.dest) or not {entry.name for entry in store.tree(plan.dest).entries()} <= {WORK}:
        raise ValueError(f"{plan.dest} holds something else already: pass a new or an empty folder")
    else:
        store.write_bytes(mark, json.dumps(settings).encode())


def _run(jobs: Sequence[ShardJob], progress: Progress | None) -> dict[str, ShardRecord]:
    """Does all jobs on the cluster. Returns their records by the shards' keys."""
    num_images, done = sum(len(job.images) for job in jobs), 0
    records: dict[str, ShardRecord] = {}
    with ray_session(worker_logs=False, trains=False):
        task = ray.remote(num_cpus=1, num_returns="streaming")(convert_shard)
        running: dict[Any, ShardJob] = {task.remote(job): job for job in jobs}
        while running:
            stream: Any = ray.wait(list(running), num_returns=1)[0][0]
            try:
                message: Any = ray.get(next(stream))
            except StopIteration:
                del running[stream]
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            if isinstance(message, ShardRecord):
                records[running[stream].key] = message
            else:
                done += message
                if progress is not None:
                    progress(done, num_images)
    return records


_Results = Mapping[str, Sequence[tuple[SourceImage, StoredImage | DamagedImage]]]


def _quarantine(results: _Results) -> tuple[Quarantined, ...]:
    """The damaged images of all splits."""
    quarantined = []
    for split, pairs in results.items():
        kept = {image.study.key for image, result in pairs if isinstance(result, StoredImage)}
        for image, result in pairs:
            if isinstance(result, DamagedImage):
                lost = None if image.study.key in kept else image.study.key
                entry = Quarantined(path=image.view.path, split=split, reason=result.reason, lost_study=lost)
                quarantined.append(entry)
    return tuple(quarantined)


def _check_damaged(quarantined: Sequence[Quarantined], allow_damaged: bool) -> None:
    if quarantined and not allow_damaged:
        files = "\n".join(f"  {entry.path}: {entry.reason}" for entry in quarantined)
        raise ValueError(
            f"{len(quarantined)} damaged images:\n{files}\n"
            "restore them, or pass --allow-damaged to leave them out and have the manifest list them"
        )


def _finish(plan: _Plan, results: _Results, made: Mapping[str, tuple[Shard, ...]]) -> Manifest:
    """Writes the tables and the manifest."""
    kept = {
        split: [(image, result) for image, result in pairs if isinstance(result, StoredImage)]
        for split, pairs in results.items()
    }
    _check_types({split: {image.study.study_type for image, _ in pairs} for split, pairs in kept.items()})
    _remove_strays(plan, made)
    splits = {}
    for split, pairs in kept.items():
        boxes = [
            (image.sample_id, box.finding, box.x, box.y, box.width, box.height)
            for image, _ in pairs
            for box in image.view.boxes
        ]
        splits[split] = Split(
            shards=made[split],
            table_sha256=_write_table(plan, f"{split}.csv", TABLE_COLUMNS, (_row(*pair) for pair in pairs)),
            boxes_sha256=_write_table(plan, f"{split}.boxes.csv", BOX_COLUMNS, boxes) if boxes else None,
            counts=_count([image for image, _ in pairs]),
        )
    training = splits["train"].counts if "train" in splits else {}
    manifest = Manifest(
        name=plan.collection.name,
        id=content_id(plan.collection.name, plan.image_size, splits),
        source_id=plan.source_id,
        split_policy=plan.collection.split_policy,
        patients_known=plan.collection.patients_known,
        image_size=plan.image_size,
        splits=splits,
        class_weights=image_count_weights(
            {(name, label): count.images[label] for name, count in training.items() for label in (NORMAL, ABNORMAL)}
        ),
        quarantined=_quarantine(results),
        warned=_warned(kept),
    )
    write_manifest(plan.dest, manifest)
    return manifest


def _warned(kept: Mapping[str, Sequence[tuple[SourceImage, StoredImage]]]) -> tuple[Warned, ...]:
    """The warnings by split, the most frequent first."""
    found = []
    for split, pairs in kept.items():
        paths: dict[str, list[str]] = defaultdict(list)
        for image, stored in pairs:
            for warning in stored.warnings:
                paths[warning].append(image.view.path)
        of_split = [Warned(warning=one, split=split, count=len(of), path=of[0]) for one, of in paths.items()]
        found += sorted(of_split, key=lambda one: -one.count)
    return tuple(found)


def _remove_strays(plan: _Plan, made: Mapping[str, tuple[Shard, ...]]) -> None:
    """Removes what killed runs, or runs on another state of the source, left beside the shards."""
    for split, found in made.items():
        keys = {shard.key for shard in found}
        there = [f"{split}/{entry.name}" for entry in store.tree(store.join(plan.dest, split)).entries()]
        strays = [key for key in there if key not in keys and _STRAY.fullmatch(store.name(key))]
        store.remove_files([store.join(plan.dest, key) for key in strays])


def _row(image: SourceImage, stored: StoredImage) -> tuple[object, ...]:
    study = image.study
    return (
        image.sample_id, image.view.path, study.patient_id, study.study_id, study.study_type, study.label,
        stored.width, stored.height, stored.sha256,
    )  # fmt: skip


def _write_table(plan: _Plan, name: str, columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    """Writes a CSV file and returns its hash."""
    content = pd.DataFrame(list(rows), columns=list(columns)).to_csv(index=False, lineterminator="\n").encode()
    store.write_bytes(store.join(plan.dest, name), content)
    return hashlib.sha256(content).hexdigest()


def _count(found: Sequence[SourceImage]) -> dict[str, TypeCount]:
    num_images = Counter((image.study.study_type, image.study.label) for image in found)
    studies = {image.study.key: image.study for image in found}.values()
    num_studies = Counter((study.study_type, study.label) for study in studies)
    return {
        name: TypeCount(
            images=(num_images[name, NORMAL], num_images[name, ABNORMAL]),
            studies=(num_studies[name, NORMAL], num_studies[name, ABNORMAL]),
        )
        for name in STUDY_TYPES
        if num_images[name, NORMAL] + num_images[name, ABNORMAL]
    }
