import pickle
from pathlib import Path

import pytest

from mura_ray.data.collection import CollectionError, Problem, deal, split_patients, summary
from mura_ray.data.mura import read_collection, read_mura
from mura_ray.domain import Study, View, class_weights


class Tree:
    """A MURA-v1.1 tree that is written as the test says; rows follow the folders unless the test adds its own.

    Its images are empty files: a reader that opened them would fail.
    """

    def __init__(self, root: Path, folder: str = "MURA-v1.1") -> None:
        self.top = root / folder
        self.labels: dict[str, list[str]] = {"train": [], "valid": []}
        self.images: dict[str, list[str]] = {"train": [], "valid": []}
        for split in self.labels:
            (self.top / split).mkdir(parents=True)

    def study(self, path: str, images: int | tuple[str, ...] = 1, *, listed: bool = True, row: bool = True) -> Path:
        split, label = path.split("/")[0], int(path.endswith("_positive"))
        folder = self.top / path
        folder.mkdir(parents=True)
        names = images if isinstance(images, tuple) else tuple(f"image{i + 1}.png" for i in range(images))
        for name in names:
            (folder / name).touch()
        if row:
            self.labels[split].append(f"MURA-v1.1/{path}/,{label}")
        if listed:
            self.images[split] += [f"MURA-v1.1/{path}/{name}" for name in names]
        return folder

    def write(self, end: str = "\n") -> Path:
        for split in self.labels:
            for name, rows in (("labeled_studies", self.labels), ("image_paths", self.images)):
                text = "".join(row + end for row in rows[split])
                (self.top / f"{split}_{name}.csv").write_bytes(text.encode())
        return self.top.parent


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def sound(tree: Tree) -> Tree:
    """Three types. Training images, normal and abnormal: elbow 3 and 1, hand 2 and 6, wrist 1 and 0."""
    tree.study("train/XR_ELBOW/patient00001/study1_negative", 3)
    tree.study("train/XR_ELBOW/patient00002/study1_positive", 1)
    tree.study("train/XR_HAND/patient00001/study1_negative", 2)
    tree.study("train/XR_HAND/patient00003/study1_positive", 5)
    tree.study("train/XR_HAND/patient00003/study2_positive", 1)
    tree.study("train/XR_WRIST/patient00004/study1_negative", 1)
    tree.study("valid/XR_ELBOW/patient00010/study1_negative", 1)
    tree.study("valid/XR_HAND/patient00011/study1_positive", 2)
    return tree


def problems(root: Path, **options: str) -> list[tuple[str, str, str]]:
    with pytest.raises(CollectionError) as caught:
        read_collection(root, **options)  # pyright: ignore[reportArgumentType]
    assert str(caught.value).splitlines() == [f"{p.path}: {p.what}; {p.remedy}" for p in caught.value.problems]
    return [(problem.path, problem.what, problem.remedy) for problem in caught.value.problems]


def test_weights_of_a_sound_tree_count_images(tree: Tree):
    weights = class_weights(read_mura(sound(tree).write(), "train"))
    # w_T0 = |A| / (|A| + |N|), w_T1 = |N| / (|A| + |N|), by hand. By studies the hand's would be 2/3 and 1/3.
    assert weights == {"elbow": (1 / 4, 3 / 4), "hand": (6 / 8, 2 / 8), "wrist": (0 / 1, 1 / 1)}


@pytest.mark.parametrize("below", ["", "MURA-v1.1"])
def test_root_is_the_tree_or_the_folder_above(tree: Tree, below: str):
    root = sound(tree).write()
    collection = read_collection(root / below, splits="official")
    assert Path(collection.root) == root
    assert collection.splits["train"] == read_mura(root / below, "train")
    views = [view.path for studies in collection.splits.values() for study in studies for view in study.views]
    assert len(views) == 16
    assert all((root / path).is_file() for path in views)


def test_order_and_identity(tree: Tree):
    tree.study("train/XR_WRIST/patient00002/study1_negative")
    tree.study("train/XR_WRIST/patient00001/study10_negative")
    tree.study("train/XR_WRIST/patient00001/study2_positive", ("image10.png", "image2.png", "image7.png"))
    tree.study("train/XR_ELBOW/patient00002/study1_positive")
    studies = read_mura(tree.write(), "train")
    assert [study.key for study in studies] == [
        "elbow/patient00002/study1",
        "wrist/patient00001/study2",
        "wrist/patient00001/study10",
        "wrist/patient00002/study1",
    ]
    folder = "MURA-v1.1/train/XR_WRIST/patient00001/study2_positive"
    assert studies[1] == Study(
        "wrist", "patient00001", "study2", 1, tuple(View(f"{folder}/image{i}.png") for i in (2, 7, 10))
    )


def test_harmless_faults_of_real_copies_are_read_right(tmp_path: Path):
    clean = read_collection(sound(Tree(tmp_path / "clean")).write(), splits="official")

    tree = sound(Tree(tmp_path / "worn"))
    tree.labels["train"][0] = tree.labels["train"][0].replace("/,", "//,")
    tree.labels["train"][1] = tree.labels["train"][1].replace("/,", ",")
    tree.labels["train"].append(tree.labels["train"][2])
    tree.images["train"] += [tree.images["train"][0], "", "  "]
    elbow = "train/XR_ELBOW/patient00001/study1_negative"
    tree.images["train"].append(f"MURA-v1.1/{elbow}/._image1.png")
    for name in ("._image1.png", "._image2.png", "Thumbs.db"):
        (tree.top / elbow / name).touch()
    (tree.top / "train/.DS_Store").touch()
    (tree.top / "train/XR_HAND/._patient00001").mkdir()
    root = tree.write(end="\r\n")
    csv = tree.top / "train_image_paths.csv"
    csv.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes())

    worn = read_collection(root, splits="official")
    assert worn.splits == clean.splits
    assert clean.notes == ()
    assert {(note.what, note.path.removeprefix("MURA-v1.1/")) for note in worn.notes} == {
        ("hidden file, skipped (4 in all, this is the first)", "train/.DS_Store"),
        ("no part of MURA, skipped (1 in all, this is the first)", f"{elbow}/Thumbs.db"),
        ("row names a hidden file, skipped (1 in all, this is the first)", "train_image_paths.csv:17"),
        ("row is there twice, read once (2 in all, this is the first)", "train_labeled_studies.csv:7"),
    }


def test_every_fault_is_reported_in_one_run(tree: Tree):
    sound(tree)
    a = "train/XR_ELBOW"
    tree.study(f"{a}/patient00020/study1_negative", 0)
    tree.labels["train"].append(f"MURA-v1.1/{a}/patient00021/study1_negative/,0")  # line 8: no such folder
    tree.images["train"].append(f"MURA-v1.1/{a}/patient00021/study1_negative/image1.png")
    tree.study(f"{a}/patient00022/study1_negative", 2, row=False, listed=False)
    tree.study(f"{a}/patient00023/study1_negative", row=False)
    tree.study(f"{a}/patient00024/study1_negative", row=False)
    tree.labels["train"].append(f"MURA-v1.1/{a}/patient00024/study1_negative/,1")  # line 9: contradicts
    tree.study(f"{a}/patient00025/study1_negative", row=False)
    tree.labels["train"].append(f"MURA-v1.1/{a}/patient00025/study1_negative/,2")  # line 10: no label
    tree.study(f"{a}/patient00026/study1_negative")
    tree.images["train"].append(f"MURA-v1.1/{a}/patient00026/study1_negative/image9.png")  # line 19: no such file
    tree.study(f"{a}/patient00027/study1_negative", 2, listed=False)
    tree.images["train"].append(f"MURA-v1.1/{a}/patient00027/study1_negative/image1.png")
    tree.study(f"{a}/patient00028/study1_negative")
    tree.study(f"{a}/patient00028/study1_positive")
    tree.study("train/XR_FOOT/patient00029/study1_negative")
    tree.study("train/XR_WRIST/patient00010/study1_negative")
    (tree.top / a / "patient00030/study1_maybe").mkdir(parents=True)
    tree.labels["train"] += ["garbage", "MURA-v1.0/train/XR_HAND/patient00001/study1_negative/,0"]  # lines 17, 18
    tree.images["train"].append("MURA-v1.1/valid/XR_HAND/patient00011/study1_positive/image1.png")
    tree.images["valid"].append("MURA-v1.1/valid/XR_HAND/patient00031/study1_positive/image1.png")
    root = tree.write()
    (tree.top / "valid_labeled_studies.csv").rename(tree.top / "valid.csv")

    num_image_rows = len(tree.images["train"])
    found = problems(root)
    archive = "restore it from the original archive"
    form = "correct or remove it; the form is MURA-v1.1"
    v = "MURA-v1.1"
    expected = {
        f"{v}/{a}/patient00020/study1_negative": ("study folder without images", "restore them, or remove the folder"),
        f"{v}/{a}/patient00021/study1_negative": ("named in train_labeled_studies.csv:8, but", f"{archive}, or remove"),
        f"{v}/{a}/patient00022/study1_negative": ("not in train_labeled_studies.csv", "add its rows or remove the"),
        f"{v}/{a}/patient00023/study1_negative": ("not in train_labeled_studies.csv", "add its rows or remove the"),
        f"{v}/{a}/patient00024/study1_negative": (
            "label 1 in train_labeled_studies.csv:9 contradicts the folder's _negative",
            "correct the row or rename the folder",
        ),
        f"{v}/{a}/patient00025/study1_negative": ("label '2' in train_labeled_studies.csv:10", "write 0 (negative)"),
        f"{v}/{a}/patient00026/study1_negative/image9.png": (
            "named in train_image_paths.csv:19, but there is no such file",
            f"{archive}, or remove its row",
        ),
        f"{v}/{a}/patient00027/study1_negative/image2.png": ("not in train_image_paths.csv", "add its row or remove"),
        f"{v}/{a}/patient00028/study1_positive": ("is also there as _negative", "keep the right one of the two"),
        f"{v}/train/XR_FOOT": ("unknown study type 'XR_FOOT'", "remove the folder and its rows; known are XR_ELBOW"),
        f"{v}/valid/XR_ELBOW/patient00010": (
            "the patient is also in train (MURA-v1.1/train/XR_WRIST/patient00010)",
            "remove the patient from one of the two splits",
        ),
        f"{v}/{a}/patient00030/study1_maybe": ("no folder of a study by its name", "rename or remove it"),
        f"{v}/train_labeled_studies.csv:17": ("malformed row 'garbage'", form),
        f"{v}/train_labeled_studies.csv:18": ("1 rows name MURA-v1.0, not MURA-v1.1", "take the file of MURA-v1.1"),
        f"{v}/train_image_paths.csv:{num_image_rows}": ("malformed row 'MURA-v1.1/valid/XR_HAND", form),
        f"{v}/valid/XR_HAND/patient00031/study1_positive": ("named in valid_image_paths.csv:4, but", archive),
        f"{v}/valid.csv": ("file of MURA-v1.0 in the place of valid_labeled_studies.csv", "get MURA-v1.1"),
    }
    for path, what, remedy in found:
        assert what.startswith(expected[path][0]), path
        assert remedy.startswith(expected[path][1]), path
    assert sorted(path for path, _, _ in found) == sorted(expected)


def test_version_1_0_is_named(tmp_path: Path):
    tree = Tree(tmp_path, "MURA-v1.0")
    tree.study("train/XR_HAND/patient00001/study1_negative")
    for split in ("train", "valid"):
        (tree.top / f"{split}.csv").write_text("")
    found = problems(tmp_path)
    assert [path for path, _, _ in found] == ["MURA-v1.0", *["MURA-v1.0/train.csv"] * 2, *["MURA-v1.0/valid.csv"] * 2]
    assert all("MURA-v1.1" in remedy for _, _, remedy in found)


def test_missing_parts_are_told_once(tree: Tree):
    root = sound(tree).write()
    (tree.top / "train_labeled_studies.csv").unlink()
    (tree.top / "train_image_paths.csv").unlink()
    (tree.top / "valid").rename(tree.top / "elsewhere")
    assert [path for path, _, _ in problems(root)] == [
        "MURA-v1.1/train_labeled_studies.csv",
        "MURA-v1.1/train_image_paths.csv",
        "MURA-v1.1/valid",
    ]


@pytest.mark.parametrize("make", [False, True])
def test_no_tree(tmp_path: Path, make: bool):
    if make:
        (tmp_path / "x").mkdir()
    [(path, _, remedy)] = problems(tmp_path / "x")
    assert path == str(tmp_path / "x")
    assert "MURA-v1.1" in remedy


def test_a_broken_link_is_a_missing_image(tree: Tree):
    folder = sound(tree).top / "train/XR_HAND/patient00003/study1_positive"
    (folder / "image3.png").unlink()
    (folder / "image3.png").symlink_to(folder / "gone.png")
    [(path, what, _)] = problems(tree.write())
    assert path.endswith("study1_positive/image3.png")
    assert "no such file" in what


def test_one_split_can_be_read_alone(tmp_path: Path):
    tree = Tree(tmp_path)
    tree.study("train/XR_HAND/patient00001/study1_negative", 2)
    root = tree.write()
    for path in (tree.top / "valid", *tree.top.glob("valid_*.csv")):
        path.rmdir() if path.is_dir() else path.unlink()
    assert len(read_mura(root, "train")) == 1
    with pytest.raises(CollectionError, match=r"valid_labeled_studies\.csv: there is no such file"):
        read_mura(root, "valid")


def test_arguments(tree: Tree):
    root = sound(tree).write()
    with pytest.raises(ValueError, match="no public split 'test'"):
        read_mura(root, "test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="cannot split by 'random'"):
        read_collection(root, splits="random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        read_collection(root, valid_fraction=1.0)


def test_patient_splits_keep_the_official_validation_set_for_reporting(tree: Tree):
    root = sound(tree).write()
    official = read_collection(root, splits="official")
    ours = read_collection(root, valid_fraction=0.3)
    assert (official.split_policy, ours.split_policy) == ("official", "patient")
    assert list(official.splits) == ["train", "valid"]
    assert ours.splits["test"] == official.splits["valid"]
    both = ours.splits["train"] + ours.splits["valid"]
    assert sorted(study.key for study in both) == sorted(study.key for study in official.splits["train"])
    assert not {s.patient_id for s in ours.splits["train"]} & {s.patient_id for s in ours.splits["valid"]}


def made_up(num_patients: int) -> list[Study]:
    """Every third patient has a second study of another type."""
    studies = []
    for i in range(num_patients):
        patient, label = f"patient{i:05d}", int(i % 5 == 0)
        studies.append(Study(("elbow", "hand", "wrist")[i % 3], patient, "study1", label, (View("a.png"),)))
        if i % 3 == 0:
            studies.append(Study("shoulder", patient, "study1", 1 - label, (View("b.png"),)))
    return studies


def test_split_patients_is_disjoint_stratified_and_deterministic():
    studies = made_up(600)
    rest, part = split_patients(studies, 0.1, seed=3)
    assert (rest, part) == split_patients(studies, 0.1, seed=3)
    assert {s.patient_id for s in part} == {s.patient_id for s in split_patients(studies[::-1], 0.1, seed=3)[1]}
    assert part != split_patients(studies, 0.1, seed=4)[1]
    assert not {s.patient_id for s in rest} & {s.patient_id for s in part}
    assert len(rest) + len(part) == len(studies)
    for study_type in ("elbow", "hand", "wrist", "shoulder"):
        for label in (0, 1):
            here, there = (sum((s.study_type, s.label) == (study_type, label) for s in side) for side in (part, rest))
            assert here == pytest.approx(0.1 * (here + there), abs=1.5), (study_type, label)


def test_rare_classes_reach_every_split():
    studies = made_up(90) + [Study("humerus", f"rare{i}", "study1", 1, (View("c.png"),)) for i in range(3)]
    parts = deal(studies, lambda study: study.patient_id, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=0)
    assert [sum(s.study_type == "humerus" for s in part) for part in parts.values()] == [1, 1, 1]


def test_every_split_gets_a_patient_where_each_class_has_only_one():
    studies = [Study(name, f"p{name}", "study1", 0, (View("a.png"),)) for name in ("elbow", "hand", "wrist")]
    parts = deal(studies, lambda study: study.patient_id, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1, 1]


def test_too_few_patients_to_split():
    with pytest.raises(ValueError, match="cannot fill the splits rest, part from 1 patients"):
        split_patients(made_up(1), 0.1, seed=0)


def test_summary_has_the_numbers_of_table_1(tree: Tree):
    lines = [line.split() for line in summary(read_collection(sound(tree).write(), splits="official")).splitlines()]
    for line in (
        ["train", "valid", "total"],
        ["elbow", "1", "1", "1", "0", "3"],
        ["hand", "1", "2", "0", "1", "4"],
        ["wrist", "1", "0", "0", "0", "1"],
        ["total", "3", "3", "1", "1", "8"],
        ["studies", "6", "2", "8"],
        ["images", "13", "3", "16"],
        ["patients", "4", "2", "6"],
    ):
        assert line in lines


def test_errors_survive_another_process():
    error = CollectionError([Problem("a", "is wrong", "mend it"), Problem("b", "too", "likewise")])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert again.problems == error.problems
    assert str(again) == "a: is wrong; mend it\nb: too; likewise"
