"""Reads a MURA-v1.1 tree: folders, image names and the four CSV files. Opens no image.

A copy is read as it is where that is safe (line ends, trailing slashes, hidden files, gaps in image numbers, repeated
rows); everything else that is wrong in it is reported at once, for both official splits.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from mura_ray import store
from mura_ray.data.collection import Collection, Findings, fail, in_order, natural, split_patients
from mura_ray.domain import ABNORMAL, NORMAL, STUDY_TYPES, Study, View

FOLDER = "MURA-v1.1"
OLD_FOLDER = "MURA-v1.0"
OFFICIAL_SPLITS = ("train", "valid")
TYPE_FOLDERS = tuple(f"XR_{study_type.upper()}" for study_type in STUDY_TYPES)
LABELS = {"negative": NORMAL, "positive": ABNORMAL}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_STUDY = re.compile(r"XR_([A-Z]+)/(patient[0-9]+)/(study[0-9]+)_(negative|positive)")
_ROW = re.compile(rf"(?:(?P<top>[^/]+)/)?(?P<split>[a-z]+)/(?P<study>{_STUDY.pattern})(?:/(?P<image>[^/]+))?")
_RESTORE = "restore it from the original archive"


def read_mura(root: str | Path, split: Literal["train", "valid"]) -> list[Study]:
    """Reads one official split of a MURA-v1.1 tree.

    Args:
        root: URI of the folder MURA-v1.1, or of the one that contains it.
        split: "train" or "valid".

    Returns:
        The studies by type, patient and study, their views by image number. The views' paths begin with MURA-v1.1/, as
        in the CSV files, whichever of the two folders was given.

    Raises:
        CollectionError: the tree has faults; all of them, those of the other split included where it is there.
        ValueError: there is no such split.
    """
    if split not in OFFICIAL_SPLITS:
        raise ValueError(f"MURA has no public split {split!r}: pass one of {', '.join(OFFICIAL_SPLITS)}")
    return _read_tree(_find_folder(str(root)), [split], Findings())[split]


def read_collection(
    root: str | Path,
    *,
    splits: Literal["patient", "official"] = "patient",
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Collection:
    """Reads a MURA-v1.1 tree with its splits.

    Args:
        root: URI of the folder MURA-v1.1, or of the one that contains it.
        splits: "patient" makes `valid` from a part of the official training set's patients and keeps the official
            validation set as `test`, so that what is reported was chosen on other data; "official" is the paper's way
            (section 2), whose test set is not public.
        valid_fraction: share of the training set that "patient" takes for `valid`.
        seed: of that choice.

    Raises:
        CollectionError: the tree has faults; all of them.
        ValueError: an argument is out of its range, or there are too few patients to split.
    """
    if splits not in ("patient", "official"):
        raise ValueError(f"cannot split by {splits!r}: pass patient or official")
    folder, findings = _find_folder(str(root)), Findings()
    official = _read_tree(folder, OFFICIAL_SPLITS, findings)
    if splits == "patient":
        train, valid = split_patients(official["train"], valid_fraction, seed)
        official = {"train": train, "valid": valid, "test": official["valid"]}
    return Collection(FOLDER, store.parent(folder), official, splits, findings.notes)


def _find_folder(root: str) -> str:
    root = store.absolute(root)
    if not store.is_folder(root):
        fail(root, "there is no such folder", f"pass the folder that contains {FOLDER}/")
    if store.is_folder(store.join(root, FOLDER)):
        return store.join(root, FOLDER)
    if any(store.exists(store.join(root, name)) for split in OFFICIAL_SPLITS for name in _marks(split)):
        return root
    if store.is_folder(store.join(root, OLD_FOLDER)):
        return store.join(root, OLD_FOLDER)
    return fail(root, f"neither {FOLDER}/ nor train/ and valid/ are in it", f"pass the folder with {FOLDER}/")


def _read_tree(folder: str, needed: Sequence[str], findings: Findings) -> dict[str, list[Study]]:
    if store.name(folder) == OLD_FOLDER:
        findings.problem(OLD_FOLDER, f"this is {OLD_FOLDER}, not {FOLDER}", f"get {FOLDER}; only that version is read")
    splits = [
        _Split(folder, name, findings)
        for name in OFFICIAL_SPLITS
        if name in needed or any(store.exists(store.join(folder, mark)) for mark in _marks(name))
    ]
    for split in splits:
        split.check()
    _check_patients(splits, findings)
    findings.raise_problems()
    return {split.name: split.studies() for split in splits}


class _Split:
    """One official split: what its folder holds, what its two CSV files say, and whether they agree.

    Studies are named by their folder below the split's, such as XR_ELBOW/patient00011/study1_negative.

    Attributes:
        folders: by study the file names of its images on disk; None: the split's folder is missing.
        labels: by study the line of `labels_csv` that names it; None: the file is missing.
        images: by study and image the line of `images_csv` that names it; None: the file is missing.
    """

    def __init__(self, folder: str, name: str, findings: Findings) -> None:
        self.name = name
        self._top = store.name(folder)
        self.shown = f"{self._top}/{name}"
        self._folder = folder
        self._findings = findings
        self._unknown_types: set[str] = set()
        _, self.labels_csv, self.images_csv, self._old_csv = _marks(name)
        self.labels = self._read_labels()
        self.images = self._read_images()
        self.folders = self._walk()

    def _read_labels(self) -> dict[str, int] | None:
        if not self._is_there(self.labels_csv):
            return None
        labels: dict[str, int] = {}
        for line, match, cells in self._rows(self.labels_csv, f"{self.shown}/XR_HAND/patient00011/study1_negative/,0"):
            study, label, row = match["study"], cells[1], f"{self.labels_csv}:{line}"
            suffix = study.rpartition("_")[2]
            if labels.setdefault(study, line) != line:
                self._findings.note(f"{self._top}/{row}", "row is there twice, read once", "nothing to do")
            if label not in ("0", "1"):
                what, remedy = f"label {label!r} in {row}", "write 0 (negative) or 1 (positive)"
                self._findings.problem(f"{self.shown}/{study}", what, remedy)
            elif int(label) != LABELS[suffix]:
                what = f"label {label} in {row} contradicts the folder's _{suffix}"
                self._findings.problem(f"{self.shown}/{study}", what, "correct the row or rename the folder")
        return labels

    def _read_images(self) -> dict[str, dict[str, int]] | None:
        if not self._is_there(self.images_csv):
            return None
        images: dict[str, dict[str, int]] = {}
        form = f"{self.shown}/XR_HAND/patient00011/study1_negative/image1.png"
        for line, match, _ in self._rows(self.images_csv, form):
            row = f"{self._top}/{self.images_csv}:{line}"
            if match["image"].startswith("."):
                self._findings.note(row, "row names a hidden file, skipped", "nothing to do")
            elif images.setdefault(match["study"], {}).setdefault(match["image"], line) != line:
                self._findings.note(row, "row is there twice, read once", "nothing to do")
        return images

    def _is_there(self, csv_name: str) -> bool:
        if store.is_file(store.join(self._folder, csv_name)):
            return True
        if store.is_file(store.join(self._folder, self._old_csv)):
            what, remedy = (
                f"file of {OLD_FOLDER} in the place of {csv_name}",
                f"get {FOLDER}; only that version is read",
            )
            self._findings.problem(f"{self._top}/{self._old_csv}", what, remedy)
        else:
            self._findings.problem(f"{self._top}/{csv_name}", "there is no such file", _RESTORE)
        return False

    def _rows(self, csv_name: str, form: str) -> Iterator[tuple[int, re.Match[str], list[str]]]:
        """Line number, parsed path and cells of the rows that have the form of the example; others are reported."""
        old_lines = []
        text = store.read_bytes(store.join(self._folder, csv_name)).decode("utf-8-sig", errors="replace")
        for line, row in enumerate(text.split("\n"), start=1):
            cells = [cell.strip() for cell in row.split(",")]
            match = _ROW.fullmatch(cells[0].rstrip("/"))
            if (
                match
                and match["top"] in (None, FOLDER, OLD_FOLDER, self._top)
                and match["split"] == self.name
                and bool(match["image"]) == (csv_name == self.images_csv)
                and len(cells) == len(form.split(","))
            ):
                if match["top"] == OLD_FOLDER:
                    old_lines.append(line)
                if (study_type := match["study"].split("/")[0]) in TYPE_FOLDERS:
                    yield line, match, cells
                else:
                    self._unknown_types.add(study_type)
            elif row.strip():
                what = f"malformed row {row.strip()[:200]!r}"
                remedy = f"correct or remove it; the form is {form}"
                self._findings.problem(f"{self._top}/{csv_name}:{line}", what, remedy)
        if old_lines and self._top != OLD_FOLDER:
            what = f"{len(old_lines)} rows name {OLD_FOLDER}, not {FOLDER} (this is the first)"
            self._findings.problem(f"{self._top}/{csv_name}:{old_lines[0]}", what, f"take the file of {FOLDER}")

    def _walk(self) -> dict[str, list[str]] | None:
        if not store.is_folder(store.join(self._folder, self.name)):
            self._findings.problem(self.shown, "there is no such folder", _RESTORE)
            return None
        tree = store.tree(store.join(self._folder, self.name))
        found: dict[str, list[str]] = {}
        for study_type in self._entries(tree, "", is_folder=True):
            if study_type not in TYPE_FOLDERS:
                self._unknown_types.add(study_type)
                continue
            for patient in self._entries(tree, study_type, is_folder=True):
                for folder in self._entries(tree, f"{study_type}/{patient}", is_folder=True):
                    study = f"{study_type}/{patient}/{folder}"
                    if _STUDY.fullmatch(study):
                        found[study] = self._entries(tree, study, is_folder=False)
                    else:
                        remedy = "rename or remove it; the form is patient00011/study1_negative"
                        self._findings.problem(f"{self.shown}/{study}", "no folder of a study by its name", remedy)
        return found

    def _entries(self, tree: store.Tree, path: str, *, is_folder: bool) -> list[str]:
        """Names of the subfolders or of the images of a folder below the split's."""
        names = []
        for entry in tree.entries(path):
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file
            if entry.name.startswith("."):
                self._skip(f"{path}/{entry.name}", "hidden file, skipped")
            elif entry.is_folder if is_folder else is_image:
                names.append(entry.name)
            else:
                self._skip(f"{path}/{entry.name}", "no part of MURA, skipped")
        return names

    def _skip(self, path: str, what: str) -> None:
        self._findings.note(f"{self.shown}/{path.removeprefix('/')}", what, "nothing to do")

    def check(self) -> None:
        """Reports where folder and CSV files disagree. What a missing file or folder explains is told once."""
        for name in sorted(self._unknown_types):
            remedy = f"remove the folder and its rows; known are {', '.join(TYPE_FOLDERS)}"
            self._findings.problem(f"{self.shown}/{name}", f"unknown study type {name!r}", remedy)
        if self.folders is not None:
            for study in sorted({*self.folders, *(self.labels or ()), *(self.images or ())}):
                if study in self.folders:
                    self._check_folder(study, self.folders[study])
                else:
                    self._report_missing(study)

    def _report_missing(self, study: str) -> None:
        if self.labels and study in self.labels:
            row = f"{self.labels_csv}:{self.labels[study]}"
        else:
            assert self.images is not None
            row = f"{self.images_csv}:{min(self.images[study].values())}"
        what = f"named in {row}, but there is no such folder"
        self._findings.problem(f"{self.shown}/{study}", what, f"{_RESTORE}, or remove its rows")

    def _check_folder(self, study: str, names: list[str]) -> None:
        path, stem = f"{self.shown}/{study}", study.rpartition("_")[0]
        lines = None if self.images is None else self.images.get(study, {})
        is_unlabelled = self.labels is not None and study not in self.labels
        if study.endswith("_positive") and self.folders and f"{stem}_negative" in self.folders:
            self._findings.problem(path, "is also there as _negative", "keep the right one of the two")
        if is_unlabelled:
            self._findings.problem(path, f"not in {self.labels_csv}", "add its rows or remove the folder")
        if not names:
            self._findings.problem(
                path, "study folder without images", "restore them, or remove the folder and its rows"
            )
        elif lines is not None and (lines or not is_unlabelled):
            for name in sorted(lines.keys() - set(names), key=natural):
                what = f"named in {self.images_csv}:{lines[name]}, but there is no such file"
                self._findings.problem(f"{path}/{name}", what, f"{_RESTORE}, or remove its row")
            for name in sorted(set(names) - lines.keys(), key=natural):
                what = f"not in {self.images_csv}"
                self._findings.problem(f"{path}/{name}", what, "add its row or remove the file")

    def studies(self) -> list[Study]:
        """The studies of a sound split."""
        studies = []
        for path, names in (self.folders or {}).items():
            match = _STUDY.fullmatch(path)
            assert match, path
            study_type, patient, study, suffix = match.groups()
            views = tuple(View(f"{self.shown}/{path}/{name}") for name in sorted(names, key=natural))
            studies.append(Study(study_type.lower(), patient, study, LABELS[suffix], views))
        return in_order(studies)


def _marks(split: str) -> tuple[str, str, str, str]:
    """What shows that a split is there: its folder, the two files of version 1.1, and the one of version 1.0."""
    return split, f"{split}_labeled_studies.csv", f"{split}_image_paths.csv", f"{split}.csv"


def _check_patients(splits: Sequence[_Split], findings: Findings) -> None:
    first: dict[str, tuple[str, str]] = {}
    reported: set[str] = set()
    for split in splits:
        for study in sorted({*(split.folders or ()), *(split.labels or ())}):
            patient = study.split("/")[1]
            path = f"{split.shown}/{study.rpartition('/')[0]}"
            other, elsewhere = first.setdefault(patient, (split.name, path))
            if other != split.name and patient not in reported:
                reported.add(patient)
                what = f"the patient is also in {other} ({elsewhere})"
                findings.problem(path, what, "remove the patient from one of the two splits")
