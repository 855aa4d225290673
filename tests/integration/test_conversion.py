"""Conversion of a small tree in the MURA-v1.1 layout, as users run it."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mura_ray import convert
from mura_ray.data import mura, shard_plan
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader
from mura_ray.data.manifest import read_boxes, read_manifest, read_table
from mura_ray.distributed.conversion import run_conversion, sample_id
from mura_ray.distributed.session import ray_session
from mura_ray.domain import STUDY_TYPES
from tests.unit.dicom_files import dicom, phantom

pytestmark = pytest.mark.slow

SIZE = 64
# Studies: split, type, patient, label, sizes of the views (width, height).
STUDIES = [
    ("train", "ELBOW", 1, 0, [(80, 90), (64, 64)]),
    ("train", "ELBOW", 2, 1, [(100, 50)]),
    ("train", "WRIST", 3, 0, [(70, 70)]),
    ("train", "WRIST", 4, 1, [(70, 80), (30, 40), (128, 64)]),
    ("train", "WRIST", 5, 0, [(90, 91)]),
    ("valid", "ELBOW", 6, 1, [(65, 66)]),
    ("valid", "WRIST", 7, 0, [(64, 80), (80, 64)]),
]
OPTIONS = ["--splits", "official", "--image-size", str(SIZE)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One local cluster for all conversions in this process."""
    with ray_session():
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "source")


def write_tree(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        folder = root / "MURA-v1.1"
        folder.mkdir(parents=True, exist_ok=True)
        images, labels = [], []
        for _, study_type, patient, label, sizes in (study for study in STUDIES if study[0] == split):
            sign = ("negative", "positive")[label]
            study = f"MURA-v1.1/{split}/XR_{study_type}/patient{patient:05d}/study1_{sign}"
            labels.append((f"{study}/", label))
            (root / study).mkdir(parents=True)
            for number, (width, height) in enumerate(sizes, start=1):
                images.append((f"{study}/image{number}.png",))
                pixels = rng.integers(0, 256, (height, width), dtype=np.uint8)
                Image.fromarray(pixels).save(root / images[-1][0])
        for name, rows in ((f"{split}_image_paths.csv", images), (f"{split}_labeled_studies.csv", labels)):
            with (folder / name).open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    return root


def run(source: Path, dest: Path, *options: str) -> int:
    return convert.main(["--format", "mura", "--source", str(source), "--dest", str(dest), *OPTIONS, *options])


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damage(source: Path, *parts: str) -> list[str]:
    """Cuts off the images whose paths contain these texts."""
    paths = [path for path in sorted(source.rglob("*.png")) if any(part in str(path) for part in parts)]
    for path in paths:
        os.truncate(path, path.stat().st_size // 2)
    return [str(path.relative_to(source)) for path in paths]


def test_the_data_set_is_what_the_contract_says(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "data"
    assert run(source, dest) == 0
    assert set(digest(dest)) == {
        "manifest.json", "train.csv", "valid.csv", "train/shard-00000.beton", "valid/shard-00000.beton",
    }  # fmt: skip
    manifest = read_manifest(str(dest))
    assert (manifest.name, manifest.split_policy, manifest.image_size) == ("MURA-v1.1", "official", SIZE)
    # elbow: 2 normal images, 1 abnormal; wrist: 2 normal, 3 abnormal
    assert manifest.class_weights == {"elbow": (1 / 3, 2 / 3), "wrist": (3 / 5, 2 / 5)}
    counts = manifest.splits["train"].counts
    assert (counts["wrist"].images, counts["wrist"].studies) == ((2, 3), (2, 1))
    assert manifest.quarantined == ()

    table = read_table(str(dest), "train")
    assert len(table) == 8
    place = int(np.flatnonzero(table["path"].str.endswith("patient00002/study1_positive/image1.png"))[0])
    row = table.iloc[place]
    assert row["sample_id"] == int(hashlib.sha256(row["path"].encode()).hexdigest()[:16], 16) >> 1
    assert (row["study_type"], row["label"], row["width"], row["height"]) == ("elbow", 1, 100, 50)
    with (
        local_split(str(dest), "train", cache=tmp_path / "cache") as path,
        closing(SplitLoader(path, batch_size=3, shuffle=False)) as loader,
    ):
        batches = list(loader.epoch())
    stored = np.concatenate([batch.images[:, 0].numpy() for batch in batches])
    assert np.concatenate([batch.sample_ids.numpy() for batch in batches]).tolist() == table["sample_id"].tolist()
    assert np.concatenate([batch.labels.numpy() for batch in batches]).tolist() == table["label"].tolist()
    types = np.concatenate([batch.type_index.numpy() for batch in batches])
    assert [STUDY_TYPES[index] for index in types] == table["study_type"].tolist()
    assert [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in stored] == table["sha256"].tolist()
    original = cv2.imread(str(source / row["path"]), cv2.IMREAD_GRAYSCALE)
    assert original is not None
    wide = cv2.resize(original, (100, SIZE), interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(wide, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(stored[place], expected)


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "again")
    assert run(source, tmp_path / "one") == run(tmp_path / "again", tmp_path / "two") == 0
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    capsys.readouterr()
    before = (tmp_path / "one/manifest.json").stat().st_mtime_ns
    assert run(source, tmp_path / "one") == 0
    assert "was finished before" in capsys.readouterr().out
    assert (tmp_path / "one/manifest.json").stat().st_mtime_ns == before


def test_damaged_images_end_the_run_or_go_into_quarantine(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "data"
    damaged = damage(
        source, "patient00002", "patient00004/study1_positive/image2", "patient00007/study1_negative/image1"
    )
    assert len(damaged) == 3
    assert run(source, dest) == 1
    error = capsys.readouterr().err
    assert "3 damaged images" in error
    assert all(path in error for path in damaged)
    assert not (dest / "manifest.json").exists()

    assert run(source, dest, "--allow-damaged") == 0
    manifest = read_manifest(str(dest))
    assert [(entry.path, entry.split) for entry in manifest.quarantined] == [
        (path, path.split("/")[1]) for path in damaged
    ]
    assert [entry.lost_study for entry in manifest.quarantined] == ["elbow/patient00002/study1", None, None]
    assert manifest.class_weights == {"elbow": (0, 1), "wrist": (2 / 4, 2 / 4)}
    assert manifest.splits["train"].counts["elbow"].studies == (1, 0)
    assert not set(damaged) & set(read_table(str(dest), "train")["path"])
    assert not (dest / "_work").exists()
    assert run(source, dest, "--allow-damaged") == 0
    assert run(source, dest) == 1


def test_a_repaired_image_is_noticed_and_the_rest_not_done_again(source: Path, tmp_path: Path) -> None:
    damage(source, "patient00007/study1_negative/image1")
    assert run(source, tmp_path / "data") == 1
    train = tmp_path / "data/train/shard-00000.beton"
    before = train.stat().st_ino
    whole = write_tree(tmp_path / "whole")
    (path,) = whole.rglob("patient00007/study1_negative/image1.png")
    (source / path.relative_to(whole)).write_bytes(path.read_bytes())
    assert run(source, tmp_path / "data") == 0
    assert train.stat().st_ino == before
    assert run(whole, tmp_path / "expected") == 0
    assert digest(tmp_path / "data") == digest(tmp_path / "expected")


def test_what_dicom_headers_warn_of_is_told_once_with_its_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,patient,study,study_type,label,split"]
    for number, body_part in enumerate(["WRIST", "HAND", "HAND", "WRIST"]):
        content = dicom(phantom(12), 12, BodyPartExamined=body_part, PixelSpacing=[0.1, 0.1])
        (tmp_path / f"{number}.dcm").write_bytes(content)
        rows.append(f"{number}.dcm,p{number},s1,wrist,{number % 2},train")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    options = ["--format", "table", "--source", str(tmp_path / "table.csv"), "--dest", str(tmp_path / "data")]
    assert convert.main([*options, "--image-size", str(SIZE)]) == 0
    of_all, warned = read_manifest(str(tmp_path / "data")).warned
    assert (of_all.warning.partition(":")[0], of_all.count) == ("no window or VOI LUT in the file", 4)
    assert (warned.split, warned.count, warned.path) == ("train", 2, "1.dcm")
    assert warned.warning == "BodyPartExamined (0018,0015) says hand, not wrist"
    said = "note: train, 1.dcm: BodyPartExamined (0018,0015) says hand, not wrist (2 such)"
    assert said in capsys.readouterr().out


def test_damage_that_leaves_a_type_without_training_images_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source, "train/XR_ELBOW")
    assert run(source, tmp_path / "data", "--allow-damaged") == 1
    assert "split 'valid' has studies of elbow, but train has none" in capsys.readouterr().err
    assert not (tmp_path / "data/manifest.json").exists()


def test_a_folder_is_never_used_for_something_else(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "data"
    assert run(source, dest) == 0
    before = digest(dest)
    assert run(source, dest, "--image-size", "32") == 1
    assert "images of the size 64, not 32" in capsys.readouterr().err
    assert run(source, dest, "--splits", "patient") == 1
    assert "splits" in capsys.readouterr().err
    next(source.rglob("patient00001/*/image1.png")).write_bytes(
        (source / "MURA-v1.1/train_image_paths.csv").read_bytes()
    )
    assert run(source, dest) == 1
    assert "studies and files" in capsys.readouterr().err
    assert digest(dest) == before

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"precious")
    assert run(source, tmp_path / "photos") == 1
    assert "holds something else" in capsys.readouterr().err
    assert run(source, tmp_path / "unfinished") == 1  # an image is damaged by now
    assert run(source, tmp_path / "unfinished", "--image-size", "32") == 1
    assert "unfinished conversion with" in capsys.readouterr().err


def test_a_lost_shard_is_noticed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, tmp_path / "data") == 0
    (tmp_path / "data/valid/shard-00000.beton").unlink()
    assert run(source, tmp_path / "data") == 1
    assert "shard-00000.beton is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "0"], "'0': pass a whole number from 32 to 1024"),
        (["--valid-fraction", "1.5"], "'1.5': pass a number between 0 and 1"),
        (["--seed", "-1"], "'-1': pass a whole number"),
        (["--format", "fracatlas"], "--splits does not apply to --format fracatlas"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_arguments_end_with_2(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(source, tmp_path / "data", *options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_phantom_s_findings_become_boxes(source: Path, tmp_path: Path) -> None:
    path = "MURA-v1.1/train/XR_WRIST/patient00004/study1_positive/image2.png"
    findings = f"path,finding,x,y,width,height\n{path},fracture,3,4,10,20.5\n{path},plate,0,1,2,3\n"
    (source / "MURA-v1.1/findings.csv").write_text(findings)
    command = ["--format", "phantom", "--source", str(source), "--dest", str(tmp_path / "data"), *OPTIONS]
    assert convert.main(command) == 0
    boxes = read_boxes(str(tmp_path / "data"), "train")
    assert boxes is not None
    number = sample_id(path)
    assert boxes.to_numpy().tolist() == [
        [number, "fracture", 3.0, 4.0, 10.0, 20.5],
        [number, "plate", 0.0, 1.0, 2.0, 3.0],
    ]
    assert read_boxes(str(tmp_path / "data"), "valid") is None


KILLED = """
import os, sys
from mura_ray.data import mura, shard_plan
from mura_ray.distributed import conversion

source, dest, blocked = sys.argv[1:]
begin = conversion._begin

def block(plan):
    os.rename(blocked, blocked + ".aside")
    os.mkfifo(blocked)  # whoever reads it waits for ever
    begin(plan)

conversion._begin = block
shard_plan._PAGES_PER_SHARD = 1
collection = mura.read_collection(source, splits="official")
conversion.run_conversion(collection, dest, image_size=1024, allow_damaged=False)
"""


def test_a_killed_conversion_is_continued(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "data"
    blocked = next(source.rglob("patient00005/*/image1.png"))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(dest), str(blocked)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:  # two images a shard: 4 shards and 2, one of which waits
        deadline = time.monotonic() + 300
        while len(list(dest.glob("_work/*/*.json"))) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    Path(f"{blocked}.aside").rename(blocked)
    finished = {path: path.stat().st_ino for path in dest.glob("*/*.beton")}
    assert len(finished) == 5
    (dest / "train/.shard-00003.beton.0123.partial").write_bytes(b"left over")
    with pytest.raises(ValueError, match="no converted data set"):
        read_manifest(str(dest))

    monkeypatch.setattr(shard_plan, "_PAGES_PER_SHARD", 1)
    collection = mura.read_collection(source, splits="official")
    seen = []
    run_conversion(collection, str(dest), image_size=1024, allow_damaged=False, progress=lambda *now: seen.append(now))
    assert seen[-1] == (11, 11)
    assert {path: path.stat().st_ino for path in finished} == finished
    run_conversion(collection, str(tmp_path / "at once"), image_size=1024, allow_damaged=False)
    assert digest(dest) == digest(tmp_path / "at once")
    assert len(digest(dest)) == 6 + 3
