"""What doctor makes of what the nodes of a cluster say; that they are asked at all is tested on a real cluster."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mura_ray.data.checks import Finding
from mura_ray.distributed import comparison, node_probe
from mura_ray.distributed.all_reduce import NUM_PARAMETERS, AllReduce
from mura_ray.distributed.comparison import Clock, Node
from mura_ray.distributed.node_probe import NodeProbe, NodeReport, Places
from mura_ray.model.densenet import build_network

HERE = {"Python": "3.11.9", "torch": "2.15.0", "mura_ray": "c0ffee"}
PLACES = Places(data="/shards", converted=True, written=("/runs",), source_file=None, s3=())
REPORT = NodeReport(
    versions=HERE,
    revision="unknown",
    gpus=[],
    installed_gpus=[],
    driver="",
    cache_free=10**12,
    shared_memory=2**33,
    interface="eth0",
    gloo="eth0",
    nccl="",
    manifest="abc",
    source_file="",
    findings=[Finding("torch", "ok", "works")],
)


def node(number: int, num_gpus: int = 0) -> Node:
    return Node(f"{number:08d}ffff", f"10.0.0.{number}", f"host-{number}", number == 1, 4.0, num_gpus)


def name(number: int) -> str:
    return node(number).name


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status != "ok"]


def test_equal_nodes_have_nothing_to_be_repaired() -> None:
    found = comparison.compare_reports({node(1): REPORT, node(2): REPORT}, HERE, PLACES)
    assert failures(found) == []
    assert "torch: well on all 2 nodes" in found[0].detail


def test_each_version_that_differs_is_a_line_with_the_nodes() -> None:
    versions = {name(1): HERE, name(2): {**HERE, "torch": "2.14.1"}, name(3): {**HERE, "mura_ray": "0dd"}}
    torch, program = comparison.compare_versions(versions, HERE)
    assert torch.status == program.status == "FAIL"
    assert torch.detail == f"torch is 2.15.0 here, 2.14.1 on {name(2)}"
    assert "setup-node.sh" in torch.remedy
    assert f"0dd on {name(3)}" in program.detail
    assert "same checkout" in program.remedy


@pytest.mark.parametrize(
    ("offset_s", "uncertainty_s", "status"),
    [(0.4, 0.01, "ok"), (-1.5, 0.01, "warn"), (1.5, 0.6, "ok"), (59, 0.1, "warn"), (-61, 0.1, "FAIL")],
)
def test_clocks_count_as_far_apart_as_they_are_for_certain(offset_s: float, uncertainty_s: float, status: str) -> None:
    clocks = {name(1): Clock(0.0, 0.001), name(2): Clock(offset_s, uncertainty_s)}
    (found,) = comparison.compare_clocks(clocks)
    assert found.status == status
    if status != "ok":
        assert found.detail.startswith(name(2))
        assert ("ahead" if offset_s > 0 else "behind") in found.detail
        assert "NTP" in found.remedy


@pytest.mark.parametrize(
    ("given", "usable", "installed", "status", "says"),
    [
        (0, 0, 0, None, ""),
        (2, 2, 2, "ok", "NVIDIA L4"),
        (4, 2, 2, "FAIL", "driver"),
        (4, 0, 0, "FAIL", "--gpus=all"),
        (0, 2, 2, "note", "lies idle"),
    ],
)
def test_gpus_that_ray_gives_out_must_be_there(
    given: int, usable: int, installed: int, status: str | None, says: str
) -> None:
    report = replace(REPORT, gpus=["NVIDIA L4 22 GiB"] * usable, installed_gpus=["NVIDIA L4 22 GiB"] * installed)
    found = comparison.check_gpus(node(1, given), report)
    assert [finding.status for finding in found] == ([status] if status else [])
    assert all(name(1) in finding.detail and says in finding.detail + finding.remedy for finding in found)


def test_storage_that_is_not_shared_names_who_shares_with_whom() -> None:
    everyone = [name(1), name(2), name(3)]
    assert comparison.compare_storage("/runs", everyone, dict.fromkeys(everyone, everyone)).status == "ok"
    seen = {name(1): [name(1)], name(2): [name(2), name(3)], name(3): [name(3), name(2)]}
    found = comparison.compare_storage("/runs", everyone, seen)
    assert found.status == "FAIL"
    assert found.detail.endswith(f"{name(1)} | {name(2)}, {name(3)}")
    assert "s3://" in found.remedy
    alone = comparison.compare_storage("/runs", [name(1)], {name(1): [name(1)]})
    assert alone.status == "ok"


def test_a_data_set_that_is_another_on_some_node_fails() -> None:
    reports = {node(1): REPORT, node(2): replace(REPORT, manifest="def")}
    (found,) = failures(comparison.compare_reports(reports, HERE, PLACES))
    assert (found.check, found.status) == ("data", "FAIL")
    assert found.detail == f"/shards is not the same everywhere: {name(1)} | {name(2)}"


@pytest.mark.parametrize(("converted", "status"), [(True, "warn"), (False, "FAIL")])
def test_radiographs_are_needed_until_they_are_converted(converted: bool, status: str) -> None:
    unread = replace(REPORT, manifest="", findings=[Finding("source", "FAIL", "no file at '/MURA/a.png'")])
    places = replace(PLACES, converted=converted, source_file="/MURA/a.png")
    (found,) = failures(comparison.compare_reports({node(1): unread, node(2): REPORT}, HERE, places))
    assert (found.status, found.detail) == (status, f"{name(1)}: no file at '/MURA/a.png'")


def test_the_same_trouble_on_several_nodes_is_one_line() -> None:
    trouble = Finding("shared memory", "FAIL", "/dev/shm has 64 MB", "--shm-size")
    found = comparison.merge({name(1): [], name(2): [trouble], name(3): [trouble]})
    assert found == [replace(trouble, detail=f"{name(2)}, {name(3)}: /dev/shm has 64 MB")]


def test_what_an_autoscaler_may_bring_is_said() -> None:
    assert comparison.check_size([node(1), node(2, 1)], {"CPU": 8, "GPU": 1}).status == "ok"
    found = comparison.check_size([node(1)], {"CPU": 64, "GPU": 16})
    assert found.status == "note"
    assert "may bring 64 CPUs and 16 GPUs" in found.detail


def test_bandwidths() -> None:
    measured = AllReduce("nccl", num_workers=4, num_nodes=2, num_bytes=50_000_000, seconds=0.01)
    assert measured.algorithm_bandwidth == pytest.approx(5e9)
    assert measured.bus_bandwidth == pytest.approx(7.5e9)
    assert "4 workers (nccl) on 2 nodes: 50.0 MB" in comparison.describe_all_reduce(measured).detail


def test_gradients_are_as_large_as_the_networks() -> None:
    network = build_network(None, 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == NUM_PARAMETERS


def test_a_group_that_does_not_form_names_variable_and_interfaces() -> None:
    found = comparison.group_failure("gloo", 2, "timed out", "10.0.0.1:34567", {name(1): "eth0", name(2): "lo"})
    assert found.status == "FAIL"
    for word in ("GLOO_SOCKET_IFNAME", "10.0.0.1:34567", "firewall", f"lo on {name(2)}"):
        assert word in found.remedy
    assert "NCCL_SOCKET_IFNAME" in comparison.group_failure("nccl", 2, "", "10.0.0.1:34567", {}).remedy


def test_nodes_that_share_a_folder_see_each_others_files_and_leave_nothing(tmp_path: Path) -> None:
    first, second = NodeProbe("10.0.0.1"), NodeProbe("10.0.0.2")
    home = tmp_path / "new" / "runs" / ".doctor"
    files = {str(home / "first"): b"1", str(home / "second"): b"2"}
    assert first.write({str(home / "first"): b"1"}) == second.write({str(home / "second"): b"2"}) == []
    assert first.read(files) == second.read(files) == (list(files), [])
    assert second.read({str(home / "first"): b"other", str(home / "third"): b"3"}) == ([], [])
    assert first.remove() == second.remove() == []
    first.remove_folders()
    second.remove_folders()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    probe = NodeProbe("10.0.0.1")
    (failure,) = probe.write({str(tmp_path / "file" / "runs" / "x"): b""})
    assert (failure.check, failure.status) == ("storage", "FAIL")
    assert probe.remove() == []


def test_what_the_nvidia_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_probe.nvidia_gpus() == ("", [])
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.65.06, 23034, NVIDIA L4'\necho '580.65.06, 23034, NVIDIA L4'\n")
    tool.chmod(0o755)
    assert node_probe.nvidia_gpus() == ("580.65.06", ["NVIDIA L4 22 GiB"] * 2)
    tool.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not run
    assert os.access(tool, os.X_OK)
    assert node_probe.nvidia_gpus() == ("", [])
