"""`python -m mura_ray.predict`: a folder of studies to tables and overlays, without a server."""

import argparse
import re
import shutil
import sys
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mura_ray import cli, store
from mura_ray.dicom import SIGNATURE_BYTES, Radiograph, is_dicom, read_radiograph
from mura_ray.domain import STUDY_TYPES, StudyPrediction
from mura_ray.model.ensemble import Ensemble, EnsembleDescription
from mura_ray.render.overlay import encode_png, overlay
from mura_ray.scratch import scratch_folder

EPILOG = """example:
  python -m mura_ray.predict --ensemble runs/first/ensemble --source radiographs --out predictions

Every folder that directly holds DICOM, PNG or JPEG files is one study, and they are its views; so put each study into a
folder of its own. Of DICOM files StudyInstanceUID tells which are one study, in one folder or in several. A study's
type is read from a part of its path like XR_WRIST, else from BodyPartExamined. Hidden and other files are skipped.

  predictions/studies.csv             a row per study: probability (and calibrated), decision, each member's probability
  predictions/views.csv               a row per view
  predictions/overlays/STUDY/VIEW.png the class activation map over each view, in the view's own pixels
  predictions/damaged.csv             with --allow-damaged: the views left out, and why

Research software, not a medical device."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
LARGE_STUDY = 20
"""Views. MURA's largest study has 11; a folder of more is more likely a folder of many studies."""


def main(argv: list[str] | None = None) -> int:
    """Parses, predicts, reports."""
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.predict",
        description="Predicts every study in a folder with an ensemble, and paints where it saw abnormality.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ensemble", required=True, metavar="URI", help="an ensemble's folder, or its ensemble.json")
    parser.add_argument("--source", required=True, metavar="URI", help="folder of studies, or s3://...")
    parser.add_argument("--out", required=True, metavar="URI", help="folder to write; it must not exist yet")
    parser.add_argument("--no-overlays", action="store_true", help="tables only")
    parser.add_argument("--allow-damaged", action="store_true", help="leave damaged images out and list them")
    return cli.run(lambda: _predict(parser.parse_args(argv)))


def _predict(arguments: argparse.Namespace) -> None:
    source, out = store.absolute(arguments.source), store.absolute(arguments.out)
    if store.exists(out):
        raise ValueError(f"--out {out} exists already: name a new folder, or remove it")
    if f"{out}/".startswith(f"{source}/"):
        raise ValueError(
            f"--out {out} lies in --source {source}, which would have its overlays as studies: name another"
        )
    studies = find_studies(source)
    ensemble = Ensemble.load(arguments.ensemble, "cuda" if torch.cuda.is_available() else "cpu")
    headers, damaged = _check_views(studies, source)
    if damaged and not arguments.allow_damaged:
        listed = "\n".join(f"  {view}: {reason}" for view, reason in damaged.items())
        raise ValueError(f"{len(damaged)} damaged images; --allow-damaged leaves them out\n{listed}")
    sound = _split_by_uid(studies, headers)
    _note(source, sound, headers)
    if not sound:
        raise ValueError(f"no sound image in {source}")
    with _new_folder(out, last="studies.csv") as partial:
        _predict_studies(ensemble, sound, headers, source, partial, overlays=not arguments.no_overlays)
        if damaged:
            _write_table(
                partial / "damaged.csv", [{"view": view.as_posix(), "reason": damaged[view]} for view in damaged]
            )
    num_views = sum(map(len, sound.values()))
    table = store.join(out, "studies.csv")
    print(f"{len(sound)} studies, {num_views} views, {len(damaged)} damaged images left out: {table}")


def find_studies(source: str) -> dict[PurePosixPath, list[PurePosixPath]]:
    """The studies below a folder: each folder with its image files, all relative to `source` and sorted.

    Files without an ending, or with one of digits, may be DICOM: archives name them by number. What is skipped is noted
    on stderr.

    Raises:
        ValueError: no such folder, or no images in it.
    """
    if not store.is_folder(source):
        raise ValueError(f"--source {source} is no folder")
    studies: dict[PurePosixPath, list[PurePosixPath]] = {}
    skipped: Counter[str] = Counter()
    files = [PurePosixPath(path) for path in store.list_files(source)]
    for file in sorted(files, key=lambda file: (file.parent.parts, file.name)):
        if any(part.startswith(".") for part in file.parent.parts):
            continue
        if file.name.startswith("."):
            skipped["hidden"] += 1
        elif not (file.name.lower().endswith(IMAGE_SUFFIXES) or _is_unnamed_dicom(source, file)):
            skipped[file.suffix or file.name] += 1
        else:
            studies.setdefault(file.parent, []).append(file)
    if skipped:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        print(f"note: skipped files that are not DICOM, PNG or JPEG: {told}", file=sys.stderr)
    if not studies:
        raise ValueError(f"--source {source} holds no DICOM, PNG or JPEG files")
    return studies


def _is_unnamed_dicom(source: str, file: PurePosixPath) -> bool:
    if file.name == "DICOMDIR" or not re.fullmatch(r"|\.[0-9]+", file.suffix):
        return False
    try:
        return is_dicom(store.read_start(store.join(source, str(file)), SIGNATURE_BYTES))
    except store.StorageError:
        raise
    except (ValueError, OSError):  # a broken link
        return False


def study_type_of(path: PurePosixPath) -> str:
    """The study type that a part of a path like XR_WRIST names, the last one if several do; "" without one."""
    for part in reversed(path.parts):
        match = re.fullmatch(r"xr_(\w+)", part.lower())
        if match and match[1] in STUDY_TYPES:
            return match[1]
    return ""


def overlay_names(views: Sequence[PurePosixPath]) -> list[str]:
    """Paths of a study's overlays: each view's with the suffix .png, or after its own where that would clash."""
    stems = [str(view.with_name(view.stem)) for view in views]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = list(map(str, views))
    return [f"{stem}.png" for stem in stems]


def _check_views(
    studies: Mapping[PurePosixPath, Sequence[PurePosixPath]], source: str
) -> tuple[dict[PurePosixPath, Radiograph], dict[PurePosixPath, str]]:
    """Decodes every image before the long work begins, so that all the damage is known at once.

    Returns:
        What the sound ones say of themselves, and why the others cannot be read.
    """
    headers, damaged = {}, {}
    with _progress() as progress:
        for view in progress.track(
            [view for views in studies.values() for view in views], description="checking images"
        ):
            try:
                found = _read(source, view)
            except store.StorageError:  # says nothing of the image
                raise
            except (ValueError, OSError) as error:
                damaged[view] = str(error)
            else:
                headers[view] = replace(found, gray=found.gray[:0, :0].copy())  # which keeps no pixels in memory
    return headers, damaged


def _split_by_uid(
    studies: Mapping[PurePosixPath, Sequence[PurePosixPath]], headers: Mapping[PurePosixPath, Radiograph]
) -> dict[PurePosixPath, list[PurePosixPath]]:
    """The sound views by study. Where a DICOM file names its study, that counts, and not the folder.

    A folder with several such studies is split, and one that lies in several folders, a series each, is joined:
    FOLDER/StudyInstanceUID, FOLDER being that which holds all of them.
    """
    folders: dict[str, set[PurePosixPath]] = defaultdict(set)
    uids: dict[PurePosixPath, set[str]] = defaultdict(set)
    for folder, views in studies.items():
        for view in views:
            if view in headers and (uid := headers[view].study_uid):
                folders[uid].add(folder)
                uids[folder].add(uid)
    split: dict[PurePosixPath, list[PurePosixPath]] = {}
    for folder, views in studies.items():
        for view in (view for view in views if view in headers):
            uid = headers[view].study_uid
            is_apart = uid and (len(uids[folder]) > 1 or len(folders[uid]) > 1)
            split.setdefault(_common(folders[uid]) / uid if uid and is_apart else folder, []).append(view)
    for uid, found in folders.items():
        if len(found) > 1:
            print(f"note: study {uid} lies in {len(found)} folders, such as {min(found)}, and is one", file=sys.stderr)
    return split


def _common(folders: Iterable[PurePosixPath]) -> PurePosixPath:
    """The folder that holds all of some."""
    first, *others = folders
    return next(one for one in (first, *first.parents) if all(folder.is_relative_to(one) for folder in others))


def view_names(views: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """What a study's views are called in tables: their file names, below their series' folder where it has several."""
    common = _common({view.parent for view in views})
    return [view.relative_to(common) for view in views]


def _note(
    source: str, studies: Mapping[PurePosixPath, Sequence[PurePosixPath]], headers: Mapping[PurePosixPath, Radiograph]
) -> None:
    """Says on stderr what looks wrong."""
    for study, views in studies.items():
        if len(views) > LARGE_STUDY:
            print(
                f"note: {PurePosixPath(source, study)} has {len(views)} images and is taken for one study",
                file=sys.stderr,
            )
    counts = Counter(warning for header in headers.values() for warning in header.warnings)
    for warning, count in sorted(counts.items()):
        first = next(view for view, header in headers.items() if warning in header.warnings)
        print(f"note: {first}: {warning} ({count} in all, this is the first)", file=sys.stderr)


def _predict_studies(
    ensemble: Ensemble,
    studies: Mapping[PurePosixPath, Sequence[PurePosixPath]],
    headers: Mapping[PurePosixPath, Radiograph],
    source: str,
    out: Path,
    *,
    overlays: bool,
) -> None:
    study_rows, view_rows = [], []
    with _progress() as progress:
        for study, views in progress.track(list(studies.items()), description="predicting studies"):
            grays = [_read(source, view).gray for view in views]
            prediction = ensemble.predict_study(grays)
            names = view_names(views)
            paths = [PurePosixPath("overlays", study, name) for name in overlay_names(names)] if overlays else []
            for path, gray, view in zip(paths, grays, prediction.views, strict=False):
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                (out / path).write_bytes(encode_png(overlay(gray, view.cam)))
            said = {study_type for view in views if (study_type := headers[view].study_type)}
            study_type = study_type_of(PurePosixPath(source, study)) or (said.pop() if len(said) == 1 else "")
            study_rows.append(_study_row(study, study_type, prediction, ensemble.description))
            view_rows += _view_rows(study, names, paths, prediction)
    _write_table(out / "studies.csv", study_rows)
    _write_table(out / "views.csv", view_rows)


def _study_row(
    study: PurePosixPath, study_type: str, prediction: StudyPrediction, ensemble: EnsembleDescription
) -> dict[str, Any]:
    calibrated = ensemble.calibrated_probability(prediction.probability, study_type or None)
    return {
        "study": study.as_posix(),
        "study_type": study_type,
        "num_views": len(prediction.views),
        "probability": prediction.probability,
        **({} if calibrated is None else {"calibrated_probability": calibrated}),
        "abnormal": int(prediction.abnormal),
        "threshold": prediction.threshold,
        **{f"member_{place}": member.probability for place, member in enumerate(prediction.members)},
    }


def _view_rows(
    study: PurePosixPath,
    views: Sequence[PurePosixPath],
    overlays: Sequence[PurePosixPath],
    prediction: StudyPrediction,
) -> list[dict[str, Any]]:
    return [
        {
            "study": study.as_posix(),
            "view": path.as_posix(),
            "width": view.width,
            "height": view.height,
            "probability": view.probability,
            "cam_min": float(view.cam.min()),
            "cam_max": float(view.cam.max()),
            "overlay": overlays[place].as_posix() if overlays else "",
        }
        for place, (path, view) in enumerate(zip(views, prediction.views, strict=True))
    ]


def _read(source: str, view: PurePosixPath) -> Radiograph:
    return read_radiograph(store.read_bytes(store.join(source, str(view))))


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_csv(path, index=False, errors="surrogateescape")  # file names need not be UTF-8


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=Console(stderr=True))


@contextmanager
def _new_folder(uri: str, last: str) -> Iterator[Path]:
    """Gives a folder to write to, which becomes `uri` when the block ends well; else nothing is left of it.

    Args:
        uri: of the folder to be. In S3, which cannot rename, the files are written one after the other.
        last: the file that is written last there: with it, all the others are there.
    """
    if store.is_s3(uri):
        with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
            yield Path(folder)
            files = sorted(store.list_files(folder), key=lambda file: file == last)
            try:
                for file in files:
                    store.write_bytes(store.join(uri, file), Path(folder, file).read_bytes())
            except BaseException:
                store.remove_files([store.join(uri, file) for file in files])
                raise
        return
    path = store.resolve(uri)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
