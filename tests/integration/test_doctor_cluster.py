"""Doctor on a cluster of a head without CPUs and two nodes of one, which asks for a token."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mura_ray.data.manifest import Manifest, write_manifest
from tests.ray_nodes import TOKEN, three_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def doctor(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mura_ray.doctor", *options], capture_output=True, text=True, timeout=600,
        env={**os.environ, **TOKEN, "RAY_ADDRESS": address},
    )  # fmt: skip


def test_every_node_of_a_sound_cluster_is_looked_at(tmp_path: Path) -> None:
    data, runs, source = tmp_path / "data", tmp_path / "runs", tmp_path / "radiographs"
    manifest = Manifest(
        name="x", id="y", source_id="z", split_policy="given", image_size=8, splits={}, class_weights={}
    )
    write_manifest(str(data), manifest)
    source.mkdir()
    (source / "a.png").write_bytes(b"an image")
    with three_nodes() as (address, node_ids, _):
        ended = doctor(address, "--data", str(data), "--runs", str(runs), "--source", str(source), "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = json.loads(ended.stdout)
    rows, measured = said["cluster"]["rows"], said["cluster"]["all_reduce"]
    assert [row["node"]["node_id"] for row in rows if row["node"]["is_head"]] == node_ids[:1]
    assert {row["node"]["node_id"] for row in rows} == set(node_ids)
    for row in rows:
        report = row["report"]
        assert abs(row["clock"]["offset_s"]) <= row["clock"]["uncertainty_s"] + 0.1, "it is one and the same clock"
        assert report["manifest"]
        assert report["source_file"]
        assert {finding["status"] for finding in report["findings"]} <= {"ok", "note"}
    assert (measured["backend"], measured["num_workers"], measured["num_nodes"]) == ("gloo", 2, 2)
    assert measured["bus_bandwidth"] == measured["algorithm_bandwidth"] > 0
    details = {finding["check"]: finding["detail"] for finding in said["findings"] if finding["status"] == "ok"}
    assert details["storage"] == f"{runs}: all 3 nodes wrote there, and read what all wrote"
    assert not runs.exists(), "what was written to try it stays"


def test_what_fails_on_the_nodes_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with three_nodes(GLOO_SOCKET_IFNAME="nowhere") as (address, node_ids, _):
        ended = doctor(address, "--runs", str(tmp_path / "file" / "runs"))
    assert ended.returncode == 1
    failures = [line.split(maxsplit=2) for line in ended.stdout.splitlines() if line.startswith("FAIL")]
    told = dict(failure[1:] for failure in failures)
    assert list(told) == ["runs", "storage", "all-reduce"], ended.stdout
    assert told["storage"].startswith("all 3 nodes: ")
    assert "check the path" in told["storage"]
    assert "set GLOO_SOCKET_IFNAME" in told["all-reduce"]
    assert told["all-reduce"].count("nowhere on") == 2
    table = ended.stdout[ended.stdout.index("\n\n") :]
    assert all(f"({node_id[:8]})" in table for node_id in node_ids)
    assert f"{len(failures)} failed" in ended.stderr
