import json

import numpy as np
import pytest

from serve.api import build_api
from serve.limits import Limits
from serve.record import AuditRecord, read_rows
from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import LEFT, Broken, Client, MeanGray, client_of, encoded, problem_of

DARK, LIGHT = (encoded(np.full((20, 30), value, np.uint8)) for value in (40, 200))
STUDIES = [("a/front.png", DARK), ("a/side.png", LEFT), ("b/front.png", LIGHT), ("ward/c/front.png", DARK)]


def send(client, views=STUDIES, query=""):
    return client.post(WORKLIST_PATH + query, files=[("views", view) for view in views])


def lines_of(response):
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_each_study_has_its_answer_and_the_last_line_is_their_order():
    *studies, end = lines_of(send(client_of()))
    answers = {line["study"]: line["answer"] for line in studies}
    assert answers.keys() == {"a", "b", "ward/c"}
    assert [view["name"] for view in answers["a"]["views"]] == ["a/front.png", "a/side.png"]
    assert answers["b"]["views"][0]["cam"] is None
    assert [entry["study"] for entry in end["worklist"]] == ["b", "a", "ward/c"]
    assert end["worklist"][0] == {
        "study": "b", "probability": pytest.approx(200 / 255), "calibrated_probability": None, "abnormal": True
    }  # fmt: skip
    assert end["failed"] == []


def test_maps_come_where_they_are_asked_for():
    line, _ = lines_of(send(client_of(), [("a/x.png", LEFT)], "?cam=raw"))
    assert line["answer"]["views"][0]["cam"]["shape"] == [2, 3]


def test_a_study_that_cannot_be_read_fails_no_other():
    *studies, end = lines_of(send(client_of(), [*STUDIES, ("bad/front.png", b"text")]))
    (failed,) = [line for line in studies if "problem" in line]
    assert (failed["study"], failed["problem"]["status"], failed["problem"]["view"]) == ("bad", 422, "bad/front.png")
    assert end["failed"] == ["bad"]
    assert len(end["worklist"]) == 3


def test_a_fault_of_the_server_says_nothing_of_itself():
    line, end = lines_of(send(client_of(Broken()), [("a/x.png", LEFT)]))
    assert line["problem"]["status"] == 500
    assert "out of memory" not in json.dumps(line)
    assert end == {"worklist": [], "failed": ["a"]}


@pytest.mark.parametrize(
    ("views", "limits", "status", "reason"),
    [
        ([("front.png", LEFT)], {}, 422, "names no study"),
        (STUDIES, {"worklist_studies": 2}, 413, "3 studies, the limit is 2"),
        (STUDIES, {"views": 1}, 413, "a has 2 views, the limit is 1"),
        (STUDIES, {"worklist_bytes": 200}, 413, "more than 200 bytes"),
        (STUDIES, {"predictions": 0}, 429, "0 are in work"),
    ],
)
def test_a_worklist_over_a_limit_is_refused_as_a_whole(views, limits, status, reason):
    problem = problem_of(send(client_of(**limits), views))
    assert problem["status"] == status
    assert reason in problem["detail"]


def test_each_study_is_recorded(tmp_path):
    url = f"sqlite:///{tmp_path}/audit.sqlite3"
    client = Client(build_api(MeanGray(), Limits(), record=AuditRecord(url)))
    lines_of(send(client))
    rows = list(read_rows(url))
    assert [row["status"] for row in rows] == [200] * 3
    assert len({row["study_key"] for row in rows}) == 3
    assert len({row["request_id"] for row in rows}) == 1


def test_a_study_that_fails_is_recorded_too(tmp_path):
    url = f"sqlite:///{tmp_path}/audit.sqlite3"
    client = Client(build_api(MeanGray(), Limits(), record=AuditRecord(url)))
    lines_of(send(client, [("a/front.png", DARK), ("bad/front.png", b"text")]))
    rows = {row["status"]: row for row in read_rows(url)}
    assert rows.keys() == {200, 422}
    assert rows[422]["problem"] == "urn:mura-ray:problem:damaged-view"
    assert rows[422]["request_id"] == rows[200]["request_id"]
