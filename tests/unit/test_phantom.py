import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mura_ray.data import phantom
from mura_ray.data.phantom import plan_studies, read_findings, write_phantom
from mura_ray.data.phantom_anatomy import build_anatomy
from mura_ray.data.phantom_findings import FINDINGS, Scene, Site, plant, plant_counterpart
from mura_ray.data.phantom_view import DIFFICULTIES, render_view
from mura_ray.domain import STUDY_TYPES
from mura_ray.images import read_gray


def _digests(root: Path) -> dict[str, str]:
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in root.rglob("*")
        if file.is_file()
    }


def _lines(root: Path, name: str) -> list[str]:
    return (root / "MURA-v1.1" / name).read_text().splitlines()


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "collection"
    write_phantom(str(root), num_train_studies=28, num_valid_studies=14, difficulty="easy", seed=3)
    return root


def test_tables_list_exactly_the_files(collection: Path):
    listed = _lines(collection, "train_image_paths.csv") + _lines(collection, "valid_image_paths.csv")
    assert sorted(listed) == sorted(name for name in _digests(collection) if name.endswith(".png"))
    assert all((collection / path).is_file() for path in listed)


@pytest.mark.parametrize(("split", "number"), [("train", 28), ("valid", 14)])
def test_label_stands_in_folder_and_table_alike(collection: Path, split: str, number: int):
    rows = list(csv.reader(_lines(collection, f"{split}_labeled_studies.csv")))
    assert len(rows) == number
    for folder, label in rows:
        assert folder.startswith(f"MURA-v1.1/{split}/XR_")
        assert folder.endswith({"0": "_negative/", "1": "_positive/"}[label])
    folders = {path.rpartition("/")[0] + "/" for path in _lines(collection, f"{split}_image_paths.csv")}
    assert folders == {folder for folder, _ in rows}


def test_every_abnormal_view_has_a_box_inside_it_and_no_normal_view_has_one(collection: Path):
    findings = read_findings(str(collection))
    paths = _lines(collection, "train_image_paths.csv") + _lines(collection, "valid_image_paths.csv")
    assert set(findings) == {path for path in paths if "_positive/" in path}
    for path, boxes in findings.items():
        height, width = read_gray((collection / path).read_bytes()).shape
        (box,) = boxes
        assert box.finding in FINDINGS
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= width
        assert box.y + box.height <= height
        assert 0.03 < box.width * box.height / (width * height) < 0.08


def test_pictures_are_8_bit_gray_of_varying_size_up_to_512(collection: Path):

    sizes = set()
    for path in _lines(collection, "train_image_paths.csv"):
        with Image.open(collection / path) as image:
            assert image.mode == "L"
            sizes.add(image.size)
    assert max(max(size) for size in sizes) == 512
    assert len(sizes) > 20
    assert max(max(size) / min(size) for size in sizes) > 2


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_threads(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(phantom.os, "cpu_count", lambda: 1)
    write_phantom(str(tmp_path / "again"), num_train_studies=28, num_valid_studies=14, difficulty="easy", seed=3)
    assert _digests(tmp_path / "again") == _digests(collection)


def test_another_seed_gives_other_pictures(collection: Path, tmp_path: Path):
    counted = []
    root = tmp_path / "other"
    write_phantom(
        str(root), num_train_studies=3, num_valid_studies=2, seed=4, progress=lambda *pair: counted.append(pair)
    )
    other = _digests(root)
    pictures = {digest for name, digest in other.items() if name.endswith(".png")}
    assert pictures.isdisjoint(_digests(collection).values())
    assert counted == [(done, len(pictures)) for done in range(1, len(pictures) + 1)]


def test_refuses_a_folder_with_something_in_it_and_leaves_it_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_phantom(str(tmp_path), num_train_studies=1, num_valid_studies=1)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    def fail(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_phantom(str(tmp_path / "new"), num_train_studies=2, num_valid_studies=1, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_studies": 0}, "num_train_studies is 0"),
        ({"num_valid_studies": 80_000}, "num_valid_studies is 80000"),
        ({"difficulty": "simple"}, "'simple': choose one of easy, medium, hard"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_phantom(str(tmp_path / "new"), **{"num_train_studies": 1, "num_valid_studies": 1, **arguments})


def test_findings_of_another_folder_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no MURA-v1.1/findings.csv"):
        read_findings(str(tmp_path))
    (tmp_path / "MURA-v1.1").mkdir()
    (tmp_path / "MURA-v1.1" / "findings.csv").write_text("path,finding,x,y,width,height\na.png,lesion,1,2,three,4\n")
    with pytest.raises(ValueError, match="line 2"):
        read_findings(str(tmp_path))


def test_plan_has_muras_shares_and_no_patient_in_both_splits():
    plan = plan_studies((1400, 350), seed=0)
    train, valid = plan["train"], plan["valid"]
    assert [len(train), len(valid)] == [1400, 350]
    assert {study.patient_id for study in train}.isdisjoint(study.patient_id for study in valid)
    assert len({study.key for study in train}) == 1400
    for study_type in STUDY_TYPES:
        labels = [study.label for study in train if study.study_type == study_type]
        assert len(labels) == 200
        assert np.mean(labels) == pytest.approx(phantom.ABNORMAL_SHARE[study_type], abs=0.005)
    num_views = np.array([len(study.views) for study in train])
    assert set(num_views) == {1, 2, 3, 4}
    abnormal = np.array([study.label for study in train]) == 1
    assert num_views[abnormal].sum() / num_views.sum() == pytest.approx(0.40, abs=0.03)
    studies_of = np.unique([study.patient_id for study in train], return_counts=True)[1]
    assert set(studies_of) == {1, 2}
    assert np.mean(studies_of == 2) == pytest.approx(0.12, abs=0.04)


def test_command_line_reports_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--out", str(tmp_path / "new"), "--train-studies", "1", "--valid-studies", "1"]
    assert phantom.main(arguments) == 0
    assert phantom.main(arguments) == 1
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("study_type", STUDY_TYPES)
def test_anatomy_fills_its_frame(study_type: str):
    for seed in range(5):
        anatomy = build_anatomy(study_type, np.random.default_rng(seed))
        width, height = anatomy.frame
        inside = [
            bone
            for bone in anatomy.bones
            if bone.hosts_findings and (np.abs(bone.axis) < (width / 2, height / 2)).all(axis=1).any()
        ]
        assert len(inside) >= 2
        assert any(np.abs(tissue.line).max() > 0.2 for tissue in anatomy.tissues)


@pytest.mark.parametrize("kind", FINDINGS)
def test_a_finding_changes_the_scene_only_around_its_box(kind: str):
    for seed in range(10):
        bone = np.zeros((200, 200), dtype=np.float32)
        bone[:, 85:115] = 0.6
        scene = Scene(np.zeros_like(bone), bone, np.zeros_like(bone))
        before = scene.bone + scene.metal
        site = Site(np.array([100.0, 90.0]), np.array([0.0, 1.0]), 15.0)
        plant(kind, scene, site, 50.0, 1.0, np.random.default_rng(seed))
        rows, columns = np.nonzero(np.abs(scene.bone + scene.metal - before) > 0.05)
        assert len(rows) > 100
        assert np.abs(rows - 90).max() <= 40
        assert np.abs(columns - 100).max() <= 40
        inside = (np.abs(rows - 90) <= 26) & (np.abs(columns - 100) <= 26)
        assert inside.mean() > 0.85


@pytest.mark.parametrize("kind", FINDINGS)
@pytest.mark.parametrize("centre", [(-80.0, 90.0), (300.0, 90.0), (100.0, -80.0), (100.0, 300.0)])
def test_what_lies_outside_the_picture_is_not_painted(kind: str, centre: tuple[float, float]):
    layers = [np.full((200, 200), 0.3, dtype=np.float32) for _ in range(3)]
    site = Site(np.array(centre), np.array([0.0, 1.0]), 15.0)
    plant_counterpart(kind, Scene(*layers), site, 50.0, 1.0, 0.2, np.random.default_rng(0))
    assert all((layer == np.float32(0.3)).all() for layer in layers)


def _intensity_statistics(gray: np.ndarray) -> np.ndarray:
    histogram = np.bincount(gray.ravel() >> 3, minlength=32) / gray.size
    percentiles = np.percentile(gray, [1, 5, 10, 25, 50, 75, 90, 95, 99])
    return np.concatenate([[gray.mean(), gray.std()], percentiles, histogram])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_gray_values_alone_do_not_tell_the_label(difficulty: str):
    studies = plan_studies((280, 1), seed=1)["train"]
    labels = np.array([study.label for study in studies])
    views = (
        render_view(study.study_type, study.label, DIFFICULTIES[difficulty], (1, 0, number), 0)[0]
        for number, study in enumerate(studies)
    )
    features = np.stack([_intensity_statistics(view) for view in views])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    patients = [study.patient_id for study in studies]
    scores = cross_val_predict(model, features, labels, groups=patients, cv=GroupKFold(5), method="decision_function")
    assert roc_auc_score(labels, scores) <= 0.62
