"""For the tests that ask for it: an S3 server behind a proxy that the code under test speaks to; an audit record."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mura_ray import s3
from serve.exchange import Exchange
from serve.record import AuditRecord, refusal_row
from tests.s3_server import Proxy, environment, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server)
    with proxy.running() as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3, "BACKOFF_S", 0.01)
        s3._renew_credentials()
        yield proxy
    s3._renew_credentials()


@pytest.fixture
def record_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit.sqlite3"


@pytest.fixture
def record_url(record_path: Path) -> str:
    return f"sqlite:///{record_path}"


@pytest.fixture
def record(record_url: str) -> Iterator[AuditRecord]:
    record = AuditRecord(record_url)
    yield record
    record.close()


@pytest.fixture
def filled(record: AuditRecord) -> None:
    """The record has five rows."""
    for status in (429, 413, 429, 422, 429):
        record.append(refusal_row(Exchange("0"), status))
