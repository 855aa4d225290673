"""Whether a split that an ensemble is judged on shares patients or images with what it was trained or chosen on.

Patients are compared by id within one collection, images by the hash of their stored pixels. Neither finds an image
that was cropped, rotated or compressed again, nor a patient who goes by another id.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mura_ray.data.manifest import Manifest, read_manifest, read_table

USES = {"train": "trained", "valid": "chosen"}
"""Splits of the data set that an ensemble was made with, and what for."""

NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Shared:
    """What the judged split has in common with one split that the ensemble was made with.

    Attributes:
        split: train or valid.
        num_patients: of the judged split, who are in the other too.
        num_images: of the judged split, whose stored pixels are in the other too.
        num_studies: of the judged split, of these patients or with such an image.
        patients: the ids of the first few of them.
        images: the paths of the first few of them, here and there.
    """

    split: str
    num_patients: int
    num_images: int
    num_studies: int
    patients: tuple[str, ...]
    images: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """What is shared, in a sentence without its stop."""
        parts = []
        if self.num_patients:
            parts.append(f"patients: {self.num_patients} ({_few(self.patients, self.num_patients)})")
        if self.num_images:
            pairs = [here if here == there else f"{here} = {there}" for here, there in self.images]
            parts.append(f"images of equal pixels: {self.num_images} ({_few(pairs, self.num_images)})")
        return (
            f"in common with the split {self.split!r}, which the ensemble was {USES[self.split]} on, are "
            f"{', '.join(parts)}; studies concerned: {self.num_studies}"
        )


@dataclass(frozen=True, slots=True)
class Leakage:
    """What was found, and what could not be looked for, in sentences without their stops."""

    shared: tuple[Shared, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """All of it, for a report."""
        return *(f"optimistic numbers: {shared}" for shared in self.shared), *self.unchecked

    def of(self, split: str) -> "Leakage":
        """What is shared with one of the ensemble's splits."""
        return Leakage(tuple(shared for shared in self.shared if shared.split == split), self.unchecked)

    def refuse(self, *, allow: bool = False) -> None:
        """Ends an evaluation that would not hold for new patients, unless that is allowed.

        Raises:
            ValueError: something is shared.
        """
        if self.shared and not allow:
            raise ValueError(
                f"the data leak: {', and '.join(map(str, self.shared))}. Judge the ensemble on other studies, or pass "
                "--allow-leakage to have the report labelled as optimistic"
            )


def find_leakage(data: str, split: str, trained_data_id: str, trained_on: str | None = None) -> Leakage:
    """Compares a split with the splits that an ensemble was trained (`train`) and chosen (`valid`) on.

    A split of the ensemble's own data set is not compared with itself: that `train` and `valid` are no test is for the
    report to say, and no leak.

    Args:
        data: URI of the data set that the ensemble is judged on.
        split: one of its splits.
        trained_data_id: id of the data set that the ensemble was made with.
        trained_on: URI of that data set; not needed where it is `data`.

    Raises:
        ValueError: no such data set or split, or `trained_on` is another one than the ensemble's.
    """
    manifest, table = read_manifest(data), read_table(data, split)
    if manifest.id == trained_data_id:
        others = {use: read_table(data, use) for use in USES if use != split and use in manifest.splits}
        return Leakage(_shared(table, others, patients=True, pixels=True))
    if trained_on is None:
        return Leakage(
            unchecked=(
                f"not checked: whether patients or images of this data set ({manifest.id}) are among those of "
                f"{trained_data_id}, on which the ensemble was trained and chosen; pass --trained-on with its URI",
            )
        )
    other = read_manifest(trained_on)
    if other.id != trained_data_id:
        raise ValueError(
            f"--trained-on {trained_on!r} is the data set {other.id}, the ensemble was made with {trained_data_id}: "
            "pass the URI of that one"
        )
    tables = {name: read_table(trained_on, name) for name in other.splits}
    here = pd.concat([read_table(data, name) for name in manifest.splits])
    patients = _same_collection(manifest, other, here, pd.concat(list(tables.values())))
    pixels = manifest.image_size == other.image_size
    used = {use: tables[use] for use in USES if use in tables}
    return Leakage(_shared(table, used, patients=patients, pixels=pixels), _unchecked(manifest, other, patients))


def shared_with(judged: pd.DataFrame, other: pd.DataFrame, split: str, *, patients: bool, pixels: bool) -> Shared:
    """What two tables have in common.

    Args:
        judged: table of the split that an ensemble is judged on, columns as `TABLE_COLUMNS`.
        other: table of a split that it was made with.
        split: the other's name.
        patients: whether equal patient ids are the same patient.
        pixels: whether hashes of equal pixels are equal: the images have one size.
    """
    by_patient = judged["patient_id"].isin(other["patient_id"]) if patients else pd.Series(False, judged.index)
    by_pixels = judged["sha256"].isin(other["sha256"]) if pixels else pd.Series(False, judged.index)
    names = judged.loc[by_patient, "patient_id"].drop_duplicates()
    path_of = other.drop_duplicates("sha256").set_index("sha256")["path"]
    examples = judged.loc[by_pixels].head(NUM_EXAMPLES)
    studies = judged.loc[by_patient | by_pixels, ["study_type", "patient_id", "study_id"]].drop_duplicates()
    return Shared(
        split=split,
        num_patients=len(names),
        num_images=int(by_pixels.sum()),
        num_studies=len(studies),
        patients=tuple(names.head(NUM_EXAMPLES)),
        images=tuple(zip(examples["path"], path_of.reindex(examples["sha256"]), strict=True)),
    )


def _shared(
    judged: pd.DataFrame, others: Mapping[str, pd.DataFrame], *, patients: bool, pixels: bool
) -> tuple[Shared, ...]:
    found = [shared_with(judged, other, split, patients=patients, pixels=pixels) for split, other in others.items()]
    return tuple(shared for shared in found if shared.num_studies)


def _same_collection(here: Manifest, there: Manifest, images_here: pd.DataFrame, images_there: pd.DataFrame) -> bool:
    """Whether equal patient ids of two data sets are the same patient, as far as their tables tell.

    They are taken to be where the collections have one name, unless a file of one path has another size in each: then
    they are different collections that name their patients alike, as phantoms of different seeds do.
    """
    if here.name != there.name:
        return False
    columns = ["path", "width", "height"]
    common = images_here[columns].merge(images_there[columns], on="path", suffixes=("", "_there"))
    return bool(((common["width"] == common["width_there"]) & (common["height"] == common["height_there"])).all())


def _unchecked(here: Manifest, there: Manifest, patients: bool) -> tuple[str, ...]:
    sentences = []
    if not patients:
        sentences.append(
            f"not checked: whether patients of {here.name!r} ({here.id}) are among those of {there.name!r} "
            f"({there.id}), on which the ensemble was trained and chosen: these are two collections, whose patient ids "
            "do not compare"
        )
    if here.image_size != there.image_size:
        sentences.append(
            "not checked: whether images are among those that the ensemble was trained and chosen on: these are of "
            f"{here.image_size} px, those of {there.image_size} px, and equal pixels are found at one size only"
        )
    return tuple(sentences)


def _few(examples: list[str] | tuple[str, ...], number: int) -> str:
    return ", ".join(examples) + (", ..." if number > len(examples) else "")
