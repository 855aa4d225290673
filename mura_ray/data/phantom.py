"""A collection of synthetic radiographs in the MURA-v1.1 layout, for trying everything without anyone's images.

    python -m mura_ray.data.phantom --out DIR --train-studies 250 --valid-studies 120 --difficulty easy

Beside what MURA-v1.1 has, `MURA-v1.1/findings.csv` says where each planted abnormality is. The label shows in shapes
only: exposure, noise and polarity vary far more than a finding changes the gray values, and normal views carry harmless
things of the same size and brightness.
"""

import argparse
import csv
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from mura_ray import store
from mura_ray.data.phantom_view import DIFFICULTIES, render_view
from mura_ray.domain import ABNORMAL, STUDY_TYPES, Box, Study, View

COLLECTION = "MURA-v1.1"
SPLITS = ("train", "valid")
ABNORMAL_SHARE = {
    "elbow": 0.41, "finger": 0.39, "forearm": 0.36, "hand": 0.27, "humerus": 0.47, "shoulder": 0.50, "wrist": 0.41,
}  # fmt: skip
"""Share of abnormal studies by type: that of the images of MURA's training set; 40 % over all."""

NUM_VIEWS_SHARE = (0.15, 0.30, 0.40, 0.15)
"""Shares of studies with 1, 2, 3 and 4 views."""

SECOND_STUDY_SHARE = 0.12
"""Share of studies that belong to the patient of the study before."""

Progress = Callable[[int, int], None]


def write_phantom(
    root: str,
    *,
    num_train_studies: int,
    num_valid_studies: int,
    difficulty: str = "medium",
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Makes a collection. Equal arguments give byte-identical files (with the same NumPy and OpenCV).

    Args:
        root: folder to make; it will hold `MURA-v1.1/`. It appears whole or not at all.
        num_train_studies: studies in `train`, over all types.
        num_valid_studies: studies in `valid`, of other patients.
        difficulty: easy, medium or hard.
        seed: of all that is random.
        progress: called with the number of images written and of all images, after each image.

    Raises:
        ValueError: an argument is out of range, or `root` exists and is not an empty folder.
    """
    _check_arguments(num_train_studies, num_valid_studies, difficulty, seed)
    target = store.resolve(root)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{root!r} already exists and is not an empty folder: remove it or choose another")
    plan = plan_studies((num_train_studies, num_valid_studies), seed)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        boxes = _write_images(partial, plan, difficulty, seed, progress)
        _write_tables(partial / COLLECTION, plan, boxes)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_findings(root: str) -> dict[str, tuple[Box, ...]]:
    """The planted findings: boxes in pixels of the view, by the view's path as in the collection's CSV files.

    Raises:
        ValueError: the folder is no phantom, or its table of findings is damaged.
    """
    uri = store.join(root, COLLECTION, "findings.csv")
    if not store.exists(uri):
        raise ValueError(f"{root!r} has no {COLLECTION}/findings.csv: pass the folder that `write_phantom` made")
    findings: dict[str, tuple[Box, ...]] = {}
    for number, row in enumerate(csv.DictReader(store.read_bytes(uri).decode().splitlines()), start=2):
        try:
            box = Box(*(float(row[key]) for key in ("x", "y", "width", "height")), finding=row["finding"])
            findings[row["path"]] = (*findings.get(row["path"], ()), box)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{uri}, line {number}: {row} is no finding; make the phantom again") from error
    return findings


def plan_studies(num_studies: tuple[int, int], seed: int) -> dict[str, list[Study]]:
    """Who has which study: the studies of `train` and `valid`, without pictures.

    The types take turns, so that each has its share; so do the labels within a type. No patient is in both splits.
    """
    plan, patient = {}, 10
    for split, number in zip(SPLITS, num_studies, strict=True):
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        types = np.concatenate([rng.permutation(STUDY_TYPES) for _ in range(-(-number // len(STUDY_TYPES)))])[:number]
        labels = _draw_labels(types, rng)
        shared = rng.random(number) < SECOND_STUDY_SHARE
        studies: list[Study] = []
        for index, (study_type, label) in enumerate(zip(types.tolist(), labels, strict=True)):
            if index == 0 or not shared[index] or shared[index - 1]:
                patient += 1
            patient_id = f"patient{patient:05d}"
            earlier = sum((study.study_type, study.patient_id) == (study_type, patient_id) for study in studies[-1:])
            study_id = f"study{1 + earlier}"
            sign = "positive" if label == ABNORMAL else "negative"
            folder = f"{COLLECTION}/{split}/XR_{study_type.upper()}/{patient_id}/{study_id}_{sign}"
            num_views = 1 + int(rng.choice(len(NUM_VIEWS_SHARE), p=NUM_VIEWS_SHARE))
            views = tuple(View(f"{folder}/image{1 + view}.png") for view in range(num_views))
            studies.append(Study(study_type, patient_id, study_id, int(label), views))
        plan[split] = studies
    return plan


def _check_arguments(num_train_studies: int, num_valid_studies: int, difficulty: str, seed: int) -> None:
    for name, number in (("num_train_studies", num_train_studies), ("num_valid_studies", num_valid_studies)):
        if not 1 <= number < 80_000:  # patient numbers have five digits
            raise ValueError(f"{name} is {number}: pass 1 to 79999")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty is {difficulty!r}: choose one of {', '.join(DIFFICULTIES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}: pass 0 or more")


def _draw_labels(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    labels = np.zeros(len(types), dtype=np.int64)
    for study_type, share in ABNORMAL_SHARE.items():
        members = rng.permutation(np.flatnonzero(types == study_type))
        labels[members[: int(share * len(members) + rng.random())]] = ABNORMAL
    return labels


def _write_images(
    folder: Path, plan: dict[str, list[Study]], difficulty: str, seed: int, progress: Progress | None
) -> dict[str, Box | None]:
    """Draws and writes all views, on all cores: most of the work runs outside Python's lock."""
    jobs = [
        (study, (seed, split, number), view)
        for split, studies in enumerate(plan.values())
        for number, study in enumerate(studies)
        for view in range(len(study.views))
    ]
    for study, _, _ in jobs:
        (folder / study.views[0].path).parent.mkdir(parents=True, exist_ok=True)

    def write(job: tuple[Study, tuple[int, ...], int]) -> tuple[str, Box | None]:
        study, stream, view = job
        gray, box = render_view(study.study_type, study.label, DIFFICULTIES[difficulty], stream, view)
        png = cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        (folder / study.views[view].path).write_bytes(png.tobytes())
        return study.views[view].path, box

    boxes = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, box in pool.map(write, jobs):
            boxes[path] = box
            if progress is not None:
                progress(len(boxes), len(jobs))
    return boxes


def _write_tables(folder: Path, plan: dict[str, list[Study]], boxes: dict[str, Box | None]) -> None:
    """The four tables of MURA-v1.1, without a header, and the table of findings, with one; all sorted by path."""
    for split, studies in plan.items():
        paths = sorted(view.path for study in studies for view in study.views)
        labels = sorted(f"{study.views[0].path.rpartition('/')[0]}/,{study.label}" for study in studies)
        (folder / f"{split}_image_paths.csv").write_text("".join(f"{path}\n" for path in paths))
        (folder / f"{split}_labeled_studies.csv").write_text("".join(f"{line}\n" for line in labels))
    lines = ["path,finding,x,y,width,height\n"]
    for path, box in sorted(boxes.items()):
        if box is not None:
            lines.append(f"{path},{box.finding},{box.x:g},{box.y:g},{box.width:g},{box.height:g}\n")
    (folder / "findings.csv").write_text("".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Makes a collection from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.data.phantom",
        description="Makes synthetic radiographs in the MURA-v1.1 layout, with the places of their abnormalities.",
        epilog="Example: python -m mura_ray.data.phantom --out phantom --train-studies 250 --difficulty easy",
    )
    parser.add_argument("--out", required=True, help="folder to make; it must not exist, or be empty")
    parser.add_argument("--train-studies", type=int, default=250, help="studies in train (default %(default)s)")
    parser.add_argument("--valid-studies", type=int, default=120, help="studies in valid (default %(default)s)")
    parser.add_argument("--difficulty", choices=tuple(DIFFICULTIES), default="medium", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal files (default %(default)s)")
    options = parser.parse_args(arguments)

    def show(done: int, total: int) -> None:
        if done == total or done % 25 == 0:
            print(f"\r{done} of {total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)

    try:
        write_phantom(
            options.out,
            num_train_studies=options.train_studies,
            num_valid_studies=options.valid_studies,
            difficulty=options.difficulty,
            seed=options.seed,
            progress=show,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}/{COLLECTION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
