"""Evaluation of an ensemble on a converted split: the numbers, what is said of them, and the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mura_ray.data.manifest import read_manifest
from mura_ray.evaluation.assessment import assess, calibration_notes, split_notes
from mura_ray.evaluation.comparing import compare_predictions
from mura_ray.evaluation.operating import Rule, operating_points
from mura_ray.evaluation.predictions import predict_split
from mura_ray.model.ensemble import Ensemble
from mura_ray.platt import FittedOn
from mura_ray.render.report import EvaluationResult, evaluation_text, write_numbers
from mura_ray.stats.estimates import Estimate
from tests.unit.api_client import CALIBRATION, DESCRIPTION
from tests.unit.painted import Painted, cohort, make_ensemble, sigmoid, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, {"test": cohort(), "valid": cohort("v", mark=50)})
    return str(folder)


@pytest.fixture(scope="module")
def result(data: str) -> EvaluationResult:
    return result_on(data)


def result_on(data: str, split: str = "test") -> EvaluationResult:
    return evaluate_ensemble(make_ensemble(read_manifest(data).id), data, split)


def evaluate_ensemble(ensemble: Ensemble, data: str, split: str = "test") -> EvaluationResult:
    return assess(predict_split(ensemble, data, split), ())


def test_a_studys_probability_is_the_mean_over_members_and_views(tmp_path: Path):
    views = [
        Painted("wrist", "p1", "study1", 1, 2.0),
        Painted("hand", "p1", "study1", 0, -3.0),
        Painted("wrist", "p1", "study1", 1, -4.0),
        Painted("wrist", "p1", "study2", 0, 0.0),
        Painted("wrist", "p2", "study1", 0, -0.75),
    ]
    manifest = write_data(tmp_path, {"test": views})
    ensemble = make_ensemble(manifest.id, offsets=(0.0, 1.5))
    studies = evaluate_ensemble(ensemble, str(tmp_path)).studies
    assert list(studies["study"]) == ["wrist/p1/study1", "hand/p1/study1", "wrist/p1/study2", "wrist/p2/study1"]
    assert list(studies["label"]) == [1, 0, 0, 0]
    assert list(studies["num_views"]) == [2, 1, 1, 1]
    first = np.mean([sigmoid(2), sigmoid(3.5), sigmoid(-4), sigmoid(-2.5)])
    expected = [first, np.mean([sigmoid(-3), sigmoid(-1.5)]), np.mean([0.5, sigmoid(1.5)]), 0.5]
    np.testing.assert_allclose(studies["probability"], expected, rtol=1e-6)
    assert list(studies["abnormal"]) == [int(first > 0.5), 0, 1, 0]
    served = ensemble.predict_study([views[0].pixels(), views[2].pixels()])
    assert served.probability == pytest.approx(studies["probability"][0])


def test_numbers_by_type_and_overall(result: EvaluationResult):
    metrics = result.metrics
    assert list(metrics) == ["hand", "wrist", "overall"]
    hand, wrist, overall = metrics.values()
    assert (hand.num_studies, hand.num_abnormal) == (11, 5)
    assert hand.sensitivity.value == 4 / 5
    assert hand.specificity.value == 4 / 6
    assert hand.auroc.value == pytest.approx((6 + 5 + 4 + 4 + 2.5) / 30)  # -2 ties with one normal
    assert hand.kappa.value == pytest.approx((8 / 11 - 60 / 121) / (1 - 60 / 121))
    assert (wrist.num_studies, wrist.num_abnormal, wrist.auroc) == (2, 1, Estimate())
    assert (overall.num_studies, overall.num_abnormal, overall.sensitivity.value) == (13, 6, 5 / 6)


def test_files(result: EvaluationResult, data: str, tmp_path: Path):
    write_numbers(result, str(tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out/metrics.csv", index_col="study_type")
    assert list(table.index) == ["hand", "wrist", "overall"]
    assert table.loc["hand", "sensitivity"] == 0.8
    assert table.loc["hand", "auroc_low"] == result.metrics["hand"].auroc.low
    wrist = table.loc["wrist"].to_dict()
    assert {name for name, number in wrist.items() if number == number} == {"num_studies", "num_abnormal"}
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {name: content["data"][name] for name in ("name", "id", "split", "split_policy")} == {
        "name": "painted", "id": read_manifest(data).id, "split": "test", "split_policy": "mura"
    }  # fmt: skip
    assert content["metrics"]["hand"]["specificity"]["value"] == 4 / 6
    assert content["metrics"]["wrist"]["kappa"] == {"value": None, "low": None, "high": None}
    assert content["localisation"] is None
    studies = pd.read_csv(tmp_path / "out/studies.csv")
    pd.testing.assert_frame_equal(studies, result.studies, check_dtype=False)


def test_text(result: EvaluationResult):
    text = evaluation_text(result)
    lines = [line.split() for line in text.splitlines() if line.split()]
    rows = {words[0]: words for words in reversed(lines)}
    low = result.metrics["hand"].auroc.low
    assert rows["hand"][1:5] == ["11", "5", "0.717", f"[{low:.3f},"]
    assert rows["wrist"] == ["wrist", "2", "1", "n.e.", "n.e.", "n.e.", "n.e."]
    assert "fewer than 5 studies" in text
    assert "NOTE" not in text
    assert "Localisation" not in text


@pytest.mark.parametrize(
    ("split", "policy", "said"),
    [
        ("test", "mura", []),
        ("valid", "mura", ["optimistic"]),
        ("valid", "official", ["optimistic"]),
        ("test", "official", ["optimistic"]),
        ("train", "official", ["training"]),
    ],
)
def test_says_what_the_numbers_were_chosen_on(data: str, split: str, policy: str, said: list[str]):
    manifest = read_manifest(data).model_copy(update={"split_policy": policy})
    notes = split_notes(DESCRIPTION.model_copy(update={"data_id": manifest.id}), manifest, split)
    assert [word for word in ("optimistic", "training") if any(word in note for note in notes)] == said
    assert len(notes) == len(said)


def test_the_splits_of_data_that_the_ensemble_never_saw_are_no_choice_and_unknown_patients_are_said(data: str):
    manifest = read_manifest(data).model_copy(update={"patients_known": False})
    [note] = split_notes(DESCRIPTION.model_copy(update={"data_id": "else"}), manifest, "train")
    assert "does not say whose its images are" in note


@pytest.mark.parametrize(
    ("data_id", "fitted_split", "said"),
    [
        ("here", "test", "optimistic calibration"),
        ("here", "valid", ""),
        ("trained", "valid", ""),
        ("trained", "test", "not checked"),
        ("else", "valid", "not checked"),
    ],
)
def test_says_what_the_calibration_was_fitted_on(data: str, data_id: str, fitted_split: str, said: str):
    manifest = read_manifest(data)
    fitted_on = FittedOn(data_id={"here": manifest.id}.get(data_id, data_id), split=fitted_split, num_studies=9)
    description = DESCRIPTION.model_copy(
        update={"data_id": "trained", "calibration": CALIBRATION.model_copy(update={"fitted_on": fitted_on})}
    )
    notes = calibration_notes(description, manifest, "test")
    assert [note.partition(":")[0] for note in notes] == [said] * bool(said)
    assert calibration_notes(DESCRIPTION, manifest, "test") == ()


def test_notes_are_printed_and_written(data: str, tmp_path: Path):
    notes = ("optimistic numbers: chosen on it", "not checked: whose they are")
    result = assess(predict_split(make_ensemble("another"), data, "valid"), notes)
    write_numbers(result, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["notes"] == list(result.notes)
    unwrapped = " ".join(evaluation_text(result).split())
    assert all(f"NOTE: {note}" in unwrapped for note in result.notes)


def test_localisation_in_the_views_own_proportions(tmp_path: Path):
    # A cell of the map is 50 x 25 pixels of the 200 x 100 view. Cell (1, 2) has its centre at x 125, y 37.5.
    hit, miss = (122.0, 35.0, 6.0, 5.0), (170.0, 80.0, 10.0, 10.0)
    views = [Painted("hand", f"p{i}", "study1", 1, 1, (1, 2), hit if i < 6 else miss) for i in range(8)]
    views += [Painted("hand", "q", "study1", 1, 1, (1, 2)), Painted("hand", "n", "study1", 0, 1, (1, 2), hit)]
    views += [Painted("wrist", "w", "study1", 1, 1, (1, 2), hit)]
    manifest = write_data(tmp_path, {"test": views}, boxes=True)
    result = evaluate_ensemble(make_ensemble(manifest.id), str(tmp_path))
    game = result.localisation
    assert game is not None
    assert (game.num_views, game.num_patients, game.left_out) == (8, 8, ("wrist",))
    assert game.rate == game.baseline == 6 / 8
    assert "8 abnormal views with boxes" in evaluation_text(result)
    assert "left out, because they have a single such view: wrist" in evaluation_text(result)
    write_numbers(result, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["localisation"]["ratio"]["value"] == 1


def test_painted_shares_are_reported_apart_for_normal_and_abnormal_views(result: EvaluationResult, tmp_path: Path):
    counts = dict(zip(result.painted["label"], result.painted["num_views"], strict=True))
    assert counts == {0: 7, 1: 6}
    assert result.painted[["share", "strength"]].to_numpy().min() > 0
    assert result.painted[["share", "strength"]].to_numpy().max() <= 1
    assert "share of a view's pixels that are painted" in evaluation_text(result)
    write_numbers(result, str(tmp_path))
    written = json.loads((tmp_path / "metrics.json").read_text())["painted"]
    assert [row["num_views"] for row in written] == [7, 6]
    assert written[0]["share"] == result.painted["share"][0] > 0


def test_boxes_of_which_none_is_in_an_abnormal_view(tmp_path: Path):
    write_data(tmp_path, {"test": cohort()}, boxes=True)
    game = result_on(str(tmp_path)).localisation
    assert game is not None
    assert (game.num_views, game.rate, game.ratio) == (0, None, Estimate())


def test_another_image_size_names_the_remedy(data: str):
    with pytest.raises(ValueError, match=r"takes images of 64 px, .* holds 32 px: .*--image-size 64"):
        evaluate_ensemble(make_ensemble("x", size=64), data)


def test_a_split_that_is_not_there(tmp_path: Path):
    write_data(tmp_path, {"train": cohort(), "valid": cohort()})
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        result_on(str(tmp_path))


def test_a_calibrated_ensemble_is_reported_before_and_after_by_type(data: str):
    ensemble = make_ensemble(read_manifest(data).id, calibration=CALIBRATION)
    tables = {table.name: table.frame for table in evaluate_ensemble(ensemble, data).tables}
    assert list(tables["calibrated"]["study_type"]) == ["hand", "wrist", "overall"]
    overall = tables["calibrated"].iloc[-1]
    assert overall["Brier score"].value != overall["calibrated"].value
    fitted = dict(zip(tables["calibration"]["study_type"], tables["calibration"]["fitted on"], strict=True))
    assert fitted == {
        name: name if name in CALIBRATION.by_type else "all types" for name in ("hand", "wrist", "overall")
    }


def test_two_calibrated_ensembles_are_compared_by_their_calibrated_decisions_too(data: str):
    plain, calibrated = (make_ensemble(read_manifest(data).id, calibration=one) for one in (None, CALIBRATION))
    predictions = predict_split(calibrated, data, "test")
    assert [table.name for table in compare_predictions(predictions, predictions)] == [
        "comparison", "comparison_calibrated",
    ]  # fmt: skip
    assert len(compare_predictions(predict_split(plain, data, "test"), predictions)) == 1


def test_a_rule_that_has_too_few_studies_of_a_label_chooses_nothing(tmp_path: Path):
    manifest = write_data(tmp_path, {"test": cohort(), "valid": [one for one in cohort("v", 50) if one.label == 0]})
    ensemble = make_ensemble(manifest.id)
    splits = {name: predict_split(ensemble, str(tmp_path), name) for name in ("test", "valid")}
    metrics = evaluate_ensemble(ensemble, str(tmp_path)).metrics
    frame = operating_points(metrics, splits["test"], [Rule("youden")], splits["valid"]).frame
    chosen = frame[frame["rule"] == "youden"]
    assert chosen["threshold"].isna().all()
    assert set(chosen["sensitivity"]) == {Estimate()}
