"""Views that cannot be read, left out where the caller asks for it."""

import hashlib
import io
import json
import zipfile

import pytest

from serve.api import PREDICT_DICOM_PATH, PREDICT_PATH
from serve.record import AuditRecord
from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import LEFT, RIGHT, client_of, post, problem_of
from tests.unit.recorded import client_with, rows_of

LEAVE_OUT = "?damaged=leave_out"
CUT = ("cut.png", LEFT[:-40])
SOUND = [("left.png", LEFT), ("right.png", RIGHT)]


@pytest.fixture(scope="module")
def client():
    return client_of()


def zipped(*files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return file.getvalue()


def test_the_answer_is_that_of_the_other_views_and_a_warning_names_view_and_reason(client):
    answer = post(client, SOUND[0], CUT, SOUND[1], query=LEAVE_OUT, study_type="hand").json()
    (warning,) = answer.pop("warnings")
    assert warning.startswith("cut.png: left out, for it cannot be read: unreadable image")
    expected = post(client, *SOUND, study_type="hand").json()
    assert expected.pop("warnings") == []
    assert answer == expected


@pytest.mark.parametrize("query", ["", "?damaged=refuse"])
def test_without_being_asked_the_study_is_refused(client, query):
    problem = problem_of(post(client, *SOUND, CUT, query=query))
    assert (problem["status"], problem["view"]) == (422, "cut.png")


def test_sound_studies_are_answered_the_same(client):
    assert post(client, *SOUND, query=LEAVE_OUT).json() == post(client, *SOUND).json()


def test_a_study_of_which_nothing_is_left_is_refused_with_each_reason(client):
    problem = problem_of(post(client, CUT, ("note.txt", b"fell"), query=LEAVE_OUT))
    assert (problem["status"], problem["type"]) == (422, "urn:mura-ray:problem:damaged-view")
    assert problem["detail"].startswith("of 2 views none can be read. cut.png: left out")
    assert "note.txt: left out, for it cannot be read: not a PNG or JPEG image" in problem["detail"]


def test_views_in_a_zip_are_left_out_too_and_a_damaged_zip_is_refused(client):
    packed = zipped(*SOUND, CUT)
    answer = post(client, ("study.zip", packed), query=LEAVE_OUT).json()
    assert [view["name"] for view in answer["views"]] == ["left.png", "right.png"]
    assert answer["warnings"][0].startswith("cut.png: left out")
    problem = problem_of(post(client, SOUND[0], ("study.zip", packed[:-9]), query=LEAVE_OUT))
    assert problem["type"] == "urn:mura-ray:problem:damaged-zip"


def test_views_that_are_left_out_count_for_the_limits():
    problem = problem_of(post(client_of(views=2), ("study.zip", zipped(CUT, *SOUND)), query=LEAVE_OUT))
    assert problem["type"] == "urn:mura-ray:problem:too-many-views"


def test_in_a_worklist_it_holds_for_each_study(client):
    names = [("a/left.png", LEFT), ("a/cut.png", CUT[1]), ("b/cut.png", CUT[1])]
    response = client.post(WORKLIST_PATH + LEAVE_OUT, files=[("views", view) for view in names])
    *studies, end = [json.loads(line) for line in response.text.splitlines()]
    answer = next(line["answer"] for line in studies if line["study"] == "a")
    assert [view["name"] for view in answer["views"]] == ["a/left.png"]
    assert answer["warnings"][0].startswith("a/cut.png: left out")
    assert ([entry["study"] for entry in end["worklist"]], end["failed"]) == (["a"], ["b"])


def test_the_record_has_every_file_that_was_sent_and_the_views_that_were_predicted(tmp_path):
    url = f"sqlite:///{tmp_path}/audit.sqlite3"
    client = client_with(AuditRecord(url))
    answer = post(client, SOUND[0], CUT, query=LEAVE_OUT, study_type="hand").json()
    post(client, SOUND[0], CUT)
    post(client, CUT, query=LEAVE_OUT)
    answered, refused, nothing_left = rows_of(url)
    assert json.loads(answered["files"]) == [hashlib.sha256(content).hexdigest() for content in (LEFT, CUT[1])]
    assert json.loads(answered["views"]) == [answer["views"][0]["probability"]]
    assert (answered["status"], answered["num_warnings"]) == (200, 1)
    for row in (refused, nothing_left):
        assert (row["status"], row["problem"]) == (422, "urn:mura-ray:problem:damaged-view")


def test_another_word_lists_those_that_are_known(client):
    problem = problem_of(post(client, query="?damaged=ignore"))
    assert problem["status"] == 422
    assert all(word in problem["detail"] for word in ("damaged", "refuse", "leave_out"))


def test_openapi_describes_it_wherever_it_holds(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in (PREDICT_PATH, PREDICT_DICOM_PATH, WORKLIST_PATH):
        (damaged,) = [one for one in paths[path]["post"]["parameters"] if one["name"] == "damaged"]
        assert (damaged["schema"]["enum"], damaged["schema"]["default"]) == (["refuse", "leave_out"], "refuse")
