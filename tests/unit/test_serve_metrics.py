import base64
import json
import math
import re
from pathlib import Path

import pytest

from serve.api import PREDICT_DICOM_PATH, build_api
from serve.inference_protocol import INFER_PATH
from serve.limits import Limits
from serve.metrics import (
    INSTRUMENTS,
    PREFIX,
    PROBABILITY,
    PROBABILITY_REFERENCE,
    PROBLEMS,
    SHADOW_DIFFERENCE,
    STAGE_SECONDS,
    VIEWS,
    Metrics,
    view_format,
)
from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import LEFT, Broken, Client, MeanGray, encoded, gradient, post
from tests.unit.dicom_files import dicom, phantom

DASHBOARD = Path(__file__).parents[2] / "serve" / "grafana.json"


class Recorded:
    """A client of an application whose records are kept."""

    def __init__(self, predictor=None, **limits):
        self.records = []
        metrics = Metrics(lambda *record: self.records.append(record))
        self.client = Client(build_api(predictor or MeanGray(), Limits(**limits), metrics=metrics))

    def of(self, instrument):
        return [(value, tags) for name, value, tags in self.records if name == instrument.name]


def test_a_prediction_is_counted_by_stage_probability_and_format():
    recorded = Recorded()
    answer = post(recorded.client, ("a", LEFT), ("b", encoded(gradient(9, 9), "JPEG")), study_type="hand").json()
    assert recorded.of(PROBABILITY) == [(answer["probability"], {"study_type": "hand"})]
    assert recorded.of(VIEWS) == [(1, {"format": "png"}), (1, {"format": "jpeg"})]
    stages = [tags["stage"] for _, tags in recorded.of(STAGE_SECONDS)]
    assert sorted(stages) == ["decode", "encode", "forward", "total", "wait"]
    assert recorded.of(PROBLEMS) == []


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([("a.png", b"text")], ("damaged-view", "422")),
        ([("a.png", LEFT)] * 3, ("invalid-request", "422")),
        ([("a.png", LEFT[:200] * 20)], ("view-too-large", "413")),
    ],
)
def test_problems_are_counted_by_kind(views, expected):
    recorded = Recorded(views=2, view_bytes=len(LEFT))
    post(recorded.client, *views)
    assert recorded.of(PROBLEMS) == [(1, dict(zip(("kind", "status"), expected, strict=True)))]
    assert recorded.of(PROBABILITY) == []
    assert "total" not in [tags["stage"] for _, tags in recorded.of(STAGE_SECONDS)]


def totals(recorded):
    return [tags["stage"] for _, tags in recorded.of(STAGE_SECONDS)].count("total")


def test_a_study_is_counted_by_whichever_interface_it_came():
    recorded = Recorded()
    view = [("views", ("a.dcm", dicom(phantom(8))))]
    assert recorded.client.post(PREDICT_DICOM_PATH, files=view).status_code == 200
    tensor = {"name": "views", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(LEFT).decode()]}
    assert recorded.client.post(INFER_PATH, json={"inputs": [tensor]}).status_code == 200
    assert totals(recorded) == 2
    assert recorded.of(PROBLEMS) == []


def test_studies_of_a_worklist_are_counted_one_by_one():
    recorded = Recorded()
    files = [("views", (name, content)) for name, content in [("a/1", LEFT), ("b/1", LEFT), ("c/1", b"text")]]
    assert recorded.client.post(WORKLIST_PATH, files=files).status_code == 200
    assert totals(recorded) == 2
    assert recorded.of(PROBLEMS) == [(1, {"kind": "damaged-view", "status": "422"})]


def test_studies_of_a_worklist_whose_time_is_up_are_counted_too():
    recorded = Recorded(worklist_work_s=0)
    recorded.client.post(WORKLIST_PATH, files=[("views", ("a/1", LEFT)), ("views", ("b/1", LEFT))])
    assert (1, {"kind": "time", "status": "503"}) in recorded.of(PROBLEMS)


def test_the_reference_is_the_share_of_studies_up_to_each_edge_and_of_no_type_that_it_lacks():
    shares = {}

    def record(name, value, tags):
        assert name == PROBABILITY_REFERENCE.name
        shares[tags["study_type"], tags["le"]] = value

    Metrics(record).reference({"hand": [1] * 9 + [3] * 10 + [4]})
    assert len(shares) == 7 * 20
    assert (shares["hand", "0.05"], shares["hand", "0.45"], shares["hand", "0.5"]) == (0.25, 0.25, 0.75)
    assert (shares["hand", "0.95"], shares["hand", "1.0"]) == (0.75, 1.0)
    assert all(math.isnan(value) for (study_type, _), value in shares.items() if study_type != "hand")


def test_a_fault_and_an_unknown_path_are_counted_by_status():
    recorded = Recorded(Broken())
    post(recorded.client, ("a.png", LEFT))
    recorded.client.get("/nothing")
    assert [tags["kind"] for _, tags in recorded.of(PROBLEMS)] == ["status-500", "status-404"]


def test_tags_are_those_of_the_instrument_and_name_no_file():
    recorded = Recorded()
    post(recorded.client, ("MILLER_ANNA.png", LEFT))
    post(recorded.client, ("MILLER_ANNA.png", b"text"))
    tags_of = {one.name: set(one.tags) for one in INSTRUMENTS if one != SHADOW_DIFFERENCE}  # test_serve_release has it
    assert {name for name, _, _ in recorded.records} == tags_of.keys()
    assert all(tags.keys() == tags_of[name] for name, _, tags in recorded.records)
    assert "MILLER" not in str(recorded.records)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(LEFT, "png"), (b"\xff\xd8\xff", "jpeg"), (bytes(128) + b"DICM\x02", "dicom"), (b"", "other")],
)
def test_formats_are_told_by_their_first_bytes(content, expected):
    assert view_format(content) == expected


def test_the_dashboard_asks_for_what_is_exported_and_shows_all_of_it():
    text = DASHBOARD.read_text()
    exported = {name for one in INSTRUMENTS for name in one.exported}
    asked = set(re.findall(rf"{PREFIX}mura_\w+", text))
    assert asked <= exported, asked - exported
    assert all(any(name in asked for name in one.exported) for one in INSTRUMENTS)
    tags = set(re.findall(r"\b(\w+)=~?\\\"", text)) | {
        tag for group in re.findall(r"by \(([\w, ]+)\)", text) for tag in group.split(", ")
    }
    assert tags <= {tag for one in INSTRUMENTS for tag in one.tags} | {"le", "deployment", "application"}


def test_the_dashboard_is_one_that_grafana_imports():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"]
    assert dashboard["id"] is None
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert all(target["expr"] and target["refId"] for panel in panels for target in panel["targets"])
