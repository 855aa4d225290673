import asyncio
import csv
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from sqlalchemy.exc import DBAPIError

from mura_ray.ports import free_port
from serve import audit
from serve.access import TokenFile
from serve.api import PREDICT_PATH, build_api
from serve.audit import verify
from serve.exchange import Exchange
from serve.limits import Limits
from serve.record import AUDIT, FIRST, AuditRecord, RecordError, read_rows, refusal_row
from serve.tokens import add_token
from tests.unit.api_client import LEFT, RIGHT, Broken, Client, MeanGray, problem_of

NAME = "MILLER"
POSTGRES = next(iter(Path("/usr/lib/postgresql").glob("*/bin/postgres")), shutil.which("postgres"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "audit.sqlite3"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def record(url):
    record = AuditRecord(url)
    yield record
    record.close()


@pytest.fixture
def client(record):
    return Client(build_api(MeanGray(), record=record))


def post(client, *views, headers=None, **data):
    files = [("views", view) for view in views or [("a.png", LEFT)]]
    return client.post(PREDICT_PATH, files=files, data=data, headers=headers)


def rows_of(url):
    return list(read_rows(url))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def append_many(url, caller, num_rows):
    """Rows of four threads of one process."""
    record = AuditRecord(url)

    def append():
        for _ in range(num_rows // 4):
            record.append(refusal_row(Exchange("0", caller=caller), 429))

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.close()


def answer_until_killed(url, port):
    uvicorn.run(build_api(MeanGray(), record=AuditRecord(url)), port=port, log_level="critical")


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have all modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_audit"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what it cannot import beforehand it skips silently
        forkserver.ensure_running()
    return context


class TestAnswers:
    def test_a_row_holds_what_was_answered_and_of_the_files_only_their_hashes(self, client, url):
        response = post(client, ("left.png", LEFT), ("right.png", RIGHT), ("again.png", LEFT), study_type="wrist")
        answer, (row,) = response.json(), rows_of(url)
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

    def test_the_same_study_has_the_same_key_whatever_its_files_are_called_and_in_which_order(self, client, url):
        post(client, ("a.png", LEFT), ("b.png", RIGHT))
        post(client, ("d.png", RIGHT), ("c.png", LEFT))
        post(client, ("c.png", LEFT))
        first, second, third = [row["study_key"] for row in rows_of(url)]
        assert first == second != third

    def test_the_caller_is_the_name_of_the_token(self, record, url, tmp_path):
        secret = add_token(tmp_path / "tokens.json", "pacs")
        client = Client(build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record))
        post(client, headers={"Authorization": f"Bearer {secret}"})
        assert [row["caller"] for row in rows_of(url)] == ["pacs"]
        assert secret not in str(rows_of(url))

    def test_the_row_is_there_before_the_answer_is_sent(self, record, url):
        num_rows = []

        async def watched(scope, receive, send):
            async def watch(message):
                num_rows.append(len(rows_of(url)))
                await send(message)

            await api(scope, receive, watch)

        api = build_api(MeanGray(), record=record)
        post(Client(watched))
        assert num_rows == [1, 1]

    def test_an_answer_that_cannot_be_recorded_is_not_given(self, url, path, caplog):
        client = Client(build_api(MeanGray(), record=AuditRecord(url, busy_s=0.2)))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        problem = problem_of(post(client))
        assert (problem["status"], problem["type"]) == (503, "urn:mura-ray:problem:not-recorded")
        assert "locked" in caplog.text
        other.execute("ROLLBACK")
        other.close()
        assert post(client).status_code == 200
        assert [row["status"] for row in rows_of(url)] == [200]

    def test_every_answer_is_recorded_once_when_many_come_at_once(self, record, url):
        api = build_api(MeanGray(), Limits(predictions=40), record=record)

        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://server") as client:
                files = {"views": ("a.png", LEFT)}
                return await asyncio.gather(*[client.post(PREDICT_PATH, files=files) for _ in range(40)])

        responses = asyncio.run(ask())
        assert {response.status_code for response in responses} == {200}
        answered = sorted(response.headers["x-request-id"] for response in responses)
        assert sorted(row["request_id"] for row in rows_of(url)) == answered
        assert verify(url)[0] == 40


class TestRefusals:
    @pytest.mark.parametrize(
        ("predictor", "content", "status", "problem"),
        [
            (MeanGray, b"text", 422, "urn:mura-ray:problem:damaged-view"),
            (Broken, LEFT, 500, "about:blank"),
        ],
    )
    def test_a_study_that_is_refused_has_a_row_without_details(self, record, url, predictor, content, status, problem):
        response = post(Client(build_api(predictor(), record=record)), ("a.png", content))
        (row,) = rows_of(url)
        assert (row["status"], row["problem"], row["request_id"]) == (status, problem, response.headers["x-request-id"])
        assert all(row[name] is None for name in ("study_key", "files", "probability", "views", "ensemble"))

    def test_pages_that_are_not_there_have_none(self, client, url):
        assert client.get("/nowhere").status_code == 404
        assert rows_of(url) == []

    def test_strangers_are_counted_instead_of_filling_the_disk(self, record, url, tmp_path, monkeypatch):
        add_token(tmp_path / "tokens.json", "pacs")
        client = Client(build_api(MeanGray(), tokens=TokenFile(tmp_path / "tokens.json"), record=record))
        now = 1000.0
        monkeypatch.setattr("serve.recording.monotonic", lambda: now)
        for _ in range(5):
            assert post(client).status_code == 401
        now += 2
        assert client.get("/v1/ensemble").status_code == 401
        assert [(row["status"], row["num_requests"], row["caller"]) for row in rows_of(url)] == [
            (401, 1, "stranger"),
            (401, 5, "stranger"),
        ]

    def test_is_given_though_it_cannot_be_recorded(self, url, path):
        client = Client(build_api(MeanGray(), record=AuditRecord(url, busy_s=0.1)))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert post(client, ("a.png", b"text")).status_code == 422
        other.close()


class TestNames:
    def test_reach_neither_record_nor_log(self, path, record, caplog):
        caplog.set_level(0)
        for predictor in (MeanGray(), Broken()):
            client = Client(build_api(predictor, record=record))
            for content in (LEFT, b"text"):
                post(client, (f"{NAME}_ANNA.png", content), headers={"X-Request-ID": f"{NAME}-1970-01-01"})
                post(client, ("a.png", content), study_type=NAME)
                client.post(f"{PREDICT_PATH}/{NAME}?patient={NAME}")
        assert len(rows_of(f"sqlite:///{path}")) == 12
        logged = "".join(map(logging.Formatter().format, (one for one in caplog.records if one.name != "httpx")))
        assert "out of memory" in logged
        held = logged.encode() + b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert b"loopback" in held
        assert NAME.encode() not in held


class TestChain:
    @pytest.fixture
    def filled(self, record):
        for status in (429, 413, 429, 422, 429):
            record.append(refusal_row(Exchange("0"), status))

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE audit SET caller = 'nobody'",
            "DELETE FROM audit",
            "DELETE FROM audit WHERE seq = 5",
            "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
            "REPLACE INTO audit SELECT * FROM audit WHERE seq = 5",
        ],
    )
    def test_the_database_refuses_to_change_a_row(self, url, path, filled, statement):
        connection = sqlite3.connect(path)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
        connection.close()
        assert verify(url)[0] == 5

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            ("UPDATE audit SET caller = 'nobody' WHERE seq = 2", "row 2 of the audit record, or its hash, was changed"),
            ("UPDATE audit SET duration_ms = duration_ms + 0.001 WHERE seq = 5", "row 5 of the audit record"),
            ("UPDATE audit SET hash = upper(hash) WHERE seq = 3", "row 3 of the audit record"),
            ("UPDATE audit SET probability = 0 WHERE seq = 1", "row 1 of the audit record"),
            ("DELETE FROM audit WHERE seq = 3", "row 3 is missing"),
            ("DELETE FROM audit WHERE seq = 1", "row 1 is missing"),
            ("UPDATE audit SET seq = -seq; UPDATE audit SET seq = CASE seq WHEN -2 THEN 3 WHEN -3 THEN 2 ELSE -seq END",
             "row 2 of the audit record"),
            ("DELETE FROM audit WHERE seq = 5", "no row of the audit record has the hash"),
            ("DELETE FROM audit", "no row of the audit record has the hash"),
        ],
    )  # fmt: skip
    def test_who_gets_around_that_is_found_out(self, url, path, filled, statement, reason):
        num_rows, head = verify(url)
        assert num_rows == 5
        connection = sqlite3.connect(path)
        for trigger in ("audit_no_update", "audit_no_delete", "audit_in_order"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.executescript(statement)
        connection.close()
        with pytest.raises(ValueError, match=reason):
            verify(url, head)

    def test_an_older_newest_hash_is_found_in_a_longer_record(self, url, record, filled):
        _, head = verify(url)
        record.append(refusal_row(Exchange("0"), 429))
        num_rows, newer = verify(url, head)
        assert num_rows == 6
        assert newer != head

    def test_goes_on_when_it_is_opened_again(self, url, filled):
        record = AuditRecord(url)
        record.append(refusal_row(Exchange("0"), 429))
        record.close()
        assert verify(url)[0] == 6

    def test_holds_when_two_processes_with_four_threads_each_write(self, url, processes):
        writers = [processes.Process(target=append_many, args=(url, caller, 100)) for caller in ("a", "b")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(120)
            assert writer.exitcode == 0
        assert verify(url)[0] == 200
        assert Counter(row["caller"] for row in rows_of(url)) == {"a": 100, "b": 100}

    def test_every_answer_a_client_got_is_in_it_after_kills_at_random_moments(self, url, processes):
        answered, delays = [], random.Random(0)
        for _ in range(5):
            port = free_port()
            server = processes.Process(target=answer_until_killed, args=(url, port), daemon=True)
            server.start()
            clients = [threading.Thread(target=_ask_until_gone, args=(server, port, answered)) for _ in range(4)]
            for client in clients:
                client.start()
            num_before, end = len(answered), time.monotonic() + 60
            while len(answered) < num_before + 5:
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(delays.uniform(0, 0.3))
            os.kill(server.pid, signal.SIGKILL)
            for client in [server, *clients]:
                client.join(60)
        verify(url)
        recorded = [row["request_id"] for row in rows_of(url) if row["status"] == 200]
        assert len(answered) >= 25
        assert set(answered) <= set(recorded)
        assert len(recorded) == len(set(recorded))


def _ask_until_gone(server, port, answered):
    """Asks one study after the other, from before the server listens until it is killed."""
    while server.is_alive():
        try:
            files = {"views": ("a.png", LEFT)}
            response = httpx.post(f"http://127.0.0.1:{port}{PREDICT_PATH}", files=files, timeout=30)
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        if response.status_code == 200:
            answered.append(response.headers["x-request-id"])


class TestLocation:
    def test_a_new_file_and_its_folder_are_their_owners_alone(self, path, record):
        record.append(refusal_row(Exchange("0"), 429))
        assert {file.name for file in path.parent.iterdir()} > {path.name}
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700

    def test_is_the_environments_or_a_file_in_the_home_folder(self, monkeypatch):
        monkeypatch.setenv("MURA_AUDIT", "sqlite:////a/b")
        assert audit.location() == "sqlite:////a/b"
        monkeypatch.setenv("MURA_AUDIT", "")
        monkeypatch.setenv("HOME", "/home/someone")
        assert audit.location() == "sqlite:////home/someone/.local/state/mura_ray/audit.sqlite3"

    @pytest.mark.parametrize(
        "wrong",
        [
            "s3cret",
            "mysql://user:s3cret@host/database",
            "nonsense://user:s3cret@host/database",
            "postgresql+pg8000://user:s3cret@host:s3cret/database",
            "postgresql+pg8000://user:pass@s3cret@127.0.0.1:1/database",
            "postgresql+pg8000://user@127.0.0.1:1/database?password=s3cret",
            "postgresql+pg8000://user:s3cret@127.0.0.1:1/database",
            "postgresql+nodriver://user:s3cret@127.0.0.1:1/database",
            "postgresql+pg8000://user:s3cret@127.0.0.1:1",
            "sqlite://",
            "sqlite:////proc/nowhere/audit.sqlite3",
        ],
    )
    def test_one_that_cannot_be_opened_is_refused_without_its_password(self, wrong, caplog):
        with pytest.raises(ValueError, match=r"MURA_AUDIT|cannot open the audit record|no driver for") as raised:
            AuditRecord(wrong)
        assert "s3cret" not in "".join(traceback.format_exception(raised.value))
        assert "s3cret" not in caplog.text


class TestCommand:
    def test_verifies(self, client, url, capsys):
        post(client)
        assert audit.main(["verify", "--url", url]) == 0
        out = capsys.readouterr().out
        assert out.startswith("1 rows, none changed or missing")
        head = out.split()[-1]
        assert audit.main(["verify", "--url", url, "--head", head]) == 0
        capsys.readouterr()
        assert audit.main(["verify", "--url", url, "--head", FIRST]) == 1
        assert "rows were cut off" in capsys.readouterr().err

    def test_exports_all_rows(self, client, url, tmp_path, capsys):
        post(client)
        post(client, ("a.png", b"text"))
        assert audit.main(["export", "--url", url, "--csv", str(tmp_path / "audit.csv")]) == 0
        with (tmp_path / "audit.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["status"] for row in rows] == ["200", "422"]
        assert list(rows[0]) == AUDIT.columns.keys()
        assert float(rows[0]["probability"]) == rows_of(url)[0]["probability"]
        assert audit.main(["export", "--url", url, "--csv", "-"]) == 0
        assert capsys.readouterr().out.count("\n") == 3

    def test_makes_no_record_where_there_is_none(self, tmp_path, capsys):
        assert audit.main(["verify", "--url", f"sqlite:///{tmp_path}/none.sqlite3"]) == 1
        assert "there is no audit record" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of its own."""
    folder, port = Path(tempfile.mkdtemp(prefix="mura-postgres-", dir="/tmp")), free_port()
    user = []
    if os.geteuid() == 0:  # as which Postgres does not run
        shutil.chown(folder, "nobody")
        # not subprocess's own user=: it forks where it else would vfork, and numba then waits for ever when Python ends
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    program = str(Path(str(POSTGRES)).resolve())
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(
        [
            *user,
            str(Path(program).with_name("initdb")),
            "-D",
            folder / "data",
            "-U",
            "mura",
            "--auth=trust",
            "--no-sync",
        ],
        check=True,
        **quiet,
    )
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    server = subprocess.Popen([*user, program, "-D", folder / "data", *options], **quiet)
    try:
        yield f"postgresql+pg8000://mura:s3cret@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(folder)


@pytest.mark.skipif(POSTGRES is None, reason="no Postgres on this machine")
class TestPostgres:
    @pytest.fixture
    def url(self, postgres):
        end = time.monotonic() + 60
        while True:
            try:
                AuditRecord(postgres).close()
                return postgres
            except ValueError:
                assert time.monotonic() < end
                time.sleep(0.1)

    def test_holds_the_record_as_a_file_does(self, url, processes):
        record = AuditRecord(url)
        response = post(Client(build_api(MeanGray(), record=record)))
        writers = [processes.Process(target=append_many, args=(url, caller, 40)) for caller in ("a", "b")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(120)
            assert writer.exitcode == 0
        assert verify(url)[0] == 81
        row = rows_of(url)[0]
        assert (row["request_id"], row["abnormal"]) == (response.headers["x-request-id"], response.json()["abnormal"])
        assert row["probability"] == response.json()["probability"]
        record.close()
        engine = sa.create_engine(url)
        for statement in ("UPDATE audit SET caller = 'x'", "DELETE FROM audit WHERE seq = 81", "TRUNCATE audit"):
            with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
                connection.exec_driver_sql(statement)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER ALL")
            connection.exec_driver_sql("UPDATE audit SET caller = 'x' WHERE seq = 7")
        engine.dispose()
        with pytest.raises(ValueError, match="row 7 of the audit record"):
            verify(url)


def test_a_row_that_cannot_be_written_takes_no_other_with_it_for_ever(url, path, caplog):
    caplog.set_level(logging.ERROR)
    record = AuditRecord(url, busy_s=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failed = []

    def append():
        try:
            record.append(refusal_row(Exchange("0"), 429))
        except RecordError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=append) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(failed) == 8
    other.close()
    record.append(refusal_row(Exchange("0"), 429))
    record.close()
    assert verify(url)[0] == 1
