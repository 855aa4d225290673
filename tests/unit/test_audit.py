import csv
import sqlite3

import pytest

from serve import audit
from serve.audit import verify
from serve.exchange import Exchange
from serve.record import AUDIT, FIRST, refusal_row
from tests.unit.api_client import post
from tests.unit.recorded import client_with, rows_of


class TestVerify:
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
    def test_who_gets_around_the_triggers_is_found_out(self, record_url, record_path, filled, statement, reason):
        num_rows, head = verify(record_url)
        assert num_rows == 5
        connection = sqlite3.connect(record_path)
        for trigger in ("audit_no_update", "audit_no_delete", "audit_in_order"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.executescript(statement)
        connection.close()
        with pytest.raises(ValueError, match=reason):
            verify(record_url, head)

    def test_an_older_newest_hash_is_found_in_a_longer_record(self, record_url, record, filled):
        _, head = verify(record_url)
        record.append(refusal_row(Exchange("0"), 429))
        num_rows, newer = verify(record_url, head)
        assert num_rows == 6
        assert newer != head


class TestCommand:
    def test_verifies(self, record, record_url, capsys):
        post(client_with(record))
        assert audit.main(["verify", "--url", record_url]) == 0
        out = capsys.readouterr().out
        assert out.startswith("1 rows, none changed or missing")
        head = out.split()[-1]
        assert audit.main(["verify", "--url", record_url, "--head", head]) == 0
        capsys.readouterr()
        assert audit.main(["verify", "--url", record_url, "--head", FIRST]) == 1
        assert "rows were cut off" in capsys.readouterr().err

    def test_exports_all_rows(self, record, record_url, tmp_path, capsys):
        client = client_with(record)
        post(client)
        post(client, ("a.png", b"text"))
        assert audit.main(["export", "--url", record_url, "--csv", str(tmp_path / "audit.csv")]) == 0
        with (tmp_path / "audit.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["status"] for row in rows] == ["200", "422"]
        assert list(rows[0]) == AUDIT.columns.keys()
        assert float(rows[0]["probability"]) == rows_of(record_url)[0]["probability"]
        assert audit.main(["export", "--url", record_url, "--csv", "-"]) == 0
        assert capsys.readouterr().out.count("\n") == 3

    def test_makes_no_record_where_there_is_none(self, tmp_path, capsys):
        assert audit.main(["verify", "--url", f"sqlite:///{tmp_path}/none.sqlite3"]) == 1
        assert "there is no audit record" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
