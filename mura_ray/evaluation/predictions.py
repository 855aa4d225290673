"""An ensemble's answers to every view of a split, read from its shards."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.special import expit

from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader
from mura_ray.data.manifest import Manifest, read_manifest, read_table
from mura_ray.domain import OVERALL, STUDY_TYPES
from mura_ray.model.ensemble import Ensemble, EnsembleDescription

PIXELS_BATCH = 64


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the members of an ensemble say of the views of a split.

    Attributes:
        description: of the ensemble.
        data: URI of the converted data set.
        manifest: of that.
        split: its name.
        table: the split's table, a row per view, n of them.
        logits: float32 [M, n].
        member_maps: float32 [M, n, h, w].
    """

    description: EnsembleDescription
    data: str
    manifest: Manifest
    split: str
    table: pd.DataFrame
    logits: np.ndarray
    member_maps: np.ndarray

    @cached_property
    def maps(self) -> np.ndarray:
        """The ensemble's, float32 [n, h, w]: the mean of its members' raw maps."""
        return self.member_maps.mean(axis=0)

    @property
    def study_keys(self) -> pd.Series:
        """The study of each view."""
        return study_keys(self.table)

    def studies(self, threshold: float) -> pd.DataFrame:
        """A row per study, in the order of their first views.

        A view's probability is the mean over the members, a study's the mean over its views (paper, section 3.1).

        Returns:
            study (its key), study_type, patient_id, label, num_views, probability, abnormal (> threshold).
        """
        views = self.table.assign(study=self.study_keys, probability=expit(self.logits.astype(np.float64)).mean(axis=0))
        groups = views.groupby(["study", "study_type", "patient_id", "label"], sort=False)
        studies = groups["probability"].agg(num_views="size", probability="mean").reset_index()
        assert studies["study"].is_unique, "a study's views have different labels"
        return studies.assign(abnormal=(studies["probability"] > threshold).astype(int))


def study_keys(table: pd.DataFrame) -> pd.Series:
    """The study of each view of a split's table, TYPE/patient/study."""
    return table["study_type"] + "/" + table["patient_id"] + "/" + table["study_id"]


def strata(study_types: pd.Series) -> dict[str, pd.Series]:
    """Which studies are of each type that occurs, in the paper's order, and last of all types (`OVERALL`): masks."""
    masks = {name: study_types == name for name in STUDY_TYPES}
    return {name: mask for name, mask in masks.items() if mask.any()} | {OVERALL: study_types.notna()}


def predict_split(ensemble: Ensemble, data: str, split: str) -> Predictions:
    """Predicts every view of a split, with progress on stderr.

    Args:
        ensemble: whose answers are asked for.
        data: URI of a converted data set.
        split: one of its splits.

    Raises:
        ValueError: no such data set or split, or it was converted to another image size than the ensemble's.
    """
    description, manifest, table = ensemble.description, read_manifest(data), read_table(data, split)
    if manifest.image_size != description.image_size:
        size = description.image_size
        raise ValueError(
            f"the ensemble takes images of {size} px, {data!r} holds {manifest.image_size} px: convert the radiographs "
            f"again with --image-size {size} to another --dest"
        )
    seen, logits, maps = [], [], []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        local_split(data, split) as path,
        closing(SplitLoader(path, batch_size=ensemble.max_views, shuffle=False)) as loader,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task(f"views of {split}", total=len(table))
        for batch in loader.epoch():
            batch_logits, batch_maps = ensemble.predict_member_maps(batch.images)
            seen.append(batch.sample_ids.numpy())
            logits.append(batch_logits)
            maps.append(batch_maps)
            progress.advance(task, batch_logits.shape[1])
    place = pd.Index(np.concatenate(seen)).get_indexer(pd.Index(table["sample_id"]))
    assert sorted(place) == list(range(sum(map(len, seen)))), "the shards and the table hold different images"
    return Predictions(
        description, data, manifest, split, table,
        np.concatenate(logits, axis=1)[:, place], np.concatenate(maps, axis=1)[:, place],
    )  # fmt: skip


def read_pixels(data: str, split: str, sample_ids: Iterable[int]) -> dict[int, np.ndarray]:
    """Some views of a split as its shards hold them, uint8 [S, S] each, by sample id."""
    wanted, found = set(sample_ids), {}
    with (
        local_split(data, split) as path,
        closing(SplitLoader(path, batch_size=PIXELS_BATCH, shuffle=False)) as loader,
    ):
        for batch in loader.epoch():
            for place, sample_id in enumerate(batch.sample_ids.tolist()):
                if sample_id in wanted:
                    found[sample_id] = batch.images[place, 0].numpy().copy()
    assert set(found) == wanted
    return found
