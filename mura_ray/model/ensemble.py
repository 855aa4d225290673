"""The ensemble: its folder, `ensemble.json` and the members' weights, and what it says of a study.

Knows no Ray, no HTTP and no files of radiographs: gray pixels in, probabilities and maps out.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit

from mura_ray import store
from mura_ray.config import THRESHOLD, Settings, TrialConfig
from mura_ray.domain import MemberPrediction, StudyPrediction, ViewPrediction
from mura_ray.images import resize_gray
from mura_ray.model.checkpoint import MODEL, network_from_bytes, read_meta
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.inference import Exact, Precision, make_engine
from mura_ray.platt import Calibration, CalibrationDescription, FittedOn
from mura_ray.revision import git_revision

FORMAT_VERSION = 1
DESCRIPTION = "ensemble.json"


class MemberDescription(Settings):
    """Where a member comes from, and the hash of its `member-<place>.safetensors`."""

    trial: str
    epoch: int
    val_loss: float
    config: TrialConfig
    sha256: str


class EnsembleDescription(Settings):
    """`ensemble.json`. `id` hashes everything but itself and `created`: equal ids mean equal answers."""

    format_version: int = FORMAT_VERSION
    id: str
    architecture: Literal["densenet169"] = "densenet169"
    image_size: int
    threshold: float
    calibration: CalibrationDescription | None = None
    members: tuple[MemberDescription, ...]
    data_id: str
    data_manifest_sha256: str
    git_revision: str
    created: str = Field(description="UTC, ISO 8601 with microseconds: sorts as text")

    def calibrated_probability(self, probability: float, study_type: str | None) -> float | None:
        """What a study's probability means as a frequency; None without a calibration.

        Args:
            probability: of abnormality, as `StudyPrediction` has it; it stays what decides.
            study_type: None where it is not known: then the scaling over all types counts, as for a type without one.
        """
        return None if self.calibration is None else float(self.calibration.scaling(study_type)(probability))

    def sealed(self) -> "EnsembleDescription":
        """The same with the id of its content, made now."""
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        return self.model_copy(update={"id": _content_id(self.model_dump(mode="json")), "created": created})


@dataclass(frozen=True)
class MemberSource:
    """A member to be: the trial, the epoch chosen, its validation loss, and the URI of that epoch's checkpoint."""

    trial: str
    epoch: int
    val_loss: float
    config: TrialConfig
    checkpoint: str


def member_file(place: int) -> str:
    """Name of a member's weights in the ensemble's folder, by its place in `EnsembleDescription.members`."""
    return f"member-{place}.safetensors"


def write_ensemble(
    dest: str, members: Sequence[MemberSource], *, data_id: str, data_manifest_sha256: str
) -> EnsembleDescription:
    """Copies the members into a folder, lowest validation loss first, and writes `ensemble.json` last.

    Nothing is written before all members were read and found sound. Writing the same ensemble again changes nothing.

    Args:
        dest: URI of the ensemble's folder.
        members: whom it consists of.
        data_id: id of the data set that all were trained on.
        data_manifest_sha256: hash of its manifest.

    Returns:
        What `ensemble.json` says.

    Raises:
        ValueError: no members, members of different image sizes, of another data set or epoch than is said, a damaged
            checkpoint, or another ensemble lies there.
    """
    members = sorted(members, key=lambda member: member.val_loss)
    sizes = sorted({member.config.image_size for member in members})
    if len(sizes) != 1:
        raise ValueError(f"an ensemble's members must share one image_size, these have {sizes or 'no members'}")
    contents = [_member_content(member, data_manifest_sha256) for member in members]
    described = [
        MemberDescription(
            trial=member.trial,
            epoch=member.epoch,
            val_loss=member.val_loss,
            config=member.config,
            sha256=_sha256(content),
        )
        for member, content in zip(members, contents, strict=True)
    ]
    description = EnsembleDescription(
        id="",
        created="",
        image_size=sizes[0],
        threshold=THRESHOLD,
        members=tuple(described),
        data_id=data_id,
        data_manifest_sha256=data_manifest_sha256,
        git_revision=git_revision(),
    ).sealed()
    return _write(dest, description, contents)


def calibrate_ensemble(uri: str, dest: str, calibration: Calibration, fitted_on: FittedOn) -> EnsembleDescription:
    """Writes an ensemble of the same members with a calibration, under an id of its own; the other stays as it is.

    Args:
        uri: of the ensemble to calibrate.
        dest: URI of the new ensemble's folder; `<runs>/<another name>/ensemble` is found by id and as the newest.
        calibration: what to apply to study probabilities.
        fitted_on: the studies that it was fitted on.

    Returns:
        What the new `ensemble.json` says.

    Raises:
        ValueError: no such ensemble, it is calibrated already, a member is damaged, or another ensemble lies at `dest`.
    """
    description = read_description(uri)
    if description.calibration is not None:
        raise ValueError(
            f"{uri} is calibrated already, from the ensemble {description.calibration.uncalibrated_id}: calibrate that"
        )
    calibrated = CalibrationDescription(**calibration.model_dump(), fitted_on=fitted_on, uncalibrated_id=description.id)
    contents = [read_member(uri, description, place) for place in range(len(description.members))]
    new = description.model_copy(update={"calibration": calibrated, "git_revision": git_revision()}).sealed()
    return _write(dest, new, contents)


def _write(dest: str, description: EnsembleDescription, contents: Sequence[bytes]) -> EnsembleDescription:
    if store.exists(store.join(dest, DESCRIPTION)):
        return _same_ensemble(dest, description)
    for place, content in enumerate(contents):
        store.write_bytes(store.join(dest, member_file(place)), content)
    store.write_bytes(store.join(dest, DESCRIPTION), description.model_dump_json(indent=2).encode() + b"\n")
    return description


def read_member(uri: str, description: EnsembleDescription, place: int) -> bytes:
    """A member's weights, which are what the description says.

    Raises:
        ValueError: the file is missing or differs from its hash.
    """
    file = store.join(ensemble_folder(uri), member_file(place))
    if not store.exists(file):
        raise ValueError(f"{file} is missing: restore it, or write the ensemble again")
    content = store.read_bytes(file)
    if (found := _sha256(content)) != description.members[place].sha256:
        raise ValueError(
            f"{file} is not the member that {DESCRIPTION} describes: its sha256 is {found}, expected "
            f"{description.members[place].sha256}; restore it, or write the ensemble again"
        )
    return content


def read_description(uri: str) -> EnsembleDescription:
    """What an ensemble consists of.

    Args:
        uri: of its folder, or of its `ensemble.json`.

    Raises:
        ValueError: there is none, it is damaged or was edited, or is of another format version.
    """
    uri = store.join(ensemble_folder(uri), DESCRIPTION)
    content = _read_json(uri)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{uri} has format version {version!r}, this program reads {FORMAT_VERSION}: search again")
    try:
        description = EnsembleDescription.model_validate(content)
    except ValueError as error:
        raise ValueError(f"{uri} is damaged: {error}; restore it from a copy") from error
    if description.id != _content_id(content):
        raise ValueError(
            f"{uri} was changed after it was written: its content has the id {_content_id(content)}, it says "
            f"{description.id}; restore it from a copy"
        )
    return description


def newest_ensemble(runs: str) -> str:
    """URI of the folder of the ensemble under `<runs>/*/ensemble/` that was created last.

    Raises:
        ValueError: there is none.
    """
    folders = _ensembles(runs)
    return max(folders, key=lambda folder: folders[folder].created)


def find_ensemble(runs: str, ensemble_id: str) -> str:
    """URI of the folder of the ensemble under `<runs>/*/ensemble/` that has an id.

    Raises:
        ValueError: there is none.
    """
    folders = _ensembles(runs)
    for folder, description in folders.items():
        if description.id == ensemble_id:
            return folder
    known = ", ".join(description.id for description in folders.values())
    raise ValueError(f"no ensemble under {runs!r} has the id {ensemble_id!r}; there are {known}")


def _ensembles(runs: str) -> dict[str, EnsembleDescription]:
    """The ensembles under `<runs>/*/ensemble/`, by folder; one at least."""
    names = [entry.name for entry in store.tree(runs).entries() if entry.is_folder]
    folders = [store.join(runs, name, "ensemble") for name in names]
    folders = [folder for folder in folders if store.is_file(store.join(folder, DESCRIPTION))]
    if not folders:
        raise ValueError(
            f"no ensemble under {runs!r} (no */ensemble/{DESCRIPTION}): run `python -m mura_ray.tune` to its end, or "
            "name an ensemble's folder"
        )
    return {folder: read_description(folder) for folder in folders}


class Ensemble:
    """All members of an ensemble in memory, ready to answer. Safe to call from several threads."""

    def __init__(
        self,
        description: EnsembleDescription,
        networks: Sequence[AbnormalityNet],
        device: str,
        precision: Precision = "fp32",
    ) -> None:
        self.description = description
        self._engine = make_engine(networks, description.image_size, device, precision)
        self.max_views = self._engine.max_views

    @classmethod
    def load(cls, uri: str, device: str = "cpu", precision: Precision = "fp32") -> "Ensemble":
        """Loads every member, or raises: an ensemble never answers with some of its members.

        Args:
            uri: of the ensemble's folder, or of its `ensemble.json`.
            device: where it computes, such as "cpu" or "cuda".
            precision: "fp32" for the exact results, "auto" for the fastest that serving allows: probabilities may
                differ by 2e-3.

        Raises:
            ValueError: no such ensemble, a member's file is missing, differs from its hash or does not load, or the
                device does not have the precision.
        """
        description = read_description(uri)
        networks = [
            network_from_bytes(
                read_member(uri, description, place), store.join(ensemble_folder(uri), member_file(place))
            )
            for place in range(len(description.members))
        ]
        return cls(description, networks, device, precision)

    def warm_up(self) -> None:
        """Computes a pass of each size that is compiled for, so that no study waits for it and memory grows no more."""
        size = self.description.image_size
        for num_views in self._engine.compiled_for:
            self._engine(torch.zeros(num_views, 1, size, size, dtype=torch.uint8))

    def predict_study(self, views: Sequence[np.ndarray]) -> StudyPrediction:
        """The probability that a study is abnormal, its decision, and each view's probability and map.

        A view's probability is the mean over the members, the study's the mean over its views (paper, section 3.1).

        Args:
            views: uint8 [H, W] each, of any sizes, as `images.read_gray` gives them.

        Raises:
            ValueError: a study without views.
        """
        return self.predict_studies([views])[0]

    def predict_studies(self, studies: Sequence[Sequence[np.ndarray]]) -> list[StudyPrediction]:
        """What `predict_study` says of each study, from forward passes over the views of all.

        Raises:
            ValueError: a study without views.
        """
        if not all(studies):
            raise ValueError("a study needs at least one view")
        size = self.description.image_size
        views = [view for study in studies for view in study]
        logits, maps = self.predict_pixels(np.stack([resize_gray(view, size) for view in views])[:, None])
        ends = np.cumsum([len(study) for study in studies])[:-1]
        return [
            self._prediction(study, *parts)
            for study, *parts in zip(studies, np.split(logits, ends, axis=1), np.split(maps, ends), strict=True)
        ]

    def _prediction(self, views: Sequence[np.ndarray], logits: np.ndarray, maps: np.ndarray) -> StudyPrediction:
        probabilities = expit(logits.astype(np.float64))
        probability = float(probabilities.mean())
        return StudyPrediction(
            probability=probability,
            abnormal=probability > self.description.threshold,
            threshold=self.description.threshold,
            views=tuple(
                ViewPrediction(width=view.shape[1], height=view.shape[0], probability=float(mean), cam=cam)
                for view, mean, cam in zip(views, probabilities.mean(axis=0), maps, strict=True)
            ),
            members=tuple(
                MemberPrediction(trial=member.trial, probability=float(mean))
                for member, mean in zip(self.description.members, probabilities.mean(axis=1), strict=True)
            ),
        )

    def predict_pixels(self, pixels: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """All members' logits and the ensemble's maps of any number of views.

        Args:
            pixels: uint8 [N, 1, S, S], S the ensemble's image size.

        Returns:
            Logits, float32 [M, N], members in the description's order, and maps, float32 [N, h, w]: the mean of the
            members' raw maps.
        """
        logits, maps = zip(*map(self._engine, self._passes(pixels)), strict=True)
        return np.concatenate(logits, axis=1), np.concatenate(maps)

    def predict_member_maps(self, pixels: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """All members' logits and raw maps of any number of views, for evaluation.

        Args:
            pixels: uint8 [N, 1, S, S], S the ensemble's image size.

        Returns:
            Logits, float32 [M, N], and maps, float32 [M, N, h, w], members in the description's order. Their mean
            over the members is what `predict_pixels` gives.

        Raises:
            ValueError: the ensemble was loaded for speed, in which engines keep the mean of the maps alone.
        """
        if not isinstance(self._engine, Exact):
            raise ValueError("members' maps are kept by precision 'fp32' alone: load the ensemble with that")
        logits, maps = zip(*map(self._engine.member_maps, self._passes(pixels)), strict=True)
        return np.concatenate(logits, axis=1), np.concatenate(maps, axis=1)

    def _passes(self, pixels: np.ndarray | torch.Tensor) -> Sequence[torch.Tensor]:
        """Views in parts of at most `max_views`."""
        size = self.description.image_size
        pixels = torch.as_tensor(pixels)
        assert pixels.dtype == torch.uint8, pixels.dtype
        assert pixels.shape[1:] == (1, size, size), pixels.shape
        return pixels.split(self.max_views)


def ensemble_folder(uri: str) -> str:
    """The URI of an ensemble's folder, from that or from its `ensemble.json`'s."""
    return store.parent(uri) if store.name(uri) == DESCRIPTION else uri


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content_id(content: dict[str, Any]) -> str:
    hashed = {key: value for key, value in content.items() if key not in ("id", "created")}
    return _sha256(json.dumps(hashed, sort_keys=True).encode())[:16]


def _read_json(uri: str) -> dict[str, Any]:
    if not store.exists(uri):
        raise ValueError(
            f"no ensemble: {uri} does not exist; run `python -m mura_ray.tune` to its end, or name another"
        )
    try:
        content = json.loads(store.read_bytes(uri))
    except ValueError as error:
        raise ValueError(f"{uri} is damaged: {error}; restore it from a copy") from error
    if not isinstance(content, dict):
        raise ValueError(f"{uri} is damaged: it holds no JSON object; restore it from a copy")
    return content


def _member_content(member: MemberSource, data_manifest_sha256: str) -> bytes:
    """The bytes of a member's weights, after they were found to be what the source says and to load."""
    meta = read_meta(member.checkpoint)
    said, found = (member.epoch, data_manifest_sha256), (meta.epoch, meta.data_manifest_sha256)
    if said != found:
        raise ValueError(
            f"{member.checkpoint} is not the checkpoint of trial {member.trial}: expected epoch and data set {said}, "
            f"it has {found}"
        )
    uri = store.join(member.checkpoint, MODEL)
    content = store.read_bytes(uri)
    network_from_bytes(content, uri)
    return content


def _same_ensemble(dest: str, new: EnsembleDescription) -> EnsembleDescription:
    """The description that lies there already, if it is the new one but for revision and time."""
    old = read_description(dest)
    ignored = {"id", "created", "git_revision"}
    if old.model_dump(exclude=ignored) != new.model_dump(exclude=ignored):
        raise ValueError(f"{dest} holds another ensemble ({old.id}), which is never changed: choose another name")
    return old
