"""A calibrated ensemble beside the one that it was made of."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mura_ray.model.ensemble import (
    Ensemble,
    calibrate_ensemble,
    find_ensemble,
    newest_ensemble,
    read_description,
)
from mura_ray.platt import Calibration, FittedOn, Scaling
from mura_ray.training.calibrate import calibrate
from tests.unit.tiny_ensemble import DATA_ID, write_tiny_ensemble

CALIBRATION = Calibration(
    pooled=Scaling(slope=1.25, intercept=-0.5, num_normal=60, num_abnormal=50),
    by_type={"wrist": Scaling(slope=0.1 + 0.2, intercept=1e-7, num_normal=30, num_abnormal=25)},
)
FITTED_ON = FittedOn(data_id="other", split="valid", num_studies=110)

OLD = """{"format_version":1,"id":"240f1b6b20431bb1","architecture":"densenet169","image_size":320,"threshold":0.5,
"calibration":null,"members":[{"trial":"trial-0","epoch":3,"val_loss":0.51,"config":{"image_size":320,
"initial_weights":"imagenet","learning_rate":0.0001,"beta1":0.9,"beta2":0.999,"weight_decay":0.0,"batch_size":8,
"lr_factor":0.1,"lr_patience":0,"epochs":10,"early_stopping_epochs":null,"weighted_loss":true,"augmentation":{
"inversion_probability":0.5,"rotation_deg":30.0,"scale":0.0,"translation":0.0,"brightness":0.0,"contrast":0.0},
"precision":"fp32","channels_last":true,"compile":"auto","sync_batch_norm":true,"seed":0},"sha256":"ab"}],
"data_id":"feed","data_manifest_sha256":"cd","git_revision":"0000000000000000000000000000000000000000",
"created":"2026-01-02T03:04:05.000006+00:00"}"""
"""As it was written, with this id, before there were calibrations."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `spring/ensemble`; no test changes it."""
    folder = tmp_path_factory.mktemp("runs")
    write_tiny_ensemble(folder / "spring")
    return folder


@pytest.fixture
def dest(runs: Path, tmp_path: Path) -> str:
    """A calibrated ensemble of it, elsewhere."""
    calibrate_ensemble(str(runs / "spring" / "ensemble"), str(tmp_path / "ensemble"), CALIBRATION, FITTED_ON)
    return str(tmp_path / "ensemble")


def said_of_studies(num: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, num)
    labels = (random.random(num) < expit(0.5 * logits - 1)).astype(int)
    return pd.DataFrame(
        {"label": labels, "probability": expit(logits), "study_type": ["hand", "wrist", "elbow"] * (num // 3)}
    )


def test_an_ensemble_from_before_there_were_calibrations_is_read_with_its_id(tmp_path: Path):
    (tmp_path / "ensemble.json").write_text(OLD)
    description = read_description(str(tmp_path))
    assert (description.id, description.calibration) == ("240f1b6b20431bb1", None)
    assert description.calibrated_probability(0.7, "hand") is None


def test_it_has_the_same_members_an_id_of_its_own_and_says_where_it_is_from(runs: Path, dest: str):
    before, after = read_description(str(runs / "spring" / "ensemble")), read_description(dest)
    assert after.id != before.id
    assert after.created > before.created
    assert after.members == before.members
    for place in range(2):
        name = f"member-{place}.safetensors"
        assert Path(dest, name).read_bytes() == (runs / "spring" / "ensemble" / name).read_bytes()
    content = json.loads(Path(dest, "ensemble.json").read_text())["calibration"]
    assert content["method"] == "platt"
    assert content["pooled"] == {"slope": 1.25, "intercept": -0.5, "num_normal": 60, "num_abnormal": 50}
    assert content["by_type"].keys() == {"wrist"}
    assert content["fitted_on"] == {"data_id": "other", "split": "valid", "num_studies": 110}
    assert content["uncalibrated_id"] == before.id


def test_what_it_says_stays_and_the_calibrated_probability_comes_beside_it(runs: Path, dest: str):
    views = [np.full((40, 40), 90, np.uint8)]
    before, after = Ensemble.load(str(runs / "spring" / "ensemble")), Ensemble.load(dest)
    raw, same = before.predict_study(views), after.predict_study(views)
    assert (raw.probability, raw.abnormal, raw.threshold) == (same.probability, same.abnormal, same.threshold)
    odds = raw.probability / (1 - raw.probability)
    for study_type, slope, intercept in (("wrist", 0.3, 1e-7), ("hand", 1.25, -0.5), (None, 1.25, -0.5)):
        expected = 1 / (1 + np.exp(-intercept) * odds**-slope)
        found = after.description.calibrated_probability(raw.probability, study_type)
        assert found == pytest.approx(expected, abs=1e-9)


def test_another_calibration_is_another_ensemble_and_the_same_one_changes_nothing(
    runs: Path, dest: str, tmp_path: Path
):
    spring, before = str(runs / "spring" / "ensemble"), read_description(dest)
    assert calibrate_ensemble(spring, dest, CALIBRATION, FITTED_ON) == before
    other = CALIBRATION.model_copy(update={"by_type": {}})
    with pytest.raises(ValueError, match="holds another ensemble"):
        calibrate_ensemble(spring, dest, other, FITTED_ON)
    assert calibrate_ensemble(spring, str(tmp_path / "other"), other, FITTED_ON).id != before.id
    assert read_description(dest) == before


def test_a_changed_calibration_is_found_out(dest: str):
    file = Path(dest, "ensemble.json")
    file.write_text(file.read_text().replace('"slope": 1.25', '"slope": 1.26'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        read_description(dest)


def test_it_is_not_calibrated_twice_nor_made_of_a_damaged_member(runs: Path, dest: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"is calibrated already, from the ensemble [0-9a-f]{16}"):
        calibrate_ensemble(dest, str(tmp_path / "twice"), CALIBRATION, FITTED_ON)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (runs / "spring" / "ensemble").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".safetensors" else None])
    with pytest.raises(ValueError, match=r"member-0\.safetensors is not the member"):
        calibrate_ensemble(str(damaged), str(tmp_path / "out"), CALIBRATION, FITTED_ON)
    assert not (tmp_path / "twice").exists()
    assert not (tmp_path / "out").exists()


def test_calibrating_puts_it_where_it_is_found_by_id_and_as_the_newest(tmp_path: Path):
    uri = write_tiny_ensemble(tmp_path / "spring")
    old_id = read_description(uri).id
    dest, description = calibrate(f"{uri}/ensemble.json", said_of_studies(), data_id=DATA_ID, split="valid")
    assert dest == str(tmp_path / "spring-calibrated" / "ensemble")
    assert read_description(dest) == description
    assert newest_ensemble(str(tmp_path)) == find_ensemble(str(tmp_path), description.id) == dest
    assert find_ensemble(str(tmp_path), old_id) == uri
    assert description.calibration is not None
    assert description.calibration.fitted_on == FittedOn(data_id=DATA_ID, split="valid", num_studies=300)
    assert description.calibration.pooled.slope == pytest.approx(0.5, abs=0.25)  # 3 standard errors
    assert sum(one.num_normal for one in description.calibration.by_type.values()) > 100


def test_the_studies_that_the_members_learned_from_are_refused(runs: Path, tmp_path: Path):
    uri, out = str(runs / "spring" / "ensemble"), str(tmp_path / "ensemble")
    with pytest.raises(ValueError, match="calibrate on 'valid'"):
        calibrate(uri, said_of_studies(), data_id=DATA_ID, split="train", dest=out)
    assert not Path(out).exists()
    calibrate(uri, said_of_studies(), data_id="other", split="train", dest=out)
