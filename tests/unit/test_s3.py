"""Objects in S3 against a real server over HTTP, sound and faulty."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mura_ray import s3, store
from tests.s3_server import BUCKET, Fault, Proxy, Request, get_folder, plain_client

MIB = 2**20
LARGE = random.Random(0).randbytes(20 * MIB + 7)  # three parts, the last incomplete


@pytest.fixture
def home(request: pytest.FixtureRequest) -> str:
    """A folder in the bucket of each test's own."""
    return f"s3://{BUCKET}/{request.node.name}"


def put(server: str, uri: str, content: bytes) -> None:
    bucket, key = s3.split_uri(uri)
    plain_client(server).put_object(Bucket=bucket, Key=key, Body=content)


def once(fault: Fault, method: str = "GET") -> Callable[[Request], Fault | None]:
    """The fault for the first request of a method."""
    met = []

    def choose(request: Request) -> Fault | None:
        if request.method == method and not met:
            met.append(request)
            return fault
        return None

    return choose


@pytest.mark.parametrize("content", [b"", b"x", LARGE[: 8 * MIB], LARGE], ids=["empty", "byte", "one part", "large"])
def test_what_is_written_is_read(proxy: Proxy, home: str, content: bytes) -> None:
    uri = store.join(home, "a b+c.bin")
    assert not store.exists(uri)
    store.write_bytes(uri, content)
    assert store.read_bytes(uri) == content
    assert store.read_start(uri, 1000) == content[:1000]
    assert store.exists(uri)
    assert store.exists(home)
    assert store.is_folder(home)
    assert not store.is_file(home)


def test_nothing_is_asked_that_only_some_servers_have(proxy: Proxy, home: str) -> None:
    for size in (3, len(LARGE)):
        store.write_bytes(f"{home}/x", LARGE[:size])
        store.read_bytes(f"{home}/x")
    store.remove_folder(home)
    assert {request.method for request in proxy.requests} == {"PUT", "POST", "GET", "DELETE"}
    for request in proxy.requests:
        assert not [name for name in request.headers if "checksum" in name or name == "if-none-match"], request
        assert not request.query.startswith("delete"), "a batch of deletions needs a checksum"


def test_large_objects_go_in_parts(proxy: Proxy, home: str) -> None:
    store.write_bytes(f"{home}/x", LARGE)
    assert proxy.count("PUT") == 3
    store.read_bytes(f"{home}/x")
    assert sorted(str(request.range) for request in proxy.requests if request.method == "GET") == [
        f"bytes=0-{8 * MIB - 1}", f"bytes={16 * MIB}-{20 * MIB + 6}", f"bytes={8 * MIB}-{16 * MIB - 1}",
    ]  # fmt: skip


def test_a_server_that_knows_no_ranges_is_read_all_the_same(proxy: Proxy, server: str, home: str) -> None:
    put(server, f"{home}/x", LARGE)
    proxy.fault = lambda request: "whole" if request.method == "GET" else None
    assert store.read_bytes(f"{home}/x") == LARGE
    assert proxy.count("GET") == 1
    assert store.read_start(f"{home}/x", 10) == LARGE[:10]
    put(server, f"{home}/empty", b"")
    proxy.fault = lambda request: "hollow" if request.range else None
    assert store.read_bytes(f"{home}/empty") == store.read_start(f"{home}/empty", 10) == b""
    # ... and one that forgets about them in the middle
    proxy.fault = lambda request: "whole" if request.range and not request.range.startswith("bytes=0-") else None
    assert store.read_bytes(f"{home}/x") == LARGE


@pytest.mark.parametrize("fault", ["slow down", "reset", "truncate", "stall"])
def test_a_passing_fault_passes(
    proxy: Proxy, server: str, home: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.5)
    s3._renew_credentials()
    proxy.stall_s = 5
    put(server, f"{home}/x", LARGE)
    rng = random.Random(1)
    proxy.fault = lambda request: fault if rng.random() < 0.3 else None
    for _ in range(5):
        assert store.read_bytes(f"{home}/x") == LARGE
    if fault in ("slow down", "reset"):
        store.write_bytes(f"{home}/y", LARGE)
        assert get_folder(server, s3.split_uri(home)[1])["y"] == LARGE
        assert [key for key, _ in s3.list_objects(home)] == ["x", "y"]
    assert proxy.faults


def test_a_write_that_fails_leaves_what_was_there(
    proxy: Proxy, server: str, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    store.write_bytes(f"{home}/x", b"old")
    proxy.fault = lambda request: "slow down" if "partNumber=2" in request.query else None
    with pytest.raises(store.StorageError, match=r"s3://mura/.*/x: write failed after 2 attempts .*SlowDown"):
        store.write_bytes(f"{home}/x", LARGE)
    assert store.read_bytes(f"{home}/x") == b"old"
    uploads = plain_client(server).list_multipart_uploads(Bucket=BUCKET)
    assert not uploads.get("Uploads"), "parts that nobody sees are paid for"


def test_an_object_replaced_while_it_is_read_is_never_mixed(proxy: Proxy, server: str, home: str) -> None:
    uri, other = f"{home}/x", bytes(len(LARGE))
    put(server, uri, LARGE)

    def replace(request: Request) -> None:
        if request.range and not request.range.startswith("bytes=0-") and not replaced:
            replaced.append(request)
            put(server, uri, other)

    replaced: list[Request] = []
    proxy.fault = replace
    assert store.read_bytes(uri) == other


def test_expired_credentials_are_asked_for_again(
    proxy: Proxy, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def hand_out(key: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret-{key}\n")

    def expire(request: Request) -> Fault | None:
        if request.access_key == "first" and request.number > 2:
            hand_out("second")
            return "expired"
        return None

    hand_out("first")
    s3._renew_credentials()
    proxy.fault = expire
    store.write_bytes(f"{home}/x", LARGE)
    assert store.read_bytes(f"{home}/x") == LARGE
    assert {request.access_key for request in proxy.requests} == {"first", "second"}
    proxy.fault = lambda request: "expired"
    with pytest.raises(store.StorageError, match="the credentials have expired") as error:
        store.read_bytes(f"{home}/x")
    assert "aws sso login" in str(error.value)
    assert "secret" not in str(error.value)


def test_errors_name_uri_operation_and_remedy(proxy: Proxy, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"no file at '{home}/none'"):
        store.read_bytes(f"{home}/none")
    with pytest.raises(store.StorageError, match="read failed: there is no bucket 'elsewhere'; check its name"):
        store.read_bytes("s3://elsewhere/x")
    with pytest.raises(store.StorageError, match="list failed: there is no bucket"):
        store.exists("s3://elsewhere/x")
    proxy.fault = lambda _: "denied"
    with pytest.raises(store.StorageError, match=r"write failed: access denied .*; the credentials need s3:GetObject"):
        store.write_bytes(f"{home}/x", b"")
    assert proxy.count("PUT") == 1, "a denial is not tried again"
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3._renew_credentials()
    with pytest.raises(
        store.StorageError, match=r"read failed after 2 attempts .*; check the network and AWS_ENDPOINT"
    ):
        store.read_bytes(f"{home}/x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3._renew_credentials()
    with pytest.raises(store.StorageError, match="no credentials were found; set them up for boto3"):
        store.read_bytes(f"{home}/x")
    with pytest.raises(ValueError, match="the form is s3://bucket/key"):
        store.absolute("s3:///x")


def test_a_tree_in_s3_is_that_of_the_folder(proxy: Proxy, server: str, home: str, tmp_path: Path) -> None:
    for path in ("b/2.png", "b/10.png", "b/c/d/e.txt", "a.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
        put(server, f"{home}/{path}", path.encode())
    (tmp_path / "empty").mkdir()
    put(server, f"{home}/empty/", b"")
    local, listed = store.tree(str(tmp_path)), store.tree(home)
    for folder in ("", "b", "b/c", "b/c/d", "empty", "none", "a.csv"):
        assert listed.entries(folder) == local.entries(folder), folder
    assert sorted(store.list_files(home)) == sorted(store.list_files(str(tmp_path)))
    paths = ["b/2.png", "b/none.png", "b/c/d/e.txt"]
    for root in (home, str(tmp_path)):
        found = store.stat_files(root, paths)
        assert {path: stat.num_bytes for path, stat in found.items()} == {"b/2.png": 7, "b/c/d/e.txt": 11}
    before = store.stat_files(home, paths)["b/2.png"]
    put(server, f"{home}/b/2.png", b"changed")
    assert store.stat_files(home, paths)["b/2.png"] != before
    store.remove_folder(home)
    assert not store.exists(home)


def test_many_files_are_read_in_order_with_the_error_in_its_turn(proxy: Proxy, server: str, home: str) -> None:
    for number in range(40):
        put(server, f"{home}/{number}", str(number).encode())
    uris = [f"{home}/{number}" for number in range(42)]
    contents = store.read_many(uris)
    assert [next(contents) for _ in range(40)] == [str(number).encode() for number in range(40)]
    with pytest.raises(ValueError, match=r"no file at .*/40"):
        next(contents)


def test_listings_go_over_many_pages(proxy: Proxy, server: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        put(server, f"{home}/{number}", b"")
    client = s3._client()
    one_page = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **arguments: one_page(**{**arguments, "MaxKeys": 3}))
    assert [key for key, _ in s3.list_objects(home)] == [str(number) for number in range(7)]
    assert sum(request.method == "GET" and "list-type=2" in request.query for request in proxy.requests) == 3


def test_the_server_says_what_time_it_is(proxy: Proxy) -> None:
    assert abs(s3.server_time(f"s3://{BUCKET}") - time.time()) < 60
