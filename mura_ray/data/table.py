"""Reads any collection that a CSV file lists, one row an image. Opens only DICOM files, for what their rows omit."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mura_ray import store
from mura_ray.data.collection import Collection, Findings, deal, fail, in_order, natural, read_rows
from mura_ray.data.manifest import SPLITS
from mura_ray.dicom import StudySaid, read_study
from mura_ray.domain import STUDY_TYPES, Study, View

COLUMNS = ("path", "patient", "study", "study_type", "label")
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}

_START_BYTES = 2**16
"""Of a DICOM file; what it says of its study is as a rule in the first thousand bytes, and its pixels are the most."""


@dataclass(frozen=True)
class _Row:
    where: str
    path: str
    patient: str
    study: str
    study_type: str
    label: str
    split: str | None


def read_collection(csv_path: str | Path, *, seed: int = 0) -> Collection:
    """Reads a CSV file with the columns path, patient, study, study_type, label and, if it brings its own, split.

    A path is relative to the file's folder and stays below it. A study is named within its patient and has one type
    and one label (0 normal, 1 abnormal). Where study or study_type is left empty, a DICOM file says it, by its
    StudyInstanceUID and BodyPartExamined. Split is train, valid or test; without the column the patients are dealt to
    80, 10 and 10 %.

    Args:
        csv_path: URI of the file.
        seed: of the deal.

    Raises:
        CollectionError: the file or rows of it are wrong; all cases, with their lines.
        ValueError: there are too few patients for three splits.
    """
    uri, findings = store.absolute(str(csv_path)), Findings()
    file, folder = store.name(uri), store.parent(uri)
    if store.is_folder(uri):
        fail(uri, "is a folder", f"pass a CSV file with the columns {', '.join(COLUMNS)}[, split]")
    rows = [
        _Row(
            f"{file}:{line}",
            PurePosixPath(cells["path"]).as_posix(),
            cells["patient"],
            cells["study"],
            cells["study_type"].lower(),
            cells["label"],
            cells.get("split"),
        )
        for line, cells in read_rows(uri, COLUMNS, findings, known=(*COLUMNS, "split"))
    ]
    if not rows:
        findings.problem(file, "there are no rows", "add a row for each image")
    found = store.stat_files(folder, [row.path for row in rows if _stays_below(row.path)])
    rows = _completed(rows, folder, found.keys(), findings)
    for row in rows:
        _check_row(row, found.keys(), findings)
    _check_agreement(rows, findings)
    findings.raise_problems()
    splits, policy = _splits(rows, seed)
    return Collection(PurePosixPath(file).stem, folder, splits, policy, findings.notes)


def _stays_below(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _completed(rows: list[_Row], folder: str, found: Container[str], findings: Findings) -> list[_Row]:
    """The rows, with the study and the type that their DICOM files say where a cell is empty.

    A row that no file completes is a problem, and left out.
    """
    empty = [place for place, row in enumerate(rows) if row.path in found and not (row.study and row.study_type)]
    uris = [store.join(folder, rows[place].path) for place in empty]
    said = dict(zip(empty, store.read_many(uris, _said), strict=True))
    completed = []
    for place, row in enumerate(rows):
        study = said.get(place)
        if study and (missing := _not_said(row, study)):
            findings.problem(row.where, missing, "fill in the cell")
        elif isinstance(study, StudySaid):
            name, study_type = row.study or study.study_uid or "", row.study_type or study.study_type or ""
            completed.append(replace(row, study=name, study_type=study_type))
        else:
            completed.append(row)
    return completed


def _said(uri: str) -> StudySaid | ValueError:
    """What a file says of its study, from its start where that is enough; a deflated one is read only whole."""
    start = store.read_start(uri, _START_BYTES)
    said = _read_study(start)
    is_enough = isinstance(said, StudySaid) and said.study_uid and said.body_part
    return said if is_enough or len(start) < _START_BYTES else _read_study(store.read_bytes(uri))


def _read_study(content: bytes) -> StudySaid | ValueError:
    try:
        return read_study(content)
    except ValueError as error:
        return error


def _not_said(row: _Row, said: StudySaid | ValueError) -> str:
    """What is wrong with a row whose empty cells its file does not fill; empty if nothing is."""
    if isinstance(said, ValueError):
        empty = " and ".join(column for column in ("study", "study_type") if not getattr(row, column))
        return f"{row.path!r} does not say {empty}, and nothing else does: {said}"
    if not row.study and not said.study_uid:
        return f"study is empty, and {row.path!r} has no StudyInstanceUID (0020,000d)"
    if not row.study_type and not said.study_type:
        return (
            f"study_type is empty, and BodyPartExamined (0018,0015) of {row.path!r} is {said.body_part or 'missing'}, "
            f"none of {', '.join(STUDY_TYPES)}"
        )
    return ""


def _check_row(row: _Row, found: Container[str], findings: Findings) -> None:
    if not _stays_below(row.path):
        findings.problem(row.where, f"path {row.path!r} leaves the folder of the file", "give a relative path below it")
    elif row.path not in found:
        findings.problem(row.where, f"there is no file {row.path!r}", "correct the path or restore the file")
    for column, name in (("patient", row.patient), ("study", row.study)):
        if not name or "/" in name:
            findings.problem(row.where, f"{column} {name!r}", "give it a name without slashes")
    if row.study_type not in STUDY_TYPES:
        what = f"unknown study_type {row.study_type!r}"
        findings.problem(row.where, what, f"known are {', '.join(STUDY_TYPES)}")
    if row.label not in ("0", "1"):
        findings.problem(row.where, f"label {row.label!r}", "must be 0 (normal) or 1 (abnormal)")
    if row.split is not None and row.split not in SPLITS:
        findings.problem(row.where, f"unknown split {row.split!r}", f"known are {', '.join(SPLITS)}")


def _check_agreement(rows: list[_Row], findings: Findings) -> None:
    """Compares each row with the first of its path, its study and its patient."""
    paths: dict[str, _Row] = {}
    studies: dict[tuple[str, str], _Row] = {}
    patients: dict[str, _Row] = {}
    for row in rows:
        if (first := paths.setdefault(row.path, row)) is not row:
            findings.problem(row.where, f"path {row.path!r} is also in {first.where}", "remove one of the two rows")
        first = studies.setdefault((row.patient, row.study), row)
        for column, here, there in (
            ("study_type", row.study_type, first.study_type),
            ("label", row.label, first.label),
        ):
            if here != there:
                what = (
                    f"study {row.study!r} of patient {row.patient!r} has {column} {here} here, {there} in {first.where}"
                )
                findings.problem(row.where, what, "correct one of the rows, or name the studies apart")
        first = patients.setdefault(row.patient, row)
        if row.split != first.split:
            what = f"patient {row.patient!r} is in {row.split} here, in {first.split} in {first.where}"
            findings.problem(row.where, what, "put each patient into one split")


def _splits(rows: list[_Row], seed: int) -> tuple[dict[str, list[Study]], str]:
    by_study: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        by_study[row.patient, row.study].append(row)
    given: dict[str | None, list[Study]] = defaultdict(list)
    for (patient, study), members in by_study.items():
        views = tuple(View(path) for path in sorted((row.path for row in members), key=natural))
        first = members[0]
        given[first.split].append(Study(first.study_type, patient, study, int(first.label), views))
    if None in given:
        return deal(in_order(given[None]), lambda study: study.patient_id, SHARES, seed), "patient"
    return {split: in_order(given[split]) for split in SPLITS if split in given}, "given"
