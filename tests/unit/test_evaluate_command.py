"""`python -m mura_ray.evaluate`: its report, what else it answers, and what it says of wrong input."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mura_ray import evaluate
from mura_ray.data.manifest import Manifest, read_manifest
from mura_ray.evaluation import writing
from mura_ray.model.ensemble import Ensemble
from tests.unit.painted import Painted, cohort, make_ensemble, write_data

NUMBERS = {"metrics.csv", "metrics.json", "studies.csv"}
ALWAYS = NUMBERS | {"report.html", "report.pdf", "model-card.md", "tables", "figures"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cohort to test on, others to train and to choose on; the test views have boxes."""
    folder = tmp_path_factory.mktemp("data")
    boxed = [
        Painted(one.study_type, one.patient, one.study, one.label, one.logit, (1, 2), (122.0, 35.0, 6.0, 5.0))
        for one in cohort()
    ]
    write_data(folder, {"test": boxed, "valid": cohort("v", mark=50), "train": cohort("t", mark=100)}, boxes=True)
    return str(folder)


@pytest.fixture
def loads(data: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `Ensemble.load` is asked for; it gives the painted ensemble."""
    asked = []

    def load(uri: str, device: str) -> Ensemble:
        asked.append(uri)
        return make_ensemble(read_manifest(data).id)

    monkeypatch.setattr(Ensemble, "load", load)
    monkeypatch.setattr(evaluate, "read_description", lambda uri: make_ensemble(read_manifest(data).id).description)
    for name in ("MURA_DATA", "MURA_RUNS"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laying out the PDF takes seconds; the first test does so."""
    monkeypatch.setattr(writing, "document_pdf", lambda html: b"%PDF-")


def test_the_report_lies_beside_the_ensemble_and_says_what_was_typed(
    data: str, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "runs/sweep/ensemble"
    assert evaluate.main(["--ensemble", f"{folder}/ensemble.json", "--data", data]) == 0
    assert loads == [str(folder)]
    out = tmp_path / f"runs/sweep/evaluation-test-{read_manifest(data).id}-{'e' * 16}"
    assert {file.name for file in out.iterdir()} == ALWAYS
    assert str(out) in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert f"python -m mura_ray.evaluate --ensemble {folder}/ensemble.json --data {data}" in page
    assert "Not a medical device" in page
    for chapter in ("Results", "Localisation", "Radiographs and their maps", "Reporting checklist"):
        assert f"<h2>{chapter}</h2>" in page
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "# Model card: ensemble eeee" in (out / "model-card.md").read_text()
    figures = {path.name for path in (out / "figures").iterdir()}
    assert {"roc.svg", "roc.png", "gallery.svg", "auroc_by_type.png"} <= figures
    tables = {path.name for path in (out / "tables").iterdir()}
    assert {"metrics.csv", "metrics.tex", "localisation.csv", "subgroups.csv", "worst_errors.csv"} <= tables


def test_the_same_command_gives_the_same_numbers(data: str, tmp_path: Path, loads: list[str], no_pages: None):
    for out in ("a", "b"):
        assert evaluate.main(["--ensemble", "E", "--data", data, "--out", str(tmp_path / out)]) == 0
    for name in NUMBERS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_readers_findings_and_operating_points_are_in_the_report(
    data: str, tmp_path: Path, loads: list[str], no_pages: None, capsys: pytest.CaptureFixture[str]
):
    keys = [f"{one.study_type}/{one.patient}/{one.study}" for one in cohort()]
    truth = [one.label for one in cohort()]
    readers = pd.DataFrame({"study": keys, "anna": truth, "ben": truth, "carla": truth, "dora": truth})
    readers.loc[[4, 8], "dora"] = 1 - readers.loc[[4, 8], "dora"]
    readers.to_csv(tmp_path / "readers.csv", index=False)
    pd.DataFrame({"study": keys, "fracture": truth, "hardware": 0}).to_csv(tmp_path / "findings.csv", index=False)
    options = ["--readers", str(tmp_path / "readers.csv"), "--gold", "anna", "ben", "carla", "--all-panels"]
    options += ["--findings", str(tmp_path / "findings.csv"), "--operating-point", "youden"]
    options += ["--operating-point", "sensitivity=0.9", "--out", str(tmp_path / "out")]
    assert evaluate.main(["--ensemble", "E", "--data", data, *options]) == 0
    tables = {name: pd.read_csv(tmp_path / f"out/tables/{name}.csv") for name in
              ("readers", "panels", "findings", "operating_points")}  # fmt: skip
    assert list(tables["readers"]["rater"]) == ["dora", "model"]
    assert tables["readers"].loc[0, "sensitivity"] == 5 / 6
    assert len(tables["panels"]) == 4
    assert tables["findings"]["abnormal studies"].tolist() == [6, 0]
    overall = tables["operating_points"].query("study_type == 'overall'")
    assert overall["chosen on"].tolist() == ["fixed beforehand", "valid", "valid"]
    assert overall["num_abnormal"].tolist() == [6, 6, 6]
    assert overall["sensitivity"].tolist()[2] >= 0.9
    assert {"roc.svg", "roc_readers.svg"} <= {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert "majority of anna, ben, carla" in (tmp_path / "out/report.html").read_text()
    assert "dora" in capsys.readouterr().out


def test_an_evaluation_leaves_nothing_of_the_one_before(
    data: str, tmp_path: Path, loads: list[str], no_pages: None, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "out/tables").mkdir(parents=True)
    (tmp_path / "out/tables/readers.csv").touch()
    (tmp_path / "out/tables/mine.csv").touch()
    assert evaluate.main(["--ensemble", "E", "--data", data, "--out", str(tmp_path / "out")]) == 0
    assert {"mine.csv", "metrics.csv", "painted.tex"} <= (
        names := {one.name for one in (tmp_path / "out/tables").iterdir()}
    )
    assert "readers.csv" not in names


def test_where_the_search_says_what_it_was_trained_on_that_is_compared(
    data: str, tmp_path: Path, no_pages: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    trained = write_data(tmp_path / "trained", {"train": cohort()})
    use(monkeypatch, trained)
    (tmp_path / "search").mkdir()
    (tmp_path / "search/sweep.json").write_text(json.dumps({"data": str(tmp_path / "trained")}))
    for folder in ("search", "search-calibrated"):
        assert evaluate.main(["--ensemble", str(tmp_path / folder / "ensemble"), "--data", data]) == 1
        assert "in common with the split 'train'" in capsys.readouterr().err


def test_two_ensembles_are_compared_and_one_is_ablated(
    data: str, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main(["--ensemble", "E", "--data", data, "--compare", "F", "--out", str(tmp_path)]) == 0
    assert [Path(uri).name for uri in loads] == ["E", "F"]
    compared = pd.read_csv(tmp_path / "tables/comparison.csv", index_col="study_type")
    assert compared.loc["overall", "AUROC (by patient)"] == 0
    assert compared.loc["overall", "only first right"] == 0
    assert evaluate.main(["--ensemble", "E", "--data", data, "--ablate"]) == 0
    assert "maximum of views" in capsys.readouterr().out


def test_a_split_that_shares_patients_with_the_training_is_refused_or_labelled(
    tmp_path: Path, no_pages: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    manifest = write_data(tmp_path / "leaky", {"test": cohort(), "valid": cohort("v", 50), "train": cohort(mark=7)})
    use(monkeypatch, manifest)
    command = ["--ensemble", "E", "--data", str(tmp_path / "leaky"), "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 1
    assert "in common with the split 'train'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert evaluate.main([*command, "--allow-leakage"]) == 0
    notes = json.loads((tmp_path / "out/metrics.json").read_text())["notes"]
    assert any("optimistic" in note and "'train'" in note for note in notes)


def test_a_calibration_is_not_fitted_on_patients_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, write_data(tmp_path / "leaky", {"valid": cohort(), "train": cohort(mark=7)}))
    dest = tmp_path / "calibrated"
    command = ["--ensemble", "E", "--data", str(tmp_path / "leaky"), "--calibrate", "--out", str(dest)]
    assert evaluate.main(command) == 1
    assert "in common with the split 'train'" in capsys.readouterr().err
    assert not dest.exists()


def use(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> None:
    monkeypatch.setattr(Ensemble, "load", lambda uri, device: make_ensemble(manifest.id))
    monkeypatch.setattr(evaluate, "read_description", lambda uri: make_ensemble(manifest.id).description)


def test_a_reader_study_is_simulated_in_the_papers_form_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main(["--simulate-readers", "--out", str(tmp_path)]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    by_type = pd.read_csv(tmp_path / "tables/readers_by_type.csv", index_col="study_type")
    assert by_type["n"].to_dict() == {
        "elbow": 28, "finger": 30, "forearm": 30, "hand": 30, "humerus": 30, "shoulder": 30, "wrist": 29,
        "overall": 207,
    }  # fmt: skip
    assert by_type.shape[1] == 1 + 4 * 3  # n, then kappa and its bounds of three readers and the model
    assert (tmp_path / "figures/roc_readers.png").is_file()
    assert "SIMULATED" in (tmp_path / "tables/readers.tex").read_text()
    assert "nothing below was seen in radiographs" in (tmp_path / "tables/notes.txt").read_text()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data", "DATA"], "pass --ensemble DIR, or set MURA_RUNS"),
        (["--ensemble", "E"], "pass --data URI or set MURA_DATA"),
        (["--ensemble", "E", "--data", "E"], "no converted data set"),
        (["--ensemble", "E", "--data", "DATA", "--split", "nope"], "no split 'nope'; it has test, valid, train"),
        (["--ensemble", "E", "--data", "DATA", "--out", "E/report"], "never changed"),
        (["--ensemble", "E", "--data", "DATA", "--out", "E"], "never changed"),
        (["--ensemble", "E", "--data", "DATA", "--readers", "none.csv"], "none.csv does not exist"),
        (
            ["--ensemble", "E", "--data", "DATA", "--findings", "wrong.csv"],
            "finding 'fracture' has 'yes' for study 'hand/",
        ),
        (
            ["--ensemble", "E", "--data", "DATA", "--findings", "other.csv"],
            "1 studies that are not evaluated, such as 'x'",
        ),
        (["--ensemble", "E", "--data", "DATA", "--readers", "twice.csv"], "has the column 'anna' twice"),
        (["--simulate-readers"], "needs --out"),
        (["--ensemble", "E", "--data", "DATA", "--operating-point", "younden"], "'younden': pass youden, or a"),
        (["--ensemble", "E", "--data", "DATA", "--operating-point", "sensitivity=1.5"], "above 0 and up to 1"),
        (["--ensemble", "E", "--data", "DATA", "--operating-point", "sensitivity=high"], "above 0 and up to 1"),
        (["--ensemble", "E", "--data", "DATA", "--gold", "a", "b", "c"], "--gold says nothing without --readers or"),
        (["--ensemble", "E", "--data", "DATA", "--chosen-on", "valid"], "--chosen-on says nothing without"),
        (["--data", "DATA", "--ablate", "--readers", "none.csv"], "--readers is for the report, which --ablate does"),
    ],
)
def test_what_is_wrong_is_said(
    options: list[str],
    named: str,
    data: str,
    tmp_path: Path,
    loads: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("wrong.csv").write_text("study,fracture\nhand/a0/study1,yes\n")
    Path("other.csv").write_text("study,fracture\nx,1\n")
    Path("twice.csv").write_text("study,anna,anna\nhand/a0/study1,1,0\n")
    assert evaluate.main([data if option == "DATA" else option for option in options]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "E").exists()
