"""Data sets of painted views, and an ensemble that reads its answers off them: evaluation without training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch

from mura_ray.config import TrialConfig
from mura_ray.data.manifest import (
    BOX_COLUMNS,
    Manifest,
    Shard,
    Split,
    TypeCount,
    content_id,
    write_manifest,
)
from mura_ray.data.shards import write_shard
from mura_ray.domain import STUDY_TYPES
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.ensemble import Ensemble, EnsembleDescription, MemberDescription
from mura_ray.platt import CalibrationDescription

SIZE = 32


class ReadsOffPixels(torch.nn.Module):
    """Answers with what is painted: the first pixel is the logit, in sixteenths from -8; the map is means of cells."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self._offset = offset

    def forward_with_maps(self, gray: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.nn.functional.adaptive_avg_pool2d(gray, 4)[:, 0]
        return (gray[:, 0, 0, 0] * 255 - 128) / 16 + self._offset, maps


@dataclass
class Painted:
    """A view: its study, what the members read in it, the map's largest cell, and its box in pixels of 200 x 100.

    Views of another mark have other pixels, of which the members see nothing.
    """

    study_type: str
    patient: str
    study: str
    label: int
    logit: float
    cell: tuple[int, int] = (1, 1)
    box: tuple[float, float, float, float] | None = None
    mark: int = 0

    def pixels(self) -> np.ndarray:
        image = np.zeros((SIZE, SIZE), dtype=np.uint8)
        row, column = self.cell
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 200
        image[0, 0] = round(self.logit * 16) + 128
        image[0, 1] = self.mark
        return image


def write_data(
    folder: Path, splits: Mapping[str, list[Painted]], policy: str = "mura", boxes: bool = False
) -> Manifest:
    described = {}
    for split, views in splits.items():
        (folder / split).mkdir(parents=True)
        sample_ids = np.array([7000 - 13 * place for place in range(len(views))])
        shard = folder / split / "shard-00000.beton"
        write_shard(
            shard,
            np.stack([view.pixels() for view in views]),
            np.array([view.label for view in views]),
            np.array([STUDY_TYPES.index(view.study_type) for view in views]),
            sample_ids,
        )
        table = pd.DataFrame(
            {
                "sample_id": sample_ids,
                "path": [f"{split}/{place}.png" for place in range(len(views))],
                "patient_id": [view.patient for view in views],
                "study_id": [view.study for view in views],
                "study_type": [view.study_type for view in views],
                "label": [view.label for view in views],
                "width": 200,
                "height": 100,
                "sha256": [hashlib.sha256(view.pixels().tobytes()).hexdigest() for view in views],
            }
        )
        rows = [(id_, "lesion", *view.box) for id_, view in zip(sample_ids, views, strict=True) if view.box]
        (folder / f"{split}.csv").write_bytes(table.to_csv(index=False).encode())
        (folder / f"{split}.boxes.csv").write_bytes(
            pd.DataFrame(rows, columns=BOX_COLUMNS).to_csv(index=False).encode()
        )
        described[split] = Split(
            shards=(
                Shard(key=f"{split}/{shard.name}", bytes=shard.stat().st_size, sha256=sha256(shard), count=len(views)),
            ),
            table_sha256=sha256(folder / f"{split}.csv"),
            boxes_sha256=sha256(folder / f"{split}.boxes.csv") if boxes else None,
            counts={"hand": TypeCount(images=(0, 0), studies=(0, 0))},
        )
    manifest = Manifest(
        name="painted",
        id=content_id("painted", SIZE, described),
        source_id="0",
        split_policy=policy,
        image_size=SIZE,
        splits=described,
        class_weights={"hand": (0.5, 0.5)},
    )
    write_manifest(str(folder), manifest)
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_ensemble(
    data_id: str,
    size: int = SIZE,
    offsets: tuple[float, ...] = (-1.0, 1.0),
    calibration: CalibrationDescription | None = None,
) -> Ensemble:
    config = TrialConfig(image_size=size, initial_weights="random")
    members = tuple(
        MemberDescription(trial=f"trial-{offset}", epoch=1, val_loss=0.5, config=config, sha256="0" * 64)
        for offset in offsets
    )
    description = EnsembleDescription(
        id="e" * 16, image_size=size, threshold=0.5, data_id=data_id, data_manifest_sha256="0" * 64, members=members,
        git_revision="unknown", created="2026-01-01T00:00:00.000000+00:00", calibration=calibration,
    )  # fmt: skip
    return Ensemble(description, [cast(AbnormalityNet, ReadsOffPixels(offset)) for offset in offsets], "cpu")


def sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))


def cohort(prefix: str = "", mark: int = 0) -> list[Painted]:
    """Hands: five abnormal studies (one missed), six normal (two called). Wrists: two, of patients with hands."""
    abnormal = [(1, f"{prefix}a{i}", logit) for i, logit in enumerate([3, 2, 1, 0.5, -2])]
    normal = [(0, f"{prefix}n{i}", logit) for i, logit in enumerate([-3, -3, -2, -1, 1.5, 2.5])]
    hands = [Painted("hand", patient, "study1", label, logit, mark=mark) for label, patient, logit in abnormal + normal]
    return [
        Painted("wrist", f"{prefix}a0", "study1", 1, 2, mark=mark + 1),
        Painted("wrist", f"{prefix}n0", "study1", 0, -1, mark=mark + 1),
        *hands,
    ]
