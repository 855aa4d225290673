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
from serve.api import PREDICT_PATH, build_api
from serve.audit import verify
from serve.exchange import Exchange
from serve.record import AuditRecord, RecordError, location, refusal_row
from tests.unit.api_client import LEFT, MeanGray, post
from tests.unit.recorded import client_with, rows_of

POSTGRES = next(iter(Path("/usr/lib/postgresql").glob("*/bin/postgres")), shutil.which("postgres"))


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


def append_in_two_processes(processes, url, num_rows):
    """So many rows of each of the callers a and b."""
    writers = [processes.Process(target=append_many, args=(url, caller, num_rows)) for caller in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0


def answer_until_killed(url, port):
    uvicorn.run(build_api(MeanGray(), record=AuditRecord(url)), port=port, log_level="critical")


def ask_until_gone(server, port, answered):
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


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have all modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what it cannot import beforehand it skips silently
        forkserver.ensure_running()
    return context


class TestChain:
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
    def test_the_database_refuses_to_change_a_row(self, record_url, record_path, filled, statement):
        connection = sqlite3.connect(record_path)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
        connection.close()
        assert verify(record_url)[0] == 5

    def test_goes_on_when_it_is_opened_again(self, record_url, filled):
        record = AuditRecord(record_url)
        record.append(refusal_row(Exchange("0"), 429))
        record.close()
        assert verify(record_url)[0] == 6

    def test_holds_when_two_processes_with_four_threads_each_write(self, record_url, processes):
        append_in_two_processes(processes, record_url, num_rows=100)
        assert verify(record_url)[0] == 200
        assert Counter(row["caller"] for row in rows_of(record_url)) == {"a": 100, "b": 100}

    def test_every_answer_a_client_got_is_in_it_after_kills_at_random_moments(self, record_url, processes):
        answered, delays = [], random.Random(0)
        for _ in range(5):
            port = free_port()
            server = processes.Process(target=answer_until_killed, args=(record_url, port), daemon=True)
            server.start()
            clients = [threading.Thread(target=ask_until_gone, args=(server, port, answered)) for _ in range(4)]
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
        verify(record_url)
        recorded = [row["request_id"] for row in rows_of(record_url) if row["status"] == 200]
        assert set(answered) <= set(recorded)
        assert len(recorded) == len(set(recorded))


def test_a_row_that_cannot_be_written_takes_no_other_with_it_for_ever(record_url, record_path, caplog):
    caplog.set_level(logging.ERROR)
    record = AuditRecord(record_url, busy_s=0.1)
    other = sqlite3.connect(record_path, isolation_level=None)
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
    assert verify(record_url)[0] == 1


class TestLocation:
    def test_a_new_file_and_its_folder_are_their_owners_alone(self, record_path, record):
        record.append(refusal_row(Exchange("0"), 429))
        assert {file.name for file in record_path.parent.iterdir()} > {record_path.name}
        assert {file.stat().st_mode & 0o777 for file in record_path.parent.iterdir()} == {0o600}
        assert record_path.parent.stat().st_mode & 0o777 == 0o700

    def test_is_the_environments_or_a_file_in_the_home_folder(self, monkeypatch):
        monkeypatch.setenv("MURA_AUDIT", "sqlite:////a/b")
        assert location() == "sqlite:////a/b"
        monkeypatch.setenv("MURA_AUDIT", "")
        monkeypatch.setenv("HOME", "/home/someone")
        assert location() == "sqlite:////home/someone/.local/state/mura_ray/audit.sqlite3"

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


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of its own."""
    folder, port = Path(tempfile.mkdtemp(prefix="mura-postgres-", dir="/tmp")), free_port()
    user = []
    if os.geteuid() == 0:  # as which Postgres does not run
        shutil.chown(folder, "nobody")
        # not subprocess's own user=: it forks where it else would vfork, and numba then waits for ever when Python ends
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    program = Path(str(POSTGRES)).resolve()
    initdb = program.with_name("initdb")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(
        [*user, initdb, "-D", folder / "data", "-U", "mura", "--auth=trust", "--no-sync"], check=True, **quiet
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
        response = post(client_with(record))
        append_in_two_processes(processes, url, num_rows=40)
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
