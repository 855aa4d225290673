"""A Ray cluster of hosts, brought up by `ray up cluster/local.yaml` over real SSH, and an S3 server on another."""

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.multihost.hosts import HOME, NODE, PREFIX, ROOT, Host, Network, network
from tests.s3_server import BUCKET, get_folder, plain_client, server_command, wait_until_open

S3_PORT = 9000
CONFIG = HOME / "cluster.yaml"
SPACE = HOME / "space.yaml"
SAMPLES = HOME / "samples"
"""Folder on each host where the workers note the images of their steps."""


@dataclass
class Cluster:
    """A laptop that starts it, a head that trains nothing, workers of one slot each, and the S3 server's URL."""

    net: Network
    laptop: Host
    head: Host
    workers: list[Host]
    s3_url: str

    def ray(self, command: str, timeout_s: float = 300) -> str:
        """Calls Ray's command line on the laptop, in the repository's root."""
        settings = f"export PATH={PREFIX}/bin:$PATH RAY_AUTH_MODE=token RAY_UP_enable_autoscaler_v2=0"
        return self.laptop.run(f"{settings}; cd {ROOT}; {command}", timeout_s)

    def up(self) -> None:
        """`ray up`, and waits until all workers have joined."""
        self.ray(f"ray up --yes --no-config-cache {CONFIG}")
        self.wait_for_nodes(1 + len(self.workers))

    def on_head(self, command: str, timeout_s: float = 300) -> str:
        """Calls a command on the head, as `ray exec` does it."""
        return self.ray(f"ray exec {CONFIG} {shlex.quote(f'. ~/{NODE.name}/env; {command}')}", timeout_s)

    def nodes(self) -> int:
        """Nodes that Ray takes for alive."""
        # Straight on the head: `ray exec` would take a second or two more at each look.
        return int(self.head.run(f". {NODE}/env; python -c {shlex.quote(COUNT_NODES)} 2>/dev/null"))

    def wait_for_nodes(self, count: int, timeout_s: float = 180) -> None:
        """Returns when so many nodes are alive."""
        wait_until(lambda: self.nodes() == count, timeout_s, f"{count} nodes", every_s=3)

    def submit(self, name: str) -> str:
        """Starts `python -m mura_ray.tune` detached, and gives the job's id."""
        answer = self.on_head(
            f"ray job submit --no-wait -- python -m mura_ray.tune --space {SPACE} --format phantom --name {name}"
        )
        found = re.search(r"raysubmit_\w+", answer)
        assert found, answer
        return found.group()

    def job_status(self, job: str) -> str:
        """What Ray says of a job: RUNNING, SUCCEEDED, FAILED, ..."""
        return self.head.run(f". {NODE}/env; python -c {shlex.quote(JOB_STATUS)} {job} 2>/dev/null").strip()

    def job_log(self, job: str) -> str:
        return self.head.run(f". {NODE}/env; ray job logs {job} 2>&1")

    def wait_for_job(self, job: str, timeout_s: float = 1500) -> None:
        """Returns when a job ended well."""

        def ended() -> bool:  # asking Ray takes a second of processor time, looking for the process next to none
            return not self.head.pids(SEARCH) and self.job_status(job) not in ("PENDING", "RUNNING")

        wait_until(ended, timeout_s, job, every_s=2)
        assert self.job_status(job) == "SUCCEEDED", self.job_log(job)

    def steps(self) -> list[dict[str, Any]]:
        """What all workers noted, by time, each row with its trial and the host and process that wrote it."""
        rows = []
        for host in self.workers:
            for path in (host.home / SAMPLES.name).glob("*.jsonl"):
                trial, _, pid = path.stem.rpartition("-")
                lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                rows += [{**json.loads(line), "trial": trial, "host": host.name, "pid": int(pid)} for line in lines]
        return sorted(rows, key=lambda row: row["time"])

    def events(self) -> list[dict[str, Any]]:
        """What the workers and the trials' own processes noted of their starts, by time."""
        rows = []
        for host in (self.head, *self.workers):
            for path in (host.home / SAMPLES.name).glob("*.events"):
                pid = int(path.stem.rpartition("-")[2])
                rows += [{**json.loads(line), "host": host.name, "pid": pid} for line in path.read_text().splitlines()]
        return sorted(rows, key=lambda row: row["time"])

    def ensemble(self, name: str) -> dict[str, Any]:
        """The `ensemble.json` of a search."""
        return json.loads(get_folder(self.s3_url, f"runs/{name}/ensemble")["ensemble.json"])


SEARCH = "^python -m mura_ray.tune"
"""Command line of the search's own process."""

JOB_STATUS = (
    "import sys; from ray.job_submission import JobSubmissionClient as Client; "
    "print(Client('http://127.0.0.1:8265').get_job_status(sys.argv[1]).value)"
)
COUNT_NODES = (
    "import ray; ray.init(address='auto', logging_level=40, log_to_driver=False); "
    "print(sum(node['Alive'] for node in ray.nodes()))"
)


def wait_until(is_so: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.5) -> None:
    """Returns when something is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(every_s)


@contextlib.contextmanager
def hosts_of_a_cluster(folder: Path, space: dict[str, Any], num_workers: int = 2) -> Iterator[Cluster]:
    """A laptop, a head and workers, switched on and reachable, with nothing started on them; and the S3 server."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with network(folder) as net:
        laptop = net.add_host("laptop")
        s3 = net.add_host("s3", server_command("0.0.0.0", S3_PORT))
        head = net.add_server("head", key.with_suffix(".pub"))
        workers = [net.add_server(f"work{number}", key.with_suffix(".pub")) for number in range(num_workers)]
        s3_url = f"http://{s3.address}:{S3_PORT}"
        wait_until_open(s3.address, S3_PORT, s3.state / "console")
        plain_client(s3_url).create_bucket(Bucket=BUCKET)
        for host in (head, *workers):
            _give_keys(host)
            (host.home / SAMPLES.name).mkdir()  # on the head too: a trial's own process notes its start there
            (host.home / SPACE.name).write_text(yaml.safe_dump(space))
        (laptop.home / ".ssh").mkdir(mode=0o700)
        (laptop.home / ".ssh" / "id_ed25519").write_bytes(key.read_bytes())
        (laptop.home / ".ssh" / "id_ed25519").chmod(0o600)
        (laptop.home / CONFIG.name).write_text(filled_in(head, workers, s3_url))
        cluster = Cluster(net, laptop, head, workers, s3_url)
        cluster.ray("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        yield cluster


def _give_keys(host: Host) -> None:
    (host.home / ".aws").mkdir()
    (host.home / ".aws" / "config").write_text("[default]\nregion = us-east-1\n")
    (host.home / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = test\naws_secret_access_key = test\n"
    )


def filled_in(head: Host, workers: list[Host], s3_url: str) -> str:
    """cluster/local.yaml for these hosts: what its comments ask for, a slot a worker, and none on the head."""
    text = (ROOT / "cluster" / "local.yaml").read_text()
    for old, new in {
        "FILL-IN-HEAD-ADDRESS": head.address,
        "FILL-IN-WORKER-ADDRESS": ", ".join(worker.address for worker in workers),
        "FILL-IN-USER": "root",
        "# ssh_private_key:": "ssh_private_key:",
        "FILL-IN-SOURCE": f"s3://{BUCKET}/source",
        "FILL-IN-DATA": f"s3://{BUCKET}/shards",
        "FILL-IN-RUNS": f"s3://{BUCKET}/runs",
        "# export AWS_ENDPOINT_URL=https://s3.example.org": f"export AWS_ENDPOINT_URL={s3_url}",
        "export RAY_AUTH_MODE=token": f"export RAY_AUTH_MODE=token MURA_SAMPLE_LOG={SAMPLES}",
        "ray start --head": "ray start --head --num-cpus=0 --object-store-memory=200000000",
        "ray start --address": "ray start --num-cpus=1 --object-store-memory=200000000 --address",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
