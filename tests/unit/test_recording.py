import asyncio
import hashlib
import json
import logging
import sqlite3

import httpx
import pytest

from serve.access import TokenFile
from serve.api import PREDICT_PATH, build_api
from serve.audit import verify
from serve.limits import Limits
from serve.record import AuditRecord
from serve.recording import RecordedRefusals
from serve.tokens import add_token
from tests.unit.api_client import LEFT, RIGHT, Broken, Client, MeanGray, post, problem_of
from tests.unit.recorded import client_with, rows_of

NAME = "MILLER"


@pytest.fixture
def client(record):
    return client_with(record)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class TestAnswers:
    def test_a_row_holds_what_was_answered_and_of_the_files_only_their_hashes(self, client, record_url):
        response = post(client, ("left.png", LEFT), ("right.png", RIGHT), ("again.png", LEFT), study_type="wrist")
        answer, (row,) = response.json(), rows_of(record_url)
        hashes = [sha256(LEFT), sha256(RIGHT), sha256(LEFT)]
        assert row["request_id"] == response.headers["x-request-id"]
        assert (row["seq"], row["caller"], row["status"], row["problem"]) == (1, "loopback", 200, None)
        assert json.loads(row["files"]) == hashes
        assert row["study_key"] == sha256("".join(sorted(hashes)).encode())
        assert json.loads(row["views"]) == [view["probability"] for view in answer["views"]]
        assert json.loads(row["members"]) == [[one["trial"], one["probability"]] for one in answer["members"]]
        for name in ("study_type", "probability", "threshold", "abnormal"):
            assert row[name] == answer[name]
        assert (row["ensemble"], row["num_warnings"]) == (answer["ensemble"]["id"], 1)
        assert row["time"].endswith("+00:00")
        assert 0 < row["duration_ms"] < 60_000

    def test_the_same_study_has_the_same_key_whatever_its_files_are_called_and_in_which_order(self, client, record_url):
        post(client, ("a.png", LEFT), ("b.png", RIGHT))
        post(client, ("d.png", RIGHT), ("c.png", LEFT))
        post(client, ("c.png", LEFT))
        first, second, third = [row["study_key"] for row in rows_of(record_url)]
        assert first == second != third

    def test_the_caller_is_the_name_of_the_token(self, record, record_url, tmp_path):
        secret = add_token(tmp_path / "tokens.json", "pacs")
        client = Client(build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record))
        post(client, headers={"Authorization": f"Bearer {secret}"})
        assert [row["caller"] for row in rows_of(record_url)] == ["pacs"]
        assert secret not in str(rows_of(record_url))

    def test_the_row_is_there_before_the_answer_is_sent(self, record, record_url):
        num_rows = []

        async def watched(scope, receive, send):
            async def watch(message):
                num_rows.append(len(rows_of(record_url)))
                await send(message)

            await api(scope, receive, watch)

        api = build_api(MeanGray(), record=record)
        post(Client(watched))
        assert num_rows == [1, 1]

    def test_an_answer_that_cannot_be_recorded_is_not_given(self, record_url, record_path, caplog):
        client = client_with(AuditRecord(record_url, busy_s=0.2))
        other = sqlite3.connect(record_path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        problem = problem_of(post(client))
        assert (problem["status"], problem["type"]) == (503, "urn:mura-ray:problem:not-recorded")
        assert "locked" in caplog.text
        other.execute("ROLLBACK")
        other.close()
        assert post(client).status_code == 200
        assert [row["status"] for row in rows_of(record_url)] == [200]

    def test_every_answer_is_recorded_once_when_many_come_at_once(self, record, record_url):
        api = build_api(MeanGray(), Limits(predictions=40), record=record)

        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://server") as client:
                files = {"views": ("a.png", LEFT)}
                return await asyncio.gather(*[client.post(PREDICT_PATH, files=files) for _ in range(40)])

        responses = asyncio.run(ask())
        assert {response.status_code for response in responses} == {200}
        answered = sorted(response.headers["x-request-id"] for response in responses)
        assert sorted(row["request_id"] for row in rows_of(record_url)) == answered
        assert verify(record_url)[0] == 40


class TestRefusals:
    @pytest.mark.parametrize(
        ("predictor", "content", "status", "problem"),
        [
            (MeanGray, b"text", 422, "urn:mura-ray:problem:damaged-view"),
            (Broken, LEFT, 500, "about:blank"),
        ],
    )
    def test_a_study_that_is_refused_has_a_row_without_details(
        self, record, record_url, predictor, content, status, problem
    ):
        response = post(client_with(record, predictor()), ("a.png", content))
        (row,) = rows_of(record_url)
        assert (row["status"], row["problem"], row["request_id"]) == (status, problem, response.headers["x-request-id"])
        assert all(row[name] is None for name in ("study_key", "files", "probability", "views", "ensemble"))

    def test_pages_that_are_not_there_have_none(self, client, record_url):
        assert client.get("/nowhere").status_code == 404
        assert rows_of(record_url) == []

    def test_strangers_are_counted_instead_of_filling_the_disk(self, record, record_url, tmp_path, monkeypatch):
        add_token(tmp_path / "tokens.json", "pacs")
        client = Client(build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record))
        now = 1000.0
        monkeypatch.setattr("serve.recording.monotonic", lambda: now)
        for _ in range(5):
            assert post(client).status_code == 401
        now += 2
        assert client.get("/v1/ensemble").status_code == 401
        assert [(row["status"], row["num_requests"], row["caller"]) for row in rows_of(record_url)] == [
            (401, 1, "stranger"),
            (401, 5, "stranger"),
        ]

    def test_strangers_are_recorded_though_no_other_comes(self, record, record_url, tmp_path, monkeypatch):
        add_token(tmp_path / "tokens.json", "pacs")
        api = build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record)
        monkeypatch.setattr(RecordedRefusals, "STRANGERS_EVERY_S", 0.3)

        async def scenario():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://server") as client:
                for _ in range(4):
                    await client.get("/v1/ensemble")
            while sum(row["num_requests"] for row in rows_of(record_url)) < 4:
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(scenario(), 30))

    def test_strangers_are_recorded_at_the_end(self, record, record_url, tmp_path):
        add_token(tmp_path / "tokens.json", "pacs")
        api = build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record)
        client = Client(api)
        for _ in range(4):
            client.get("/v1/ensemble")

        async def shut_down():
            messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

            async def receive():
                return next(messages)

            async def send(_):
                pass

            await api({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

        asyncio.run(shut_down())
        assert sum(row["num_requests"] for row in rows_of(record_url)) == 4

    def test_is_given_though_it_cannot_be_recorded(self, record_url, record_path):
        client = client_with(AuditRecord(record_url, busy_s=0.1))
        other = sqlite3.connect(record_path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert post(client, ("a.png", b"text")).status_code == 422
        other.close()
        assert rows_of(record_url) == []


class TestNames:
    def test_reach_neither_record_nor_log(self, record_path, record, caplog):
        caplog.set_level(0)
        for predictor in (MeanGray(), Broken()):
            client = client_with(record, predictor)
            for content in (LEFT, b"text"):
                post(client, (f"{NAME}_ANNA.png", content), headers={"X-Request-ID": f"{NAME}-1970-01-01"})
                post(client, ("a.png", content), study_type=NAME)
                client.post(f"{PREDICT_PATH}/{NAME}?patient={NAME}")
        assert len(rows_of(f"sqlite:///{record_path}")) == 12
        logged = "".join(map(logging.Formatter().format, (one for one in caplog.records if one.name != "httpx")))
        assert "RuntimeError" in logged
        held = logged.encode() + b"".join(file.read_bytes() for file in record_path.parent.iterdir())
        assert b"loopback" in held
        assert NAME.encode() not in held
