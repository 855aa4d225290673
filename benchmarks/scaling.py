"""How does a training run grow with its hosts: steps/s, and the bytes that each step sends, against the ideal?

    python -m benchmarks.scaling --workers 1 2 4 --json scaling.json

Needs root: it makes hosts of its own out of network namespaces (tests/multihost), each a worker of one slot, and trains
the same run, with the same global batch, on 1, 2 and 4 of them. The hosts share this machine's cores, so steps/s say
what more workers can gain here only up to that number; the bytes are those of any cluster. Of n workers that all-reduce
g bytes of gradients, each sends at least 2(n-1)/n times g (a ring).
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import machine, markdown_table, write_json
from mura_ray.data import phantom
from mura_ray.distributed.all_reduce import NUM_PARAMETERS
from tests.multihost import hosts
from tests.multihost.cluster import Cluster, Host, hosts_of_a_cluster, wait_until
from tests.s3_server import put_folder

EPOCHS = 3
SETTINGS = ("image_size=64", "initial_weights=random", f"epochs={EPOCHS}", "early_stopping_epochs=99")
CONVERT = "--format phantom --source $MURA_SOURCE --dest $MURA_DATA --image-size 64"


@dataclass
class Scale:
    """A run on some workers.

    Attributes:
        workers: that took part.
        steps_per_s: median over the epochs after the first.
        sent: bytes that a worker sent for each step, the mean over the workers.
    """

    workers: int
    steps_per_s: float
    sent: float

    @property
    def ideal(self) -> float:
        """Bytes that a ring would send."""
        return 2 * (self.workers - 1) / self.workers * 4 * NUM_PARAMETERS


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row for each number of workers."""
    parser = harness.parser("scaling", __doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    parser.add_argument("--batch-size", type=int, default=8, help="of all workers together (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if reason := hosts.missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="scaling-benchmark-") as folder:
        scales = _measure(Path(folder), arguments.workers, arguments.batch_size)
    base = scales[0]
    rows = [
        [
            str(scale.workers), f"{scale.steps_per_s:.2f}", f"{scale.steps_per_s / base.steps_per_s:.2f} x",
            f"{scale.sent / 1e6:.1f}", f"{scale.ideal / 1e6:.1f}",
            f"{scale.sent / scale.ideal:.2f}" if scale.ideal else "-",
        ]
        for scale in scales
    ]  # fmt: skip
    print(markdown_table(["workers", "steps/s", "of the first row", "MB sent/step", "ideal", "of the ideal"], rows))
    if arguments.json:
        write_json(arguments.json, {"machine": machine(["ray", "torch"]), "scales": [vars(scale) for scale in scales]})
    return 0


def _measure(folder: Path, counts: Sequence[int], batch_size: int) -> list[Scale]:
    phantom.write_phantom(str(folder / "source"), num_train_studies=84, num_valid_studies=14, difficulty="easy")
    with hosts_of_a_cluster(folder, {}, num_workers=max(counts)) as cluster:
        put_folder(cluster.s3_url, folder / "source", "source")
        cluster.up()
        cluster.on_head(f"python -m mura_ray.convert {CONVERT}", timeout_s=600)
        return [_run(cluster, count, batch_size) for count in counts]


def _run(cluster: Cluster, workers: int, batch_size: int) -> Scale:
    """Trains on some workers, and reads their cables' counters at the first and the last step that count."""
    options = " ".join(f"--set {setting}" for setting in (*SETTINGS, f"batch_size={batch_size}"))
    name, began = f"run-{workers}", time.time()
    command = f"python -m mura_ray.train --name {name} --workers {workers} {options}"
    process = cluster.head.popen(f". {hosts.NODE}/env; {command} >train-{workers}.log 2>&1")

    def steps() -> list[dict[str, Any]]:
        log = cluster.head.home / f"train-{workers}.log"
        assert process.poll() in (None, 0), log.read_text()
        return [row for row in cluster.steps() if row["time"] > began and row["rank"] == 0]

    # Inside one epoch: between them are validation and the upload of a checkpoint.
    rates, sent = [], []
    for epoch in range(2, EPOCHS + 1):
        wait_until(lambda epoch=epoch: _of(steps(), epoch) >= 1, 600, f"epoch {epoch}", every_s=0.02)
        first, sent_before = _of(steps(), epoch), _sent(cluster.workers)
        last_batch = steps()[-1]["num_batches"] - 2
        wait_until(lambda epoch=epoch, last=last_batch: _of(steps(), epoch) > last, 600, "its end", every_s=0.02)
        done = _of(steps(), epoch) - first
        times = [row["time"] for row in steps() if row["epoch"] == epoch]
        sent.append((_sent(cluster.workers) - sent_before) / done / workers)
        rates.append((len(times) - 1) / (times[-1] - times[0]))
    assert process.wait(timeout=600) == 0
    return Scale(workers, statistics.median(rates), statistics.median(sent))


def _of(steps: list[dict[str, Any]], epoch: int) -> int:
    """Steps made of an epoch."""
    return sum(row["epoch"] == epoch for row in steps)


def _sent(workers: Sequence[Host]) -> int:
    """Bytes that came over the workers' cables to the bridge."""
    return sum(int(Path(f"/sys/class/net/{host.link}/statistics/rx_bytes").read_text()) for host in workers)


if __name__ == "__main__":
    raise SystemExit(main())
