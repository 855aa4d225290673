import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from mura_ray.data.leakage import Leakage, find_leakage, shared_with
from mura_ray.data.manifest import Manifest, Split, content_id, write_manifest


@dataclass(frozen=True)
class Row:
    """An image of a table: whose it is, and what its pixels are the hash of (default: of nobody else's)."""

    patient: str
    study: str = "study1"
    image: str = "image1"
    pixels: str | None = None
    width: int = 200

    @property
    def path(self) -> str:
        return f"C/{self.patient}/{self.study}/{self.image}.png"


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": range(len(rows)),
            "path": [row.path for row in rows],
            "patient_id": [row.patient for row in rows],
            "study_id": [row.study for row in rows],
            "study_type": "hand",
            "label": 0,
            "width": [row.width for row in rows],
            "height": 100,
            "sha256": [hashlib.sha256((row.pixels or row.path).encode()).hexdigest() for row in rows],
        }
    )


def write_data(
    folder: Path, splits: Mapping[str, Sequence[Row]], name: str = "C", image_size: int = 320, policy: str = "patient"
) -> str:
    """A data set's tables and manifest; returns its id."""
    folder.mkdir()
    described = {}
    for split, rows in splits.items():
        content = table_of(rows).to_csv(index=False).encode()
        (folder / f"{split}.csv").write_bytes(content)
        described[split] = Split(shards=(), table_sha256=hashlib.sha256(content).hexdigest(), counts={})
    manifest = Manifest(
        name=name, id=content_id(name, image_size, described), source_id="0", split_policy=policy,
        image_size=image_size, splits=described, class_weights={},
    )  # fmt: skip
    write_manifest(str(folder), manifest)
    return manifest.id


def patients(*numbers: int) -> list[Row]:
    return [Row(f"p{number}") for number in numbers]


CLEAN = {"train": patients(*range(10)), "valid": patients(10, 11), "test": patients(20, 21, 22)}


def test_a_data_set_whose_splits_share_nothing_is_clean(tmp_path: Path):
    data_id = write_data(tmp_path / "a", CLEAN)
    for split in CLEAN:
        leakage = find_leakage(str(tmp_path / "a"), split, data_id)
        assert leakage == Leakage()
        leakage.refuse()


def test_a_patient_in_training_and_test_is_found_with_all_their_studies(tmp_path: Path):
    test = [*CLEAN["test"], Row("p3", "study2"), Row("p3", "study2", "image2"), Row("p3", "study3"), Row("p11")]
    data_id = write_data(tmp_path / "a", {**CLEAN, "test": test})
    leakage = find_leakage(str(tmp_path / "a"), "test", data_id)
    train, valid = leakage.shared
    assert (train.split, train.num_patients, train.num_studies, train.num_images) == ("train", 1, 2, 0)
    assert train.patients == ("p3",)
    # p11 has the same study and image in both: the patient and the pixels.
    assert (valid.split, valid.num_patients, valid.num_studies, valid.num_images) == ("valid", 1, 1, 1)
    with pytest.raises(
        ValueError, match=r"'train', which the ensemble was trained on, are patients: 1 \(p3\); studies"
    ):
        leakage.refuse()
    with pytest.raises(ValueError, match=r"'valid', which the ensemble was chosen on.*pass --allow-leakage"):
        leakage.refuse()
    leakage.refuse(allow=True)
    assert [note.startswith("optimistic numbers: ") for note in leakage.notes] == [True, True]


def test_the_same_pixels_under_another_patient_are_found_with_both_paths(tmp_path: Path):
    copies = [Row("x", pixels=CLEAN["train"][4].path), Row("y", pixels=CLEAN["train"][5].path)]
    data_id = write_data(tmp_path / "a", {**CLEAN, "test": [*CLEAN["test"], *copies]})
    [shared] = find_leakage(str(tmp_path / "a"), "test", data_id).shared
    assert (shared.split, shared.num_patients, shared.num_images, shared.num_studies) == ("train", 0, 2, 2)
    assert shared.images == (
        ("C/x/study1/image1.png", "C/p4/study1/image1.png"),
        ("C/y/study1/image1.png", "C/p5/study1/image1.png"),
    )
    assert "C/x/study1/image1.png = C/p4/study1/image1.png" in str(shared)


def test_valid_is_compared_with_train_and_not_with_itself(tmp_path: Path):
    data_id = write_data(tmp_path / "a", {**CLEAN, "valid": patients(10, 2)})
    [shared] = find_leakage(str(tmp_path / "a"), "valid", data_id).shared
    assert (shared.split, shared.patients) == ("train", ("p2",))


def test_another_data_set_without_that_of_the_training_at_hand_is_not_checked(tmp_path: Path):
    write_data(tmp_path / "a", CLEAN)
    leakage = find_leakage(str(tmp_path / "a"), "test", "another")
    assert leakage.shared == ()
    [sentence] = leakage.notes
    assert sentence.startswith("not checked: ")
    assert "another" in sentence
    assert "--trained-on" in sentence
    leakage.refuse()


def test_official_splits_and_splits_by_patient_of_one_collection_are_told_apart_by_their_patients(tmp_path: Path):
    official = {"train": patients(*range(10)), "valid": patients(20, 21, 22)}
    by_patient = {"train": patients(*range(8)), "valid": patients(8, 9), "test": patients(20, 21, 22)}
    chosen_on_official = write_data(tmp_path / "official", official, policy="official")
    chosen_by_patient = write_data(tmp_path / "patient", by_patient)
    both = str(tmp_path / "official"), str(tmp_path / "patient")
    # Trained by the official splits: what is the test here was `valid` there, on which members were chosen.
    [shared] = find_leakage(both[1], "test", chosen_on_official, both[0]).shared
    assert (shared.split, shared.num_patients) == ("valid", 3)
    # The other way round the official validation set was seen by nobody; the official training set was.
    assert find_leakage(both[0], "valid", chosen_by_patient, both[1]) == Leakage()
    train, valid = find_leakage(both[0], "train", chosen_by_patient, both[1]).shared
    assert (train.num_patients, valid.num_patients) == (8, 2)
    # Within the official splits patients are apart: that valid was chosen on is for the report's own note.
    assert find_leakage(both[0], "valid", chosen_on_official) == Leakage()


def test_at_another_image_size_patients_are_compared_and_pixels_cannot_be(tmp_path: Path):
    trained = write_data(tmp_path / "a", CLEAN)
    write_data(tmp_path / "b", {"test": [Row("p3"), Row("x", pixels=CLEAN["train"][4].path)]}, image_size=224)
    leakage = find_leakage(str(tmp_path / "b"), "test", trained, str(tmp_path / "a"))
    [shared] = leakage.shared
    assert (shared.patients, shared.num_images) == (("p3",), 0)
    [sentence] = leakage.unchecked
    assert "224 px" in sentence
    assert "320 px" in sentence


def test_collections_of_other_names_share_no_patients_but_may_share_pixels(tmp_path: Path):
    trained = write_data(tmp_path / "a", CLEAN)
    other = [Row("p3", pixels="own"), Row("x", pixels=CLEAN["train"][4].path)]
    write_data(tmp_path / "b", {"test": other}, name="D")
    leakage = find_leakage(str(tmp_path / "b"), "test", trained, str(tmp_path / "a"))
    [shared] = leakage.shared
    assert (shared.num_patients, shared.num_images) == (0, 1)
    assert "two collections" in leakage.unchecked[0]


def test_collections_that_name_other_images_alike_share_no_patients(tmp_path: Path):
    trained = write_data(tmp_path / "a", CLEAN)
    other = [replace(row, width=333, pixels=f"other {row.path}") for row in CLEAN["train"]]
    write_data(tmp_path / "b", {"test": other})
    leakage = find_leakage(str(tmp_path / "b"), "test", trained, str(tmp_path / "a"))
    assert leakage.shared == ()
    assert "whose patient ids do not compare" in leakage.unchecked[0]


def test_new_images_of_known_patients_are_found(tmp_path: Path):
    trained = write_data(tmp_path / "a", CLEAN)
    write_data(tmp_path / "b", {"test": [Row("p3", "study9"), Row("q")]})
    [shared] = find_leakage(str(tmp_path / "b"), "test", trained, str(tmp_path / "a")).shared
    assert shared.patients == ("p3",)


def test_trained_on_must_be_the_ensembles_data_set(tmp_path: Path):
    found = write_data(tmp_path / "a", CLEAN)
    write_data(tmp_path / "b", {"test": patients(1)})
    with pytest.raises(ValueError, match=f"is the data set {found}, the ensemble was made with another"):
        find_leakage(str(tmp_path / "b"), "test", "another", str(tmp_path / "a"))


def test_examples_are_few_and_say_that_there_are_more():
    rows = patients(*range(30))
    shared = shared_with(table_of(rows), table_of(rows), "train", patients=True, pixels=True)
    assert (shared.num_patients, shared.num_images, shared.num_studies) == (30, 30, 30)
    assert len(shared.patients) == len(shared.images) == 5
    assert "patients: 30 (p0, p1, p2, p3, p4, ...)" in str(shared)
    assert "images of equal pixels: 30 (" in str(shared)
