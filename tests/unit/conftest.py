"""An S3 server for the tests that ask for one, and a proxy before it that the code under test speaks to."""

from collections.abc import Iterator

import pytest

from mura_ray import s3
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
