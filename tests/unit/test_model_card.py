"""`/v1/ensemble` as a model card, with the evaluations that lie beside the ensemble."""

import asyncio
import json

import pytest

from mura_ray.config import Augmentation, TrialConfig
from mura_ray.domain import NOTICE, OVERALL
from mura_ray.model.card import INTENDED_USE, LIMITS
from serve.api import build_api
from serve.health import Passes
from serve.model_card import EvaluatedData, Evaluation, drift_reference, read_evaluations
from serve.release import Release, Releases
from tests.evaluations import NOTE, write_evaluation
from tests.unit.api_client import CALIBRATION, DESCRIPTION, Calibrated, Client, MeanGray, client_of

COUNTS = [1] * 20


def card_of(predictor=None, evaluations=()):
    return Client(build_api(predictor or MeanGray(), evaluations=evaluations)).get("/v1/ensemble").json()


class TestCard:
    def test_says_what_it_was_made_of_and_what_it_is_not_for(self):
        card = card_of()
        assert card["data"] == {"id": "feedfeedfeedfeed", "manifest_sha256": "0"}
        assert (card["git_revision"], card["architecture"], card["calibration"]) == ("unknown", "densenet169", None)
        assert (card["notice"], card["limits"], card["intended_use"]) == (NOTICE, list(LIMITS), list(INTENDED_USE))
        told = " ".join(card["limits"])
        assert all(words in told for words in ("children", "other body parts", "study types", "no frequency"))

    def test_tells_settings_that_all_members_share_from_those_in_which_they_differ(self):
        configs = [TrialConfig(seed=1), TrialConfig(seed=2, augmentation=Augmentation(scale=0.1))]
        members = [
            one.model_copy(update={"config": config}) for one, config in zip(DESCRIPTION.members, configs, strict=True)
        ]
        predictor = MeanGray()
        predictor.description = DESCRIPTION.model_copy(update={"members": tuple(members)})
        card = card_of(predictor)
        assert [member["settings"] for member in card["members"]] == [
            {"seed": 1, "augmentation.scale": 0.0},
            {"seed": 2, "augmentation.scale": 0.1},
        ]
        assert card["recipe"]["learning_rate"] == 1e-4
        assert card["recipe"]["augmentation.rotation_deg"] == 30
        assert not {"seed", "augmentation.scale"} & card["recipe"].keys()

    def test_has_the_calibration(self):
        assert card_of(Calibrated())["calibration"] == CALIBRATION.model_dump()

    def test_has_no_metrics_where_nothing_was_evaluated(self):
        assert card_of()["metrics"] == []

    def test_has_the_metrics_of_each_evaluation_with_its_notes(self, tmp_path):
        write_evaluation(tmp_path, "valid", DESCRIPTION.id)
        write_evaluation(tmp_path, "test", DESCRIPTION.id)
        write_evaluation(tmp_path, "test", "fedcba9876543210")
        test, valid = card_of(evaluations=read_evaluations(str(tmp_path / "ensemble"), DESCRIPTION.id))["metrics"]
        assert test["data"] == {"name": "mura", "id": "feedfeedfeedfeed", "split": "test"}
        assert valid["data"]["split"] == "valid"
        assert test["notes"] == [NOTE]
        assert test["metrics"].keys() == {"wrist", OVERALL}
        assert test["metrics"][OVERALL]["auroc"] == {"value": 0.9, "low": 0.8, "high": 1.0}
        assert test["metrics"]["wrist"]["kappa"]["value"] is None

    def test_is_described(self):
        answer = client_of().get("/openapi.json").json()["components"]["schemas"]["EnsembleAnswer"]
        assert {"data", "recipe", "calibration", "metrics", "limits", "git_revision"} <= set(answer["required"])


class TestDriftReference:
    def test_counts_the_studies_up_to_each_edge(self, tmp_path):
        write_evaluation(tmp_path, "valid", DESCRIPTION.id)
        found = read_evaluations(str(tmp_path / "ensemble"), DESCRIPTION.id)
        assert drift_reference(found, "feedfeedfeedfeed") == {"wrist": [1] * 12 + [2] * 8}

    def test_is_nothing_where_the_evaluation_has_no_counts(self, tmp_path):
        file = write_evaluation(tmp_path, "valid", DESCRIPTION.id) / "metrics.json"
        content = json.loads(file.read_text())
        del content["probabilities"]
        file.write_text(json.dumps(content))
        (found,) = read_evaluations(str(tmp_path / "ensemble"), DESCRIPTION.id)
        assert found.metrics
        assert drift_reference([found], "feedfeedfeedfeed") == {}

    def test_is_of_valid_else_of_what_was_held_out(self):
        test, valid, train, other = (
            Evaluation(
                data=EvaluatedData(id="a" if split else "b", name="mura", split=split or "valid"),
                notes=[],
                metrics={},
                probabilities={split or "other": COUNTS},
            )
            for split in ("test", "valid", "train", "")
        )
        assert drift_reference([test, valid, train, other], "a") == {"valid": COUNTS}
        assert drift_reference([other, train, test], "a") == {"test": COUNTS}
        assert drift_reference([train, other], "a") == {}


class TestEvaluations:
    def test_those_that_cannot_be_read_are_left_out_and_logged(self, tmp_path, caplog):
        write_evaluation(tmp_path, "test", DESCRIPTION.id)
        damaged = write_evaluation(tmp_path, "valid", DESCRIPTION.id) / "metrics.json"
        sound = json.loads(damaged.read_text())
        short, negative = (json.dumps({**sound, "probabilities": {"wrist": of}}) for of in ([1], [-1] * 20))
        for content in (b"{", json.dumps({"metrics": {}}).encode(), b"\xff", short.encode(), negative.encode()):
            damaged.write_bytes(content)
            caplog.clear()
            (found,) = read_evaluations(str(tmp_path / "ensemble" / "ensemble.json"), DESCRIPTION.id)
            assert found.data.split == "test"
            assert str(damaged) in caplog.text
        damaged.unlink()
        assert len(read_evaluations(str(tmp_path / "ensemble"), DESCRIPTION.id)) == 1

    @pytest.mark.parametrize("uri", ["/nowhere/at/all/ensemble", "ftp://host/runs/a/ensemble"])
    def test_none_are_found_where_nothing_lies(self, uri):
        assert read_evaluations(uri, DESCRIPTION.id) == []

    def test_those_of_the_next_ensemble_come_with_it(self, tmp_path):
        write_evaluation(tmp_path / "next", "test", Calibrated.description.id)
        app = build_api(MeanGray())
        releases = Releases(app.state.answers, lambda _: Calibrated(), "first", "first", Passes())
        asyncio.run(releases.change(Release(ensemble=str(tmp_path / "next" / "ensemble"))))
        card = Client(app).get("/v1/ensemble").json()
        assert card["id"] == Calibrated.description.id
        assert [one["data"]["split"] for one in card["metrics"]] == ["test"]
