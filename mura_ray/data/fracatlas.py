"""Reads the FracAtlas folder (Abedeen et al., Scientific Data 10, 521, 2023): free real radiographs. Opens no image.

Fractured is label 1, which is narrower than MURA's abnormal. Kept are the images of a hand or of a shoulder. Those
marked as hand *and* shoulder show whole arms and are of neither type; they are left out, like legs and hips.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mura_ray import store
from mura_ray.data.collection import Collection, Findings, deal, fail, in_order, read_rows
from mura_ray.domain import ABNORMAL, NORMAL, Box, Study, View

TABLE = "dataset.csv"
BOXES = "Annotations/COCO JSON/COCO_fracture_masks.json"
IMAGES = "images"
FOLDERS = {"0": "Non_fractured", "1": "Fractured"}
"""Below `IMAGES`, by the table's column fractured."""

BODY_PARTS = ("hand", "leg", "hip", "shoulder")
STUDY_TYPES_KEPT = ("hand", "shoulder")
COLUMNS = ("image_id", *BODY_PARTS, "fractured")

BLOCK = 50
"""Image numbers in a block. FracAtlas names no patients; images of one patient have neighbouring numbers."""

SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}

_IMAGE = re.compile(r"IMG([0-9]+)\.jpg")


class _Image(BaseModel):
    id: int
    file_name: str


class _Annotation(BaseModel):
    image_id: int
    bbox: tuple[float, float, float, float]


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]


def read_collection(root: str | Path) -> Collection:
    """Reads the FracAtlas folder with its fracture boxes.

    Every image is a study of one view; patients are not known, so each has one of its own. The splits are 70, 15 and
    15 % of the studies, dealt in blocks of `BLOCK` neighbouring image numbers.

    Args:
        root: URI of the folder with dataset.csv, images/ and Annotations/.

    Raises:
        CollectionError: table, images and annotations disagree; all cases.
        ValueError: there are too few images for three splits.
    """
    folder = store.absolute(str(root))
    if not store.is_file(store.join(folder, TABLE)):
        fail(folder, f"no {TABLE} is in it", "pass the folder with dataset.csv, images/ and Annotations/")
    findings = Findings()
    rows = _read_table(folder, findings)
    files = _list_images(folder, rows, findings)
    boxes = _read_boxes(folder, rows, findings)
    studies = _studies(rows, files, boxes, findings)
    findings.raise_problems()
    splits = deal(studies, _block, SHARES, seed=0)
    return Collection(
        "FracAtlas", folder, splits, f"blocks of {BLOCK} image numbers", findings.notes, patients_known=False
    )


def _block(study: Study) -> str:
    return str(int(study.patient_id.removeprefix("IMG")) // BLOCK)


def _read_table(folder: str, findings: Findings) -> dict[str, dict[str, str]]:
    """The rows of the table by image name."""
    rows: dict[str, dict[str, str]] = {}
    for line, row in read_rows(store.join(folder, TABLE), COLUMNS, findings):
        name, where = row["image_id"], f"{TABLE}:{line}"
        wrong = [column for column in COLUMNS[1:] if row[column] not in ("0", "1")]
        if not _IMAGE.fullmatch(name):
            findings.problem(where, f"image_id {name!r}", "must have the form IMG0000019.jpg")
        if wrong:
            findings.problem(where, f"{wrong[0]} is {row[wrong[0]]!r}", "must be 0 or 1")
        if name in rows:
            findings.problem(where, f"{name} has a row already", "remove one of the two")
        rows.setdefault(name, row)
    return rows


def _list_images(folder: str, rows: Mapping[str, Mapping[str, str]], findings: Findings) -> dict[str, str]:
    """Path by image name; disagreements with the table are reported."""
    files: dict[str, str] = {}
    tree = store.tree(store.join(folder, IMAGES))
    for path in [f"{part}/{entry.name}" for part in FOLDERS.values() for entry in tree.entries(part)]:
        shown, name = f"{IMAGES}/{path}", store.name(path)
        if not _IMAGE.fullmatch(name):
            findings.note(shown, "no FracAtlas image by its name, skipped", "nothing to do")
        elif name not in rows:
            findings.problem(shown, f"not in {TABLE}", "add its row or remove the file")
        elif name in files:
            findings.problem(shown, f"is also there as {files[name]}", "keep the right one of the two")
        else:
            files[name] = shown
    for name, row in rows.items():
        expected = FOLDERS.get(row["fractured"])
        if name not in files:
            findings.problem(
                name, f"in {TABLE}, but in neither folder of images/", "restore the file or remove its row"
            )
        elif expected and files[name] != f"{IMAGES}/{expected}/{name}":
            what = f"in the wrong folder: fractured is {row['fractured']} in {TABLE}"
            findings.problem(files[name], what, f"correct the row or move the file to {IMAGES}/{expected}/")
    return files


def _read_boxes(folder: str, rows: Mapping[str, Mapping[str, str]], findings: Findings) -> dict[str, tuple[Box, ...]]:
    """Fracture boxes by image name."""
    try:
        content = store.read_bytes(store.join(folder, BOXES))
    except ValueError:
        findings.problem(BOXES, "there is no such file", "restore it from the original archive")
        return {}
    try:
        coco = _Coco.model_validate_json(content)
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(map(str, detail["loc"])) or "the file"
            findings.problem(BOXES, f"{where}: {detail['msg']}", "restore it from the original archive")
        return {}
    names = {image.id: image.file_name for image in coco.images}
    boxes: dict[str, list[Box]] = defaultdict(list)
    for position, annotation in enumerate(coco.annotations):
        where, name = f"annotation {position}", names.get(annotation.image_id)
        if name is None or name not in rows:
            what = f"{where} is for image {name or annotation.image_id}, which is not there"
            findings.problem(BOXES, what, f"restore the image and its row in {TABLE}, or remove the annotation")
        elif rows[name]["fractured"] == "0":
            what = f"{where} marks a fracture in {name}, whose row in {TABLE} has none"
            findings.problem(BOXES, what, "correct the row or remove the annotation")
        elif annotation.bbox[2] <= 0 or annotation.bbox[3] <= 0:
            findings.problem(BOXES, f"{where} is an empty box", "correct or remove it")
        else:
            boxes[name].append(Box(*annotation.bbox, finding="fracture"))
    return {name: tuple(found) for name, found in boxes.items()}


def _studies(
    rows: Mapping[str, Mapping[str, str]],
    files: Mapping[str, str],
    boxes: Mapping[str, tuple[Box, ...]],
    findings: Findings,
) -> list[Study]:
    studies = []
    for name in sorted(rows.keys() & files.keys()):
        parts = [part for part in BODY_PARTS if rows[name][part] == "1"]
        if len(parts) != 1 or parts[0] not in STUDY_TYPES_KEPT:
            what = f"left out: marked as {' and '.join(parts) or 'no body part'}"
            findings.note(files[name], what, f"kept are images of one of {', '.join(STUDY_TYPES_KEPT)}")
            continue
        is_fractured = rows[name]["fractured"] == "1"
        if is_fractured and name not in boxes:
            findings.note(files[name], "fractured, but without a box", "it counts for training, not for localisation")
        label = ABNORMAL if is_fractured else NORMAL
        view = View(files[name], boxes.get(name, ()))
        studies.append(Study(parts[0], name.removesuffix(".jpg"), "study1", label, (view,)))
    return in_order(studies)
