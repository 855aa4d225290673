"""The files of cluster/ against each other and what the program reads. What AWS is asked for: test_cluster_aws."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from tests.cluster_files import CLUSTER, ROOT, Config, as_list, docker_variables, filled, read

NVME = "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage"


@pytest.mark.parametrize(
    ("mounted", "disk", "expected"),
    [
        ("/opt/dlami/nvme", NVME, ["mount --bind /opt/dlami/nvme /mnt/mura-cache"]),
        ("", NVME, ["mkfs.ext4 -q /dev/nvme1n1", "mount -o noatime /dev/nvme1n1 /mnt/mura-cache"]),
        ("", "/dev/nvme0n1 Amazon Elastic Block Store", []),
        ("/mnt/mura-cache", NVME, []),
    ],
)
def test_the_cache_is_on_the_local_disk(tmp_path: Path, mounted: str, disk: str, expected: list[str]) -> None:
    stubs = {
        "sudo": 'echo "$@"',
        "mountpoint": f'[ "$2" = "{mounted}" ]',
        "lsblk": f"echo '{disk}'",
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = read("gpu.yaml")["initialization_commands"][0]
    done = subprocess.run(
        ["bash", "-c", f"({script})"],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["mkdir -p /mnt/mura-cache", *expected, "chmod 1777 /mnt/mura-cache"]


def cluster_files() -> list[Path]:
    return sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "ffcv-build" not in path.parts)


def test_no_file_holds_a_secret() -> None:
    patterns = [r"\b(AKIA|ASIA)[0-9A-Z]{16}\b", r"BEGIN [A-Z ]*PRIVATE KEY", r"\b[0-9a-f]{64}\b",
                r"(?i)(secret_access_key|auth_token|password)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}"]  # fmt: skip
    for path in cluster_files():
        for pattern in patterns:
            assert not re.search(pattern, path.read_text()), (path, pattern)


def test_variables_are_those_that_the_program_reads() -> None:
    read_by = "".join((ROOT / name).read_text() for name in ("mura_ray/config.py", "serve/app.py", "serve/record.py"))
    name = re.compile(r"MURA_[A-Z]+(?:_[A-Z]+)*")
    for path in cluster_files():
        assert set(name.findall(path.read_text())) <= set(name.findall(read_by)), path
    assert {"MURA_SOURCE", "MURA_DATA", "MURA_RUNS", "MURA_CACHE"} <= set(docker_variables(filled()))


def test_nodes_come_and_go_with_the_work() -> None:
    config = read("gpu.yaml")
    workers = {name: value for name, value in config["available_node_types"].items() if name != "head"}
    assert {value["min_workers"] for value in workers.values()} == {0}
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["idle_timeout_minutes"] <= 15
    assert docker_variables(config)["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml"])
def test_mounts(name: str) -> None:
    mounts = read(name)["file_mounts"]
    here = {local for local in mounts.values() if not local.startswith("~")}
    assert all((ROOT / local).exists() for local in here)
    assert {Path(remote).name for remote, local in mounts.items() if local in here} == here
    assert here >= {"mura_ray", "serve", "cluster", "tune_spaces", "README.md", "LICENSE"}
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert all(Path(one).parts[0] in here for one in setup_inputs())


def setup_inputs() -> list[str]:
    """The files that setup-node.sh reads, relative to the repository."""
    (inputs,) = re.findall(r"^inputs=\((.*)\)$", (CLUSTER / "setup-node.sh").read_text(), re.MULTILINE)
    return [*re.findall(r'\$root"?/([\w./-]+)', inputs), "cluster/setup-node.sh"]


def test_local_file_is_valid() -> None:
    config = read("local.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert '"driver"' in head
    assert '"driver"' not in worker
    assert "RAY_AUTH_MODE=token" in config["setup_commands"][0]


def test_no_cluster_reports_its_use_to_rays_makers() -> None:
    nowhere = "RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9/"  # Ray would report even that reports are off
    for name in ("gpu.yaml", "local.yaml"):
        (command,) = [line for line in read(name)["head_start_ray_commands"] if "ray start" in line]
        assert "--disable-usage-stats" in command
        assert f"export {nowhere}; ray start" in command
    assert f" RAY_USAGE_STATS_ENABLED=0 {nowhere}\n" in (CLUSTER / "Dockerfile").read_text()


def test_image() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    config = read("gpu.yaml")
    assert f"FROM {config['docker']['image']}\n" in dockerfile
    assert f":{ray.__version__}-py311-" in config["docker"]["image"]
    before, setup, after = re.split(r"^(RUN .*setup-node\.sh.*)$", dockerfile, flags=re.MULTILINE)
    assert "--venv /home/ray/mura-venv " in setup
    assert any("setup-node.sh --venv ~/mura-venv" in command for command in config["setup_commands"])
    assert "WORKDIR /home/ray/mura_ray\n" in before
    copied = [
        name for line in re.findall(r"^COPY --chown=ray (.*) \S+$", before, re.MULTILINE) for name in line.split()
    ]
    assert all((ROOT / name).exists() for name in copied)
    assert all(any(one == name or one.startswith(f"{name}/") for name in copied) for one in setup_inputs())
    assert {"mura_ray", "serve", "tune_spaces", "cluster"} <= set(
        re.findall(r"^COPY --chown=ray (\S+) \S+$", after, re.MULTILINE)
    )


def pods(spec: Config) -> list[Config]:
    return [
        spec["headGroupSpec"]["template"]["spec"],
        *(group["template"]["spec"] for group in spec["workerGroupSpecs"]),
    ]


@pytest.mark.parametrize(("name", "kind", "cluster"), [("rayjob", "RayJob", "rayClusterSpec"),
                                                       ("rayservice", "RayService", "rayClusterConfig")])  # fmt: skip
def test_kuberay(name: str, kind: str, cluster: str) -> None:
    content = read(f"kuberay/{name}.yaml")
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", kind)
    spec = content["spec"][cluster]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(spec):
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == "mura-ray"
        assert container["image"] == "FILL-IN-IMAGE"
        assert container["envFrom"] == [{"secretRef": {"name": "mura-ray-s3", "optional": True}}]
        assert "MURA_RUNS" in {variable["name"] for variable in container["env"]}
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_kuberay_searches_and_serves_as_elsewhere() -> None:
    job = read("kuberay/rayjob.yaml")["spec"]
    assert job["entrypoint"] == "python -m mura_ray.tune"
    assert json.loads(json.loads(job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["resources"])) == {
        "driver": 64
    }
    config = yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    elsewhere = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    assert config["applications"] == elsewhere["applications"]
    assert config["http_options"] == elsewhere["http_options"]


def test_policies_are_narrow() -> None:
    cluster = read("gpu.yaml")["cluster_name"]
    for file in ("storage.json", "launch.json"):
        for statement in json.loads((CLUSTER / "iam" / file).read_text())["Statement"]:
            actions = as_list(statement["Action"])
            assert not any("*" in action for action in actions)
            if "*" in as_list(statement["Resource"]):
                assert actions in (["ec2:DescribeInstances"], ["ecr:GetAuthorizationToken"])  # they know no resource
            tags = {
                value for key, value in statement.get("Condition", {}).get("StringEquals", {}).items() if "Tag/" in key
            }
            if any("instance/" in resource for resource in as_list(statement["Resource"])):
                assert tags == {cluster} or statement["Sid"] == "TagThemWhenTheyStart"
            if "iam:PassRole" in actions:
                assert statement["Resource"] == "arn:aws:iam::*:role/mura-worker"
