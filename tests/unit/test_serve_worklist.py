import asyncio
import gc
import json
import math
import threading
import weakref

import httpx
import numpy as np
import pytest

from serve import worklist
from serve.api import build_api
from serve.limits import Limits
from serve.problems import Problem
from serve.record import AuditRecord, read_rows
from serve.schemas import StudyAnswer
from serve.worklist import WORKLIST_PATH, WorklistResponse
from tests.unit.api_client import LEFT, Blocked, Broken, Client, MeanGray, client_of, encoded, post, problem_of

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


def test_it_may_have_as_many_files_as_its_studies_may_have_views_together():
    views = [(f"{study}/{view}.png", b"text") for study in range(64) for view in range(16)]
    *studies, end = lines_of(send(client_of(), views))
    assert (len(views), len(studies), len(end["failed"])) == (1024, 64, 64)
    assert problem_of(send(client_of(), [*views, ("64/0.png", b"text")]))["status"] == 400


async def never():
    raise AssertionError("late")


class Reader:
    """A client that reads a line when it is let, of a worklist of ten studies; knows which answers are in memory."""

    def __init__(self, answer):
        self.answers, self.lines = [], []
        self._answer = answer
        self._reads = asyncio.Semaphore(0)

    async def answer(self, _):
        answer = StudyAnswer(**(self._answer | {"probability": len(self.answers) / 10}))
        self.answers.append(weakref.ref(answer))
        return answer

    async def send(self, message):
        if body := message.get("body"):
            await self._reads.acquire()
            self.lines.append(json.loads(body))

    async def read(self, num_lines):
        for _ in range(num_lines):
            self._reads.release()
        for _ in range(500):  # whatever can go on has gone on
            await asyncio.sleep(0.001)

    def respond(self):
        response = WorklistResponse({f"s{place}": [] for place in range(10)}, self.answer, never, math.inf)
        return asyncio.create_task(response.stream_response(self.send))


def test_no_study_is_begun_while_the_client_does_not_read_and_no_answer_is_kept():
    answer = post(client_of()).json()

    async def scenario():
        reader = Reader(answer)
        response = reader.respond()
        await reader.read(0)
        begun = [len(reader.answers)]
        await reader.read(4)
        begun.append(len(reader.answers))
        gc.collect()
        kept = sum(answer() is not None for answer in reader.answers)
        await reader.read(7)
        await response
        return begun, kept, reader.lines

    begun, kept, lines = asyncio.run(scenario())
    assert begun == [3, 7]  # one is being read, and each that is in work has come to its end
    assert kept <= 3
    assert [entry["probability"] for entry in lines[-1]["worklist"]] == [place / 10 for place in reversed(range(10))]


async def begun(predictor):
    while predictor.num_running == 0:
        await asyncio.sleep(0.01)


def test_one_that_is_too_long_ends_itself_in_time_with_its_order(tmp_path):
    predictor, url = Blocked(), f"sqlite:///{tmp_path}/audit.sqlite3"
    limits = Limits(worklist_work_s=0.5)

    class Watched:
        """Lets the predictor go on once the last line was sent."""

        def __init__(self, api):
            self._api = api

        async def __call__(self, scope, receive, send):
            async def watched(message):
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    predictor.go.set()

            await self._api(scope, receive, watched)

    *studies, end = lines_of(send(Client(Watched(build_api(predictor, limits, record=AuditRecord(url))))))
    assert [line["study"] for line in studies] == ["a", "b", "ward/c"]
    assert {line["problem"]["type"] for line in studies} == {"urn:mura-ray:problem:time"}
    assert end == {"worklist": [], "failed": ["a", "b", "ward/c"]}
    assert [row["problem"] for row in read_rows(url)] == ["urn:mura-ray:problem:time"] * 3


def test_it_keeps_its_place_until_its_threads_have_ended_though_the_client_is_gone():
    predictor = Blocked()

    async def scenario():
        transport = httpx.ASGITransport(build_api(predictor, Limits(predictions=1)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            request = {"files": [("views", view) for view in STUDIES], "timeout": 60}
            gone = asyncio.create_task(client.post(WORKLIST_PATH, **request))
            await begun(predictor)
            gone.cancel()
            await asyncio.wait({gone})
            refused = await client.post(WORKLIST_PATH, **request)
            predictor.go.set()
            while (later := await client.post(WORKLIST_PATH, **request)).status_code == 429:
                await asyncio.sleep(0.01)
            return refused, later

    refused, later = asyncio.run(scenario())
    assert (refused.status_code, later.status_code) == (429, 200)


def test_lines_are_made_in_threads(monkeypatch):
    made_by = []

    def made(study, found):
        made_by.append(threading.current_thread())
        return line(study, found)

    line = worklist._line
    monkeypatch.setattr(worklist, "_line", made)
    lines_of(send(client_of()))
    assert len(made_by) == 3
    assert threading.main_thread() not in made_by


def test_a_client_that_is_gone_is_no_fault():
    async def answer(_):
        return Problem(title="", status=500, detail="")

    async def send_nowhere(_):
        raise ConnectionResetError

    response = WorklistResponse({"a": []}, answer, never, math.inf)
    with pytest.raises(ConnectionResetError):
        asyncio.run(response.stream_response(send_nowhere))
