"""Turns EC2's two-minute notice of a spot interruption into a drain of this node, which Ray Train prepares for.

    python -m mura_ray.distributed.spot

Runs on each spot node beside Ray, which does not look for the notice itself, and ends with it. The instance's metadata
are read the way IMDSv2 asks for: with a token. Knows nothing of training: recovery.py reacts to the drain.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ray

METADATA = "http://169.254.169.254"
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Environment variable with another address of the metadata service; boto3 reads it too."""

TOKEN_S = 21600
POLL_EVERY_S = 5.0
"""As EC2's documentation advises."""


def main(argv: list[str] | None = None) -> int:
    """Watches until there is a notice, or no Ray on this machine any more."""
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.distributed.spot",
        description="Drains this Ray node when EC2 announces that it takes the spot instance away.",
        epilog="example (among worker_start_ray_commands): nohup python -m mura_ray.distributed.spot >spot.log 2>&1 &",
    )
    parser.add_argument("--node-id", help="of the Ray node to drain (default: the one of this machine)")
    arguments = parser.parse_args(argv)
    metadata = os.environ.get(ENDPOINT) or METADATA
    print(f"watching {metadata} for the notice of a spot interruption", flush=True)
    deadline = watch(metadata)
    if deadline is None:
        print("Ray has ended on this machine, and so does the watch", flush=True)
        return 0
    return drain(arguments.node_id, deadline)


def watch(metadata: str) -> datetime | None:
    """Waits for the notice.

    Args:
        metadata: address of the metadata service.

    Returns:
        When the instance is taken away; None where Ray ended on this machine before.
    """
    with httpx.Client(base_url=metadata, timeout=2, trust_env=False) as client:
        while ray_runs():
            deadline = notice(client)
            if deadline is not None:
                return deadline
            time.sleep(POLL_EVERY_S)
    return None


def notice(client: httpx.Client) -> datetime | None:
    """When the instance is taken away; None while nothing is announced, or the service does not answer."""
    try:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        token = client.put("/latest/api/token", headers=headers).raise_for_status().text
        answer = client.get("/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
        if answer.status_code == 404:  # nothing is announced
            return None
        action: Any = answer.raise_for_status().json()
        return datetime.fromisoformat(action["time"].replace("Z", "+00:00"))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        print(f"the metadata service gave no answer: {error!r}", file=sys.stderr, flush=True)
        return None


def drain(node_id: str | None, deadline: datetime) -> int:
    """Tells Ray that a node is taken away, so that runs leave a checkpoint and nothing new starts there.

    Args:
        node_id: of the node; None: the one of this machine.
        deadline: when it is taken away.

    Returns:
        The exit code of `ray drain-node`.
    """
    ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False)
    context = ray.get_runtime_context()
    address, node_id = context.gcs_address, node_id or context.get_node_id()
    ray.shutdown()
    left_s = max(1, int((deadline - datetime.now(UTC)).total_seconds()))
    command = [
        str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "EC2 takes the spot instance away",
        "--deadline-remaining-seconds", str(left_s),
    ]  # fmt: skip
    print(f"the instance is taken away in {left_s} s: draining node {node_id}", flush=True)
    return subprocess.run(command, check=False).returncode


def ray_runs() -> bool:
    """Whether a raylet runs on this machine."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text().strip() == "raylet":
                return True
        except OSError:  # the process has ended
            continue
    return False


if __name__ == "__main__":
    raise SystemExit(main())
