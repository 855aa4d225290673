"""What doctor finds on sound machines, data and storage, and on broken ones."""

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mura_ray import doctor, s3, store
from mura_ray.data import checks
from mura_ray.data.cache import file_sha256, local_split
from mura_ray.data.manifest import TABLE_COLUMNS, Manifest, Shard, Split, write_manifest
from mura_ray.data.shards import write_shard
from tests.s3_server import BUCKET, Proxy, get_folder, put_folder

MIB = 2**20


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the processes that import torch and FFCV for seconds, where no test asks for them."""
    monkeypatch.setenv("MURA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "LARGE_BYTES", 17 * MIB)  # the least that goes to S3 in parts, and a part more
    monkeypatch.setattr(checks, "shared_memory_bytes", lambda: (2**34, 2**33))  # whatever the machine of the tests has
    if "probes" not in request.fixturenames:
        monkeypatch.setattr(checks, "_in_process", lambda *_: (["not looked at"], ""))


@pytest.fixture
def probes() -> None:
    """Asks for them."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set: split train of 4 shards with 3 images each, a study of 3; split valid of one shard."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    splits = {}
    for split, num_shards in {"train": 4, "valid": 1}.items():
        (folder / split).mkdir(parents=True)
        shards = [make_shard(folder, f"{split}/shard-{number:05d}.beton") for number in range(num_shards)]
        rows = [
            (number, f"{number}.png", f"patient{number // 3}", "study1", "wrist", 0, 8, 8, "")
            for number in range(3 * num_shards)
        ]
        table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).to_csv(index=False).encode()
        (folder / f"{split}.csv").write_bytes(table)
        splits[split] = Split(shards=tuple(shards), table_sha256=hashlib.sha256(table).hexdigest(), counts={})
    manifest = Manifest(
        name="x", id="y", source_id="z", split_policy="given", image_size=8, splits=splits, class_weights={}
    )
    write_manifest(str(folder), manifest)
    return folder


def make_shard(folder: Path, key: str) -> Shard:
    zeros = np.zeros(3, int)
    write_shard(folder / key, np.full((3, 8, 8), len(key), np.uint8), zeros, zeros, zeros)
    return Shard(key=key, bytes=(folder / key).stat().st_size, sha256=file_sha256(folder / key), count=3)


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "data"))


def lines_of(capsys: pytest.CaptureFixture[str], status: str) -> list[str]:
    """Lines on stdout that begin with a status, with single blanks."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.startswith(status)]


def by_check(findings: list[checks.Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def test_all_well_in_folders(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert doctor.main(["--data", str(data), "--runs", str(tmp_path / "new/runs")]) == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    assert {line.split()[0] for line in said.splitlines()} == {"ok", "note"}
    assert "train 12 images of 4 studies, valid 3 images of 1 studies" in said
    assert "5 shards" in said
    assert sorted(tmp_path.rglob("*")) == before, "folders that were made for the checks stay"


def test_all_well_in_s3(proxy: Proxy, server: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_folder(server, data, "sound")
    assert doctor.main(["--data", f"s3://{BUCKET}/sound", "--runs", f"s3://{BUCKET}/runs"]) == 0
    said = lines_of(capsys, "ok")
    assert {"data", "tables", "shards", "runs", "clock"} <= {line.split()[1] for line in said}
    assert any("uploadId" in request.query for request in proxy.requests), "nothing went in parts"
    assert get_folder(server, "runs") == {}


def test_what_is_not_given_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    skipped = [line for line in lines_of(capsys, "note") if "skipped" in line]
    assert [line.split()[1] for line in skipped] == ["clock", "data", "runs", "cluster"]


def test_a_cluster_that_was_asked_for_but_does_not_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--cluster"]) == 1
    (failure,) = lines_of(capsys, "FAIL")
    assert failure.startswith("FAIL cluster none runs on this machine")
    assert doctor.main(["--no-cluster"]) == 0
    assert "cluster" not in {line.split()[1] for line in capsys.readouterr().out.splitlines()}


def test_a_cluster_that_cannot_be_joined_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but it does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        assert doctor.main([]) == 1
    assert time.monotonic() - started < 60, "Ray itself tries for minutes"
    (failure,) = lines_of(capsys, "FAIL")
    assert f"cannot join the Ray cluster at {address}" in failure
    assert "nothing answers there" in failure
    assert "RAY_AUTH_MODE=token" in failure


def test_shards_that_are_yet_to_be_made_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, source = str(tmp_path / "shards"), str(tmp_path / "radiographs")
    assert doctor.main(["--data", data, "--source", source]) == 0
    assert f"note data nothing at {data} yet" in lines_of(capsys, "note")[3]
    assert doctor.main(["--data", data]) == 1


def test_everything_as_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "manifest.json").unlink()
    assert doctor.main(["--data", str(data), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["cluster"] is None
    (failure,) = [finding for finding in said["findings"] if finding["status"] == "FAIL"]
    assert failure["check"] == "data"


def test_every_damaged_shard_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped, missing, cut, whole = (data / f"train/shard-0000{number}.beton" for number in range(4))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    os.truncate(cut, 1000)
    monkeypatch.setenv("MURA_DATA", str(data))
    assert doctor.main(["--runs", str(tmp_path / "runs")]) == 1
    said, errors = capsys.readouterr()
    failures = [line for line in said.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 3
    assert f"{flipped} is damaged" in failures[0]
    assert f"{missing} is missing" in failures[1]
    assert f"{cut} has 1,000 bytes" in failures[2]
    assert all("convert again" in line for line in failures)
    assert str(whole) not in said
    assert errors == "error: 3 failed: see the lines that begin with FAIL\n"


def test_damage_in_s3_is_named_too(proxy: Proxy, server: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train/shard-00002.beton").unlink()
    put_folder(server, data, "damaged")
    proxy.fault = lambda request: "flip" if request.method == "GET" and "shard-00001" in request.key else None
    assert doctor.main(["--data", f"s3://{BUCKET}/damaged"]) == 1
    failures = lines_of(capsys, "FAIL")
    assert len(failures) == 2
    assert f"s3://{BUCKET}/damaged/train/shard-00001.beton is damaged" in failures[0]
    assert f"s3://{BUCKET}/damaged/train/shard-00002.beton is missing" in failures[1]


def test_damaged_tables_and_a_missing_manifest(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "valid.csv").write_text("sample_id\n")
    (data / "train.csv").unlink()
    assert doctor.main(["--data", str(data)]) == 1
    failures = lines_of(capsys, "FAIL")
    assert len(failures) == 2
    assert "train.csv" in failures[0]
    assert "valid.csv is not the file" in failures[1]
    (data / "manifest.json").unlink()
    assert doctor.main(["--data", str(data)]) == 1
    (failure,) = lines_of(capsys, "FAIL")
    assert failure.startswith("FAIL data")
    assert "mura_ray.convert" in failure


def test_few_shards_are_held_at_a_time_and_progress_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = checks.check_manifest(str(data))
    assert manifest
    read_bytes, running, most, told = store.read_bytes, [], [], []

    def slow_read(uri: str) -> bytes:
        running.append(uri)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(uri)
        return read_bytes(uri)

    monkeypatch.setattr(store, "read_bytes", slow_read)
    found = checks.check_shards(str(data), manifest, lambda *progress: told.append(progress))
    assert by_check(found) == {"shards": "ok"}
    assert 1 < max(most) <= checks.SHARDS_AT_ONCE
    total = sum(path.stat().st_size for path in data.rglob("*.beton"))
    assert [told[0], told[-1]] == [(0, total), (total, total)]
    assert len(told) == 6


@pytest.mark.parametrize(
    ("denied", "operation"),
    [(("PUT", "small"), "write"), (("PUT", "large"), "write"), (("GET", "large"), "read"), (("GET", ""), "list")],
    ids=["nothing written", "large not written", "not read", "not listed"],
)
def test_runs_that_cannot_be_used_fail_and_nothing_is_left(
    proxy: Proxy, server: str, capsys: pytest.CaptureFixture[str], denied: tuple[str, str], operation: str
) -> None:
    method, ending = denied
    proxy.fault = lambda request: (
        "denied" if request.method == method and (request.key.endswith(ending) if ending else not request.key) else None
    )
    assert doctor.main(["--runs", f"s3://{BUCKET}/denied"]) == 1
    failure = next(line for line in lines_of(capsys, "FAIL") if "runs" in line.split())
    assert f"{operation} failed: access denied" in failure
    assert "the credentials need s3:GetObject, s3:PutObject" in failure
    assert proxy.faults
    assert get_folder(server, "denied") == {}


def test_what_cannot_be_removed_is_named(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    proxy.fault = lambda request: "denied" if request.method == "DELETE" else None
    assert doctor.main(["--runs", f"s3://{BUCKET}/kept"]) == 1
    (failure,) = lines_of(capsys, "FAIL")
    assert f"s3://{BUCKET}/kept/.doctor-" in failure
    assert "remove failed: access denied" in failure


def test_storage_that_gives_back_something_else_fails(
    proxy: Proxy, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = lambda request: "flip" if request.method == "GET" and request.key.endswith("small") else None
    assert doctor.main(["--runs", f"s3://{BUCKET}/flipped"]) == 1
    (failure,) = lines_of(capsys, "FAIL")
    assert "small was read with another content than written" in failure
    assert get_folder(server, "flipped") == {}


def test_runs_below_a_file_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.main(["--runs", str(tmp_path / "file/runs")]) == 1
    assert "check the path" in lines_of(capsys, "FAIL")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("skew_s", "status"), [(-90, "FAIL"), (-40, "ok"), (40, "ok"), (90, "FAIL")])
def test_the_clock(monkeypatch: pytest.MonkeyPatch, skew_s: float, status: str) -> None:
    monkeypatch.setattr(s3, "server_time", lambda _: time.time() + skew_s)
    (finding,) = checks.check_clock(["/a/folder", f"s3://{BUCKET}/runs"])
    assert (finding.check, finding.status) == ("clock", status)
    assert ("NTP" in finding.remedy) == (status == "FAIL")


@pytest.mark.parametrize(
    ("total", "free", "remedy"),
    [(64 * MIB, 64 * MIB, "--shm-size"), (2**34, MIB, "end what fills it"), (2**34, 2**33, "")],
)
def test_shared_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int, free: int, remedy: str
) -> None:
    monkeypatch.setattr(checks, "shared_memory_bytes", lambda: (total, free))
    assert doctor.main([]) == (1 if remedy else 0)
    failures = lines_of(capsys, "FAIL")
    assert len(failures) == bool(remedy)
    assert all(line.startswith("FAIL shared memory") and remedy in line for line in failures)


def test_a_disk_and_a_budget_too_small(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = checks.check_manifest(str(data))
    assert manifest
    assert checks.bytes_in_use(manifest) == sum(path.stat().st_size for path in data.rglob("*.beton"))
    monkeypatch.setenv("MURA_CACHE_GB", "0.001")
    (small,) = checks.check_cache_budget(manifest)
    assert (small.status, small.remedy) == ("FAIL", "raise it, or unset it")
    assert by_check(checks.check_cache(manifest)) == {"cache": "ok"}
    monkeypatch.setattr(checks, "bytes_in_use", lambda _: 10**18)
    (full,) = checks.check_cache(manifest)
    assert full.status == "FAIL"
    assert "MURA_CACHE" in full.remedy


@pytest.mark.parametrize("budget", ["", "1", "0.5", "0", "-1", "nan", "inf", "much"])
def test_the_budget_is_read_as_copies_read_it(data: Path, monkeypatch: pytest.MonkeyPatch, budget: str) -> None:
    monkeypatch.setenv("MURA_CACHE_GB", budget)
    try:
        with local_split(str(data), "valid"):
            expected = ("ok", budget)
    except ValueError as error:
        expected = ("FAIL", str(error))
    (finding,) = checks.check_cache_budget(None)
    assert finding.status == expected[0]
    assert expected[1] in finding.detail


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_check(checks.check_versions()) == {"versions": "ok"}
    monkeypatch.setattr(checks, "PACKAGES", ("numpy", "no-such-package"))
    (finding,) = checks.check_versions()
    assert (finding.status, finding.detail) == ("FAIL", "not installed: no-such-package")


def test_torch_and_ffcv_work_here(probes: None) -> None:
    found = by_check([*checks.check_torch()[1], *checks.check_ffcv()])
    assert found.pop("cuda") in ("ok", "note")
    assert found == {"torch": "ok", "ffcv": "ok"}


def test_a_broken_installation_is_told_of(probes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numba.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (crash,), (failure,) = checks.check_ffcv(), checks.check_torch()[1]
    assert (crash.status, crash.detail) == ("FAIL", "crashed with SIGSEGV")
    assert (failure.status, failure.detail) == ("FAIL", "ImportError: libcudart.so: no such file")
    assert "setup-node.sh" in crash.remedy
    monkeypatch.setattr(checks, "PROBE_TIMEOUT_S", 0.01)
    (hung,) = checks.check_torch()[1]
    assert (hung.status, hung.detail) == ("FAIL", "hangs: no answer in 0 s")
