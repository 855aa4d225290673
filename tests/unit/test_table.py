from pathlib import Path

import numpy as np
import pytest

from mura_ray.data.collection import CollectionError
from mura_ray.data.table import read_collection
from mura_ray.domain import Study, View
from tests.unit.dicom_files import STUDY_UID, dicom, run_tool

HEADER = "path,patient,study,study_type,label,split"


def table(folder: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    """Writes the file and every image that its rows name, as far as their paths stay in the folder."""
    for row in rows:
        path = row.split(",")[0].strip()
        if path and not path.startswith("/") and ".." not in path and "gone" not in path:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()  # which leaves what lies there as it is
    file = folder / "wrists.csv"
    file.write_bytes(end.join([header, *rows, ""]).encode())
    return file


def problems(file: Path) -> list[str]:
    with pytest.raises(CollectionError) as caught:
        read_collection(file)
    return [str(problem) for problem in caught.value.problems]


def test_given_splits(tmp_path: Path):
    file = table(
        tmp_path,
        "b/10.png,p2,s1,hand,1,train",
        "b/9.png,p2,s1,hand,1,train",
        "a.png, p10 ,s1,Wrist,0,valid",
        "",
        "c.png,p2,s2,elbow,0,train",
        end="\r\n",
    )
    collection = read_collection(file)
    assert (collection.name, collection.root, collection.split_policy) == ("wrists", str(tmp_path), "given")
    assert collection.splits == {
        "train": [
            Study("elbow", "p2", "s2", 0, (View("c.png"),)),
            Study("hand", "p2", "s1", 1, (View("b/9.png"), View("b/10.png"))),
        ],
        "valid": [Study("wrist", "p10", "s1", 0, (View("a.png"),))],
    }


def test_columns_in_any_order_with_a_byte_order_mark_and_quotes(tmp_path: Path):
    (tmp_path / "a, b.png").touch()
    file = tmp_path / "t.csv"
    text = '\ufeffsplit,label,"study_type",study,patient,path\ntest,1,hand,s,NA,"a, b.png"\n'
    file.write_text(text, encoding="utf-8")
    assert read_collection(file).splits == {"test": [Study("hand", "NA", "s", 1, (View("a, b.png"),))]}


def test_without_a_split_column_patients_are_dealt(tmp_path: Path):
    rows = [f"{i}.png,p{i // 2},s{i},{('hand', 'wrist')[i % 2]},{i % 4 // 2}" for i in range(200)]
    file = table(tmp_path, *rows, header=HEADER.removesuffix(",split"))
    collection = read_collection(file)
    assert collection.split_policy == "patient"
    assert collection.splits == read_collection(file).splits
    assert collection.splits != read_collection(file, seed=1).splits
    sizes = {split: len(studies) for split, studies in collection.splits.items()}
    assert sizes == {"train": 160, "valid": 20, "test": 20}
    patients = [{study.patient_id for study in studies} for studies in collection.splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 100
    for studies in collection.splits.values():
        assert len({(study.study_type, study.label) for study in studies}) == 4


def test_too_few_patients_for_three_splits(tmp_path: Path):
    file = table(tmp_path, "a.png,p,s,hand,0", "b.png,q,s,hand,1", header=HEADER.removesuffix(",split"))
    with pytest.raises(ValueError, match="cannot fill the splits train, valid, test from 2 patients"):
        read_collection(file)


def test_every_bad_row_is_reported_with_its_line(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    file = table(
        tmp_path,
        "a.png,p1,s1,hand,0,train",
        "./a.png,p1,s1,hand,0,train",
        "b.png,p2,s1,foot,0,train",
        "c.png,p3,s1,hand,yes,train",
        "d.png,p4,s1,hand,0,train",
        "e.png,p4,s1,wrist,1,train",
        "f.png,p4,s2,hand,0,valid",
        "gone.png,p5,s1,hand,0,test",
        "../outside.png,p5,s2,hand,0,test",
        "/etc/hostname,p5,s3,hand,0,test",
        "g.png,p6,s1,hand,0,training",
        "h.png,p7,s1,hand",
        "i.png,,a/b,hand,0,test",
        "folder,p8,s1,hand,0,test",
        f"{'gone' * 100}.png,p8,s2,hand,0,test",
    )
    known = "known are elbow, finger, forearm, hand, humerus, shoulder, wrist"
    long = f"{'gone' * 100}.png"
    assert problems(file) == [
        "wrists.csv:13: malformed row: 4 cells, not 6; give the row a cell for each column",
        f"wrists.csv:4: unknown study_type 'foot'; {known}",
        "wrists.csv:5: label 'yes'; must be 0 (normal) or 1 (abnormal)",
        "wrists.csv:9: there is no file 'gone.png'; correct the path or restore the file",
        "wrists.csv:10: path '../outside.png' leaves the folder of the file; give a relative path below it",
        "wrists.csv:11: path '/etc/hostname' leaves the folder of the file; give a relative path below it",
        "wrists.csv:12: unknown split 'training'; known are train, valid, test",
        "wrists.csv:14: patient ''; give it a name without slashes",
        "wrists.csv:14: study 'a/b'; give it a name without slashes",
        "wrists.csv:15: there is no file 'folder'; correct the path or restore the file",
        f"wrists.csv:16: there is no file '{long}'; correct the path or restore the file",
        "wrists.csv:3: path 'a.png' is also in wrists.csv:2; remove one of the two rows",
        "wrists.csv:7: study 's1' of patient 'p4' has study_type wrist here, hand in wrists.csv:6; "
        "correct one of the rows, or name the studies apart",
        "wrists.csv:7: study 's1' of patient 'p4' has label 1 here, 0 in wrists.csv:6; "
        "correct one of the rows, or name the studies apart",
        "wrists.csv:8: patient 'p4' is in valid here, in train in wrists.csv:6; put each patient into one split",
    ]


def test_wrong_columns(tmp_path: Path):
    file = table(tmp_path, header="path,patient,study,type,label,label")
    assert problems(file) == [
        "wrists.csv:1: column 'study_type' is missing; "
        "the first line must name path, patient, study, study_type, label",
        "wrists.csv:1: unknown column 'type'; "
        "remove or rename it; known are path, patient, study, study_type, label, split",
        "wrists.csv:1: column 'label' is there 2 times; keep one of them",
    ]


def test_no_table(tmp_path: Path):
    assert problems(tmp_path) == [
        f"{tmp_path}: is a folder; pass a CSV file with the columns path, patient, study, study_type, label[, split]"
    ]
    assert "there is no such file" in problems(tmp_path / "none.csv")[0]
    assert problems(table(tmp_path)) == ["wrists.csv: there are no rows; add a row for each image"]
    (tmp_path / "wrists.csv").write_text("")
    assert len(problems(tmp_path / "wrists.csv")) == 5
    (tmp_path / "wrists.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe\n")
    assert "not a CSV file in UTF-8" in problems(tmp_path / "wrists.csv")[0]


GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_dicom_files_say_the_study_and_the_type_that_their_rows_leave_empty(tmp_path: Path):
    (tmp_path / "a.dcm").write_bytes(dicom(GRAY))
    (tmp_path / "b").write_bytes(dicom(GRAY))
    (tmp_path / "c.dcm").write_bytes(dicom(GRAY, BodyPartExamined="ARM"))
    (tmp_path / "d.dcm").write_bytes(dicom(GRAY, StudyInstanceUID=None, BodyPartExamined="LEFT HAND"))
    large = np.arange(2**21, dtype=np.uint32).astype(np.uint16).reshape(2**10, 2**11)
    (tmp_path / "e.dcm").write_bytes(dicom(large, StudyInstanceUID="1.2.3"))
    (tmp_path / "f.dcm").write_bytes(run_tool("dcmconv", "+td", content=dicom(large, StudyInstanceUID="1.2.4")))
    file = table(
        tmp_path,
        "a.dcm,p,,,1,train",
        "b,p,,,1,train",
        "c.dcm,p,,elbow,0,train",
        "d.dcm,q,first,,0,train",
        "e.dcm,q,,,0,train",
        "f.dcm,q,,,0,train",
        "g.png,q,last,wrist,0,train",
    )
    with pytest.raises(CollectionError, match=r"study_type elbow here, wrist in wrists\.csv:2"):
        read_collection(file)
    file.write_text(file.read_text().replace("c.dcm,p,", "c.dcm,p,second"))
    assert read_collection(file).splits["train"] == [
        Study("elbow", "p", "second", 0, (View("c.dcm"),)),
        Study("hand", "q", "first", 0, (View("d.dcm"),)),
        Study("wrist", "p", STUDY_UID, 1, (View("a.dcm"), View("b"))),
        Study("wrist", "q", "1.2.3", 0, (View("e.dcm"),)),
        Study("wrist", "q", "1.2.4", 0, (View("f.dcm"),)),
        Study("wrist", "q", "last", 0, (View("g.png"),)),
    ]


def test_what_no_file_says_is_asked_for(tmp_path: Path):
    (tmp_path / "a.dcm").write_bytes(dicom(GRAY, BodyPartExamined="ARM"))
    (tmp_path / "b.dcm").write_bytes(dicom(GRAY, StudyInstanceUID=None))
    (tmp_path / "c.dcm").write_bytes(dicom(GRAY)[:400])
    file = table(tmp_path, "a.dcm,p,,,1,train", "b.dcm,p,,,1,train", "c.dcm,p,s,,1,train", "d.png,p,,,1,train")
    assert problems(file) == [
        "wrists.csv:2: study_type is empty, and BodyPartExamined (0018,0015) of 'a.dcm' is 'ARM', none of "
        "elbow, finger, forearm, hand, humerus, shoulder, wrist; fill in the cell",
        "wrists.csv:3: study is empty, and 'b.dcm' has no StudyInstanceUID (0020,000d); fill in the cell",
        "wrists.csv:4: study_type is empty, and BodyPartExamined (0018,0015) of 'c.dcm' is missing, none of "
        "elbow, finger, forearm, hand, humerus, shoulder, wrist; fill in the cell",
        "wrists.csv:5: 'd.png' does not say study and study_type, and nothing else does: the file is no DICOM file; "
        "fill in the cell",
    ]
