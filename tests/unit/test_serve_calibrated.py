"""An ensemble that carries a calibration: what its answers have beside the probability."""

import json

import pytest
from scipy.special import expit, logit

from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import LEFT, RIGHT, Calibrated, client_of, encoded, gradient, post

POOLED = "the one over all study types is used"


@pytest.fixture(scope="module")
def client():
    return client_of(Calibrated())


@pytest.mark.parametrize(
    ("study_type", "slope", "intercept", "warning"),
    [
        ({"study_type": "wrist"}, 1, -1, None),
        ({"study_type": "hand"}, 2, 0, f"the study type hand has no calibration of its own, so {POOLED}"),
        ({}, 2, 0, POOLED),
    ],
)
def test_the_calibrated_probability_is_the_study_types_or_the_pooled_one_and_says_so(
    client, study_type, slope, intercept, warning
):
    answer = post(client, ("a.png", RIGHT), **study_type).json()
    expected = expit(slope * logit(answer["probability"]) + intercept)
    assert answer["calibrated_probability"] == pytest.approx(expected, abs=1e-9)
    assert abs(expected - answer["probability"]) > 0.05
    assert answer["warnings"][bool(not study_type) :] == ([f"calibrated_probability: {warning}"] if warning else [])
    assert ["not known" in one for one in answer["warnings"]].count(True) == (not study_type)


def test_probability_decision_and_threshold_stay_the_papers(client):
    kept = ("probability", "abnormal", "threshold", "views", "members")
    view = ("a.png", encoded(gradient(30, 20, low=20)))
    answer = post(client, view, study_type="wrist").json()
    plain = post(client_of(), view, study_type="wrist").json()
    assert {name: answer[name] for name in kept} == {name: plain[name] for name in kept}
    assert (answer["abnormal"], answer["calibrated_probability"] < answer["threshold"]) == (True, True)


def test_the_worklist_has_it_and_is_ordered_by_probability(client):
    files = [("views", ("dark/a.png", LEFT)), ("views", ("light/a.png", RIGHT))]
    *studies, end = [json.loads(line) for line in client.post(WORKLIST_PATH, files=files).text.splitlines()]
    found = {line["study"]: line["answer"]["calibrated_probability"] for line in studies}
    assert [(entry["study"], entry["calibrated_probability"]) for entry in end["worklist"]] == [
        ("light", found["light"]),
        ("dark", found["dark"]),
    ]
    assert None not in found.values()


def test_openapi_describes_it(client):
    fields = client.get("/openapi.json").json()["components"]["schemas"]["StudyAnswer"]
    assert "calibrated_probability" in fields["required"]
    assert {"type": "null"} in fields["properties"]["calibrated_probability"]["anyOf"]
