"""Ray clusters on this machine, each in a process of its own, that ask for a token."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, *(node.node_id for node in (cluster.head_node, *nodes)), flush=True)
for line in sys.stdin:  # nodes can be added from the main thread only
    if line.strip() == "remove":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(num_cpus=1))
    print("done", flush=True)
cluster.shutdown()
"""


ONE_NODE = "import ray, sys; print(ray.init(address='local').address_info['gcs_address'], flush=True); sys.stdin.read()"


@contextlib.contextmanager
def _running(script: str, variables: Mapping[str, str]) -> Iterator[tuple[IO[str], IO[str]]]:
    """A process with a cluster, which ends when its standard input does. Gives that and its standard output."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True, env={**os.environ, **TOKEN, **variables},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        yield process.stdin, process.stdout
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


@contextlib.contextmanager
def one_node(variables: Mapping[str, str]) -> Iterator[str]:
    """A cluster with this machine's CPUs and these environment variables, for commands that join it. Gives its address.

    It outlives the commands that are killed on it.
    """
    with _running(ONE_NODE, variables) as (_, output):
        address = output.readline().strip()
        assert address, "no cluster"
        yield address


@contextlib.contextmanager
def three_nodes(**variables: str) -> Iterator[tuple[str, list[str], Callable[[str], None]]]:
    """A cluster of a head without CPUs and two nodes of one, started with these environment variables.

    Gives its address, the nodes' ids, the head's first, and a way to "remove" the last node (as a power cut would) and
    to "add" one.
    """
    with _running(CLUSTER, variables) as (stdin, output):

        def tell(what: str) -> None:
            stdin.write(f"{what}\n")
            stdin.flush()
            assert output.readline() == "done\n"

        address, *node_ids = output.readline().split()
        yield address, node_ids, tell
