import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mura_ray.data import fracatlas
from mura_ray.data.collection import CollectionError
from mura_ray.domain import Box, Study, View

SAMPLE = Path(__file__).parents[3] / "shared" / "fracatlas-sample"
HEADER = "image_id,hand,leg,hip,shoulder,mixed,hardware,multiscan,fractured,fracture_count,frontal,lateral,oblique"


class Folder:
    """A FracAtlas folder that is written as the test says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[str] = []
        self.images: list[dict[str, object]] = []
        self.annotations: list[dict[str, object]] = []
        for folder in ("Fractured", "Non_fractured"):
            (root / "images" / folder).mkdir(parents=True)
        (root / "Annotations/COCO JSON").mkdir(parents=True)

    def add(self, number: int, parts: str = "hand", fractured: int = 0, folder: str | None = None) -> str:
        name = f"IMG{number:07d}.jpg"
        marks = ",".join(str(int(part in parts.split())) for part in ("hand", "leg", "hip", "shoulder"))
        self.rows.append(f"{name},{marks},{int(' ' in parts)},0,0,{fractured},{fractured},1,0,0")
        folder = folder or ("Fractured" if fractured else "Non_fractured")
        if folder != "nowhere":
            (self.root / "images" / folder / name).touch()
        return name

    def box(self, name: str, *bbox: float) -> None:
        self.images.append({"id": len(self.images) + 1, "width": 100, "height": 100, "file_name": name})
        self.annotations.append({"image_id": len(self.images), "category_id": 0, "bbox": list(bbox), "area": 1.0})

    def write(self) -> Path:
        (self.root / "dataset.csv").write_text("\n".join([HEADER, *self.rows]) + "\n")
        coco = {"categories": [], "images": self.images, "annotations": self.annotations}
        (self.root / fracatlas.BOXES).write_text(json.dumps(coco))
        return self.root


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def fill(folder: Folder, blocks: int = 12) -> Folder:
    """Two hands and a shoulder in each block, every other block fractured."""
    for block in range(blocks):
        for offset, part in ((1, "hand"), (20, "shoulder"), (49, "hand")):
            name = folder.add(block * 50 + offset, part, fractured=block % 2)
            if block % 2:
                folder.box(name, 1.5, 2, 30, 40)
    return folder


def by_patient(root: Path) -> dict[str, tuple[str, Study]]:
    splits = fracatlas.read_collection(root).splits
    return {study.patient_id: (split, study) for split, studies in splits.items() for study in studies}


def test_an_image_is_a_study_of_one_view_with_its_boxes(folder: Folder):
    fill(folder)
    folder.box("IMG0000051.jpg", 7, 8, 9, 10)
    studies = by_patient(folder.write())
    boxes = (Box(1.5, 2, 30, 40, "fracture"), Box(7, 8, 9, 10, "fracture"))
    view = View("images/Fractured/IMG0000051.jpg", boxes)
    assert studies["IMG0000051"][1] == Study("hand", "IMG0000051", "study1", 1, (view,))
    normal = View("images/Non_fractured/IMG0000020.jpg")
    assert studies["IMG0000020"][1] == Study("shoulder", "IMG0000020", "study1", 0, (normal,))


def test_blocks_stay_whole_and_every_split_has_every_class(folder: Folder):
    root = fill(folder).write()
    collection = fracatlas.read_collection(root)
    assert list(collection.splits) == ["train", "valid", "test"]
    assert collection.split_policy == "blocks of 50 image numbers"
    assert not collection.patients_known
    assert collection.splits == fracatlas.read_collection(root).splits
    blocks = {
        split: {int(study.patient_id[3:]) // 50 for study in studies} for split, studies in collection.splits.items()
    }
    assert sorted(block for found in blocks.values() for block in found) == list(range(12))
    for studies in collection.splits.values():
        assert {(study.study_type, study.label) for study in studies} == {
            (study_type, label) for study_type in ("hand", "shoulder") for label in (0, 1)
        }
    assert len(blocks["train"]) > len(blocks["valid"]) >= len(blocks["test"])


def test_other_body_parts_are_left_out_and_counted(folder: Folder):
    fill(folder)
    for number, parts in ((700, "hand shoulder"), (701, "hand shoulder"), (702, "leg"), (703, "hip leg"), (704, "")):
        folder.add(number, parts)
    (folder.root / "images/Fractured/Thumbs.db").touch()
    folder.add(705, "hand", fractured=1)
    root = folder.write()
    assert not {f"IMG{number:07d}" for number in range(700, 705)} & by_patient(root).keys()
    assert {(note.path, note.what) for note in fracatlas.read_collection(root).notes} == {
        (f"images/{path}", f"{what} in all, this is the first)")
        for path, what in (
            ("Non_fractured/IMG0000700.jpg", "left out: marked as hand and shoulder (2"),
            ("Non_fractured/IMG0000702.jpg", "left out: marked as leg (1"),
            ("Non_fractured/IMG0000703.jpg", "left out: marked as leg and hip (1"),
            ("Non_fractured/IMG0000704.jpg", "left out: marked as no body part (1"),
            ("Fractured/Thumbs.db", "no FracAtlas image by its name, skipped (1"),
            ("Fractured/IMG0000705.jpg", "fractured, but without a box (1"),
        )
    }


def test_all_problems_are_reported_at_once(folder: Folder):
    fill(folder, blocks=1)
    folder.add(100, folder="nowhere")
    folder.add(101, fractured=1, folder="Non_fractured")
    folder.add(102)
    folder.rows.pop()
    folder.add(103)
    (folder.root / "images/Fractured/IMG0000103.jpg").touch()
    folder.add(104)
    folder.rows.append(folder.rows[-1])
    folder.rows += [
        "IMG0000105.jpg,1,0",
        "photo.jpg,1,0,0,0,0,0,0,0,0,1,0,0",
        "IMG0000001.jpg,yes,0,0,0,0,0,0,0,0,1,0,0",
    ]
    folder.box("IMG0009999.jpg", 1, 2, 3, 4)
    folder.annotations.append({"image_id": 77, "bbox": [1, 2, 3, 4]})
    folder.box("IMG0000001.jpg", 1, 2, 3, 4)
    folder.box("IMG0000101.jpg", 1, 2, 0, 4)
    with pytest.raises(CollectionError) as caught:
        fracatlas.read_collection(folder.write())
    coco = fracatlas.BOXES
    assert [str(problem) for problem in caught.value.problems] == [
        "dataset.csv:9: IMG0000104.jpg has a row already; remove one of the two",
        "dataset.csv:10: malformed row: 3 cells, not 13; give the row a cell for each column",
        "dataset.csv:11: image_id 'photo.jpg'; must have the form IMG0000019.jpg",
        "dataset.csv:12: hand is 'yes'; must be 0 or 1",
        "dataset.csv:12: IMG0000001.jpg has a row already; remove one of the two",
        "images/Non_fractured/IMG0000102.jpg: not in dataset.csv; add its row or remove the file",
        "images/Fractured/IMG0000103.jpg: is also there as images/Non_fractured/IMG0000103.jpg; "
        "keep the right one of the two",
        "IMG0000100.jpg: in dataset.csv, but in neither folder of images/; restore the file or remove its row",
        "images/Non_fractured/IMG0000101.jpg: in the wrong folder: fractured is 1 in dataset.csv; "
        "correct the row or move the file to images/Fractured/",
        "photo.jpg: in dataset.csv, but in neither folder of images/; restore the file or remove its row",
        f"{coco}: annotation 0 is for image IMG0009999.jpg, which is not there; "
        "restore the image and its row in dataset.csv, or remove the annotation",
        f"{coco}: annotation 1 is for image 77, which is not there; "
        "restore the image and its row in dataset.csv, or remove the annotation",
        f"{coco}: annotation 2 marks a fracture in IMG0000001.jpg, whose row in dataset.csv has none; "
        "correct the row or remove the annotation",
        f"{coco}: annotation 3 is an empty box; correct or remove it",
    ]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: (root / "dataset.csv").unlink(), "no dataset.csv is in it"),
        (lambda root: (root / "dataset.csv").write_text("image_id,hand\n"), "column 'fractured' is missing"),
        (lambda root: (root / "dataset.csv").write_bytes(b"\xff\xfe\x00"), "not a CSV file in UTF-8"),
        (lambda root: (root / fracatlas.BOXES).unlink(), "there is no such file"),
        (lambda root: (root / fracatlas.BOXES).write_text("[" * 9), "Invalid JSON"),
        (lambda root: (root / fracatlas.BOXES).write_text('{"images": [], "annotations": [{}]}'), "annotations.0.bbox"),
    ],
)
def test_broken_files(folder: Folder, spoil: Callable[[Path], None], expected: str):
    root = fill(folder).write()
    spoil(root)
    with pytest.raises(CollectionError, match=expected):
        fracatlas.read_collection(root)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the FracAtlas sample does not lie beside the repository")
def test_the_real_sample():
    collection = fracatlas.read_collection(SAMPLE)
    studies = [study for split in collection.splits.values() for study in split]
    # Counted in dataset.csv: 525 rows, of which 77 are marked as hand and shoulder.
    assert len(studies) == 448
    assert sum(study.label for study in studies) == 126 + 10
    assert all((SAMPLE / study.views[0].path).is_file() for study in studies)
    assert all(bool(study.views[0].boxes) == bool(study.label) for study in studies)
    assert all({study.label for study in split} == {0, 1} for split in collection.splits.values())
    [note] = collection.notes
    assert note.what == "left out: marked as hand and shoulder (77 in all, this is the first)"
