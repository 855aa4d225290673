"""The append-only record of what was asked and answered: a row for each answer, each refusal, without pixels or names.

Each row holds the hash of its content and of the row before, so that a row which was changed or taken out shows
(`serve/audit.py`). Whoever may write the database may still write a whole new chain: keep its newest hash elsewhere.
Knows no HTTP; `serve/recording.py` calls it.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from serve.exchange import Exchange
from serve.schemas import StudyAnswer

DEFAULT_FILE = "~/.local/state/mura_ray/audit.sqlite3"
FIRST = "0" * 64
"""In the place of a hash before the first row."""

_BUSY_S = 10
_TIMEOUT = {"pysqlite": "timeout", "pg8000": "timeout", "psycopg": "connect_timeout", "psycopg2": "connect_timeout"}
"""What the drivers call the seconds that they wait: a row that waits for ever would hold up all requests."""

_LOCK = 0x6D757261  # "mura": the advisory lock by which Postgres lets one replica append at a time

_logger = logging.getLogger(__name__)

Row = dict[str, Any]

AUDIT = sa.Table(
    "audit",
    sa.MetaData(),
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False, comment="UTC, ISO 8601, when the row was made"),
    sa.Column("request_id", sa.Text, nullable=False, comment="the X-Request-ID of the answer"),
    sa.Column("caller", sa.Text, nullable=False, comment="name of the token, loopback, or stranger"),
    sa.Column("status", sa.Integer, nullable=False, comment="of HTTP"),
    sa.Column("problem", sa.Text, comment="type of the problem that was answered"),
    sa.Column("num_requests", sa.Integer, nullable=False, comment="1; strangers' refusals: those since the last"),
    sa.Column("duration_ms", sa.Double, nullable=False),
    sa.Column("study_key", sa.Text, comment="sha256 of the files' sha256, sorted"),
    sa.Column("files", sa.Text, comment="JSON: sha256 of each file, as sent"),
    sa.Column("ensemble", sa.Text),
    sa.Column("study_type", sa.Text),
    sa.Column("probability", sa.Double),
    sa.Column("threshold", sa.Double),
    sa.Column("abnormal", sa.Boolean),
    sa.Column("views", sa.Text, comment="JSON: probability of each view"),
    sa.Column("members", sa.Text, comment="JSON: [trial, probability] of each member"),
    sa.Column("num_warnings", sa.Integer),
    sa.Column("hash", sa.Text, nullable=False),
)

_TRIGGERS = {
    "sqlite": (
        "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
        "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
        # INSERT OR REPLACE removes rows without the trigger above
        "CREATE TRIGGER audit_in_order BEFORE INSERT ON audit "
        "WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit) "
        "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit record is append-only'; END $$",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
    ),
}
for _dialect, _statements in _TRIGGERS.items():
    for _statement in _statements:
        event.listen(AUDIT, "after_create", sa.DDL(_statement).execute_if(dialect=_dialect))


class RecordError(Exception):
    """The record takes no row; the text says why, for the server's log, without the database's password."""


def location() -> str:
    """The URL of the record: MURA_AUDIT, or a SQLite file in the home folder."""
    return os.environ.get("MURA_AUDIT") or f"sqlite:///{Path(DEFAULT_FILE).expanduser()}"


def answer_row(exchange: Exchange, files: Sequence[bytes], answer: StudyAnswer) -> Row:
    """The row of a study that is answered. It costs a hash of the files: call it in a thread.

    Args:
        exchange: the request's.
        files: their contents, as they were sent.
        answer: what the caller will get.
    """
    hashes = [hashlib.sha256(content).hexdigest() for content in files]
    return _row(exchange, 200) | {
        "study_key": hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest(),
        "files": _json(hashes),
        "ensemble": answer.ensemble.id,
        "study_type": answer.study_type,
        "probability": answer.probability,
        "threshold": answer.threshold,
        "abnormal": answer.abnormal,
        "views": _json([view.probability for view in answer.views]),
        "members": _json([[member.trial, member.probability] for member in answer.members]),
        "num_warnings": len(answer.warnings),
    }


def refusal_row(exchange: Exchange, status: int, num_requests: int = 1) -> Row:
    """The row of a request that got a problem for an answer."""
    return _row(exchange, status) | {"problem": exchange.problem, "num_requests": num_requests}


def _row(exchange: Exchange, status: int) -> Row:
    return dict.fromkeys(AUDIT.columns.keys()) | {
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "request_id": exchange.request_id,
        "caller": exchange.caller,
        "status": status,
        "num_requests": 1,
        "duration_ms": round(exchange.duration_ms, 3),
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def chained_hash(previous: str, row: Mapping[str, Any]) -> str:
    """The hash of a row after the row with the hash `previous`."""
    content = [row[column.name] for column in AUDIT.columns if column.name != "hash"]
    return hashlib.sha256(_json([previous, *content]).encode()).hexdigest()


class AuditRecord:
    """The record, open for appending; several processes may have it open at a time."""

    def __init__(self, url: str, busy_s: float = _BUSY_S) -> None:
        """Opens the record, and makes it where there is none.

        Args:
            url: `sqlite:////path`, `postgresql+pg8000://...` or another driver's for these two databases.
            busy_s: how long a row waits for other processes' rows.

        Raises:
            ValueError: the database is none of these, or cannot be opened or made.
        """
        parsed = _parse(url)
        self._engine = _engine(parsed, busy_s)
        self._pending: list[tuple[Row, Future[None]]] = []
        self._pending_lock, self._write_lock = threading.Lock(), threading.Lock()
        try:
            _make_file(parsed)
            with self._appending() as connection:
                AUDIT.metadata.create_all(connection)
        except (SQLAlchemyError, OSError) as error:
            raise ValueError(f"cannot open the audit record {_shown(parsed)}: {_reason(error, parsed)}") from None
        self._url = parsed

    def append(self, row: Row) -> None:
        """Writes a row; when it returns, the row outlives the process and the power.

        Rows that wait for the disk are written together by the thread whose turn it is: one flush for all of them.

        Raises:
            RecordError: it could not be written.
        """
        written: Future[None] = Future()
        with self._pending_lock:
            self._pending.append((row, written))
        with self._write_lock:
            with self._pending_lock:
                batch, self._pending = self._pending, []
            if batch:
                self._write(batch)
        written.result()

    def _write(self, batch: Sequence[tuple[Row, Future[None]]]) -> None:
        try:
            with self._appending() as connection:
                newest = connection.execute(_NEWEST).first()
                seq, previous = newest if newest else (0, FIRST)
                rows = []
                for row, _ in batch:
                    seq += 1
                    row = row | {"seq": seq}
                    previous = chained_hash(previous, row)
                    rows.append(row | {"hash": previous})
                connection.execute(AUDIT.insert(), rows)
        except Exception as error:  # whatever it was: each thread of the batch waits to hear of it
            reason = f"cannot write to the audit record {_shown(self._url)}: {_reason(error, self._url)}"
            _logger.error("%s", reason)
            self._engine.dispose()  # a connection that failed midway may hold the rest of an answer
            for _, written in batch:
                written.set_exception(RecordError(reason))
        else:
            for _, written in batch:
                written.set_result(None)

    @contextmanager
    def _appending(self) -> Iterator[Connection]:
        """A transaction that no other process's comes between: the newest row stays the newest."""
        with self._engine.execution_options(appends=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield connection

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


_NEWEST = sa.select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)

_PAGE = sa.select(AUDIT).where(AUDIT.c.seq > sa.bindparam("last")).order_by(AUDIT.c.seq).limit(1000)
"""Some rows at a time: not every driver streams."""


def read_rows(url: str) -> Iterator[Row]:
    """The rows of a record, oldest first, as they are at this moment.

    Raises:
        ValueError: there is no record.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise ValueError(f"there is no audit record {_shown(parsed)}: pass --url URL or set MURA_AUDIT")
    engine = _engine(parsed, _BUSY_S)
    try:
        with engine.connect() as connection:
            last = -(2**63)
            while page := connection.execute(_PAGE, {"last": last}).mappings().all():
                yield from map(dict, page)
                last = page[-1]["seq"]
    except SQLAlchemyError as error:
        raise ValueError(f"cannot read the audit record {_shown(parsed)}: {_reason(error, parsed)}") from None
    finally:
        engine.dispose()


def _parse(text: str) -> URL:
    """The URL of a database; what is wrong with it is said without the text, which may hold a password."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.get_backend_name() not in _TRIGGERS or url.database in (None, "", ":memory:"):
        raise ValueError(
            "MURA_AUDIT is no URL of a SQLite file or a Postgres database: write sqlite:////absolute/path or "
            "postgresql+pg8000://user:password@host/database (what it is now is not shown, for it may hold a password)"
        )
    if "@" in (url.host or "") or any("password" in name for name in url.query):
        raise ValueError(
            "MURA_AUDIT: write the password between user and host, with %40 for @, %3A for : and %2F for /"
        )
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(Path(str(url.database)).expanduser().absolute()))
    return url


def _engine(url: URL, busy_s: float) -> Engine:
    try:
        timeout = _TIMEOUT.get(url.get_driver_name())
        arguments = {timeout: busy_s} if timeout else {}
        engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    except (ImportError, ArgumentError):
        raise ValueError(
            f"no driver for {url.drivername}: install one, such as `pip install 'mura-ray[postgres]'` for "
            "postgresql+pg8000"
        ) from None
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # else the driver begins transactions itself, too late for the lock
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns


def _on_sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("appends") else "BEGIN")


def _make_file(url: URL) -> None:
    """A new SQLite file is its owner's alone; SQLite gives its side files the same mode."""
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _shown(url: URL) -> str:
    return f"{url.drivername}://{url.host or ''}/{url.database}"


def _reason(error: Exception, url: URL) -> str:
    """What the driver says, without SQLAlchemy's additions and without the password."""
    text = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return text.replace(str(url.password), "***") if url.password else text
