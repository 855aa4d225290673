"""What does a fault cost a search: how long until it is noticed, until workers run again, and how many steps?

    python -m benchmarks.recovery --faults 20 --json recovery.json

Needs root: it makes hosts of its own out of network namespaces (tests/multihost), a head and two workers of one slot,
with an S3 server on another. Each search is one trial on both workers. One is left alone; the others meet, at random
moments, a worker process that is killed, a worker's host without power or without network, the head without power, and
the search's own process killed. Each must end with the undisturbed one's validation losses.

All times come from what the workers note of each step and of their own start, and from the run's log of faults.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Spread, machine, markdown_table, write_json
from mura_ray.data import phantom
from tests.multihost import hosts
from tests.multihost.cluster import SEARCH, Cluster, hosts_of_a_cluster, wait_until
from tests.s3_server import get_folder, put_folder

KINDS = ("worker process", "worker's power", "network", "search process", "head's power")
INTERVAL, EPOCHS, BATCH = 8, 6, 6
SPACE = {
    "num_trials": 1, "ensemble_size": 1, "workers_per_trial": 2, "gpus_per_worker": 0,
    "recovery": {"checkpoint_steps": INTERVAL, "max_failures": 100},
    "fixed": {"image_size": 64, "initial_weights": "random", "epochs": EPOCHS, "batch_size": BATCH},
    "search": {"learning_rate": {"log_uniform": [1e-4, 1e-3]}},
}  # fmt: skip
TOLERANCE = 1e-4
CHANGE_S = 25.0
"""The next fault comes within so long: a worker group takes about two epochs in this time."""

NUM_BOOTED = 3
"""Cold starts on a host that has just booted."""

DECIDED_S = 30.0
"""So long after its cable is in again, Ray has either given up a node that was cut off or goes on with it."""


@dataclass
class Fault:
    """A fault and what followed; times in seconds since the epoch, None where it does not apply.

    Attributes:
        kind: one of `KINDS`.
        at: when it was made.
        noticed: when Ray Train saw that workers were gone; None where the search itself was gone.
        able: from when on there was everything to go on with: the hosts' Ray, and the search's process.
        started: when the last worker of the next group ran.
        restored: seconds that reading the checkpoint took, the slowest worker's.
        lost: steps that were made again.
    """

    kind: str
    at: float
    noticed: float | None
    able: float
    started: float
    restored: float
    lost: int


@dataclass
class Search:
    """A search on the cluster that goes on under the same name, whatever happens."""

    cluster: Cluster
    name: str
    job: str = ""

    def start(self) -> None:
        """The command that begins and continues it."""
        self.job = self.cluster.submit(self.name)

    def strike(self, kind: str, rng: random.Random) -> float:
        """Makes a fault, repairs what a person or a cloud would repair, and gives the time of the fault."""
        cluster, at = self.cluster, time.time()
        if kind == "worker process":
            worker = rng.choice(cluster.workers)
            worker.run("pkill -KILL -f ray::RayTrainWorker")
        elif kind == "search process":
            cluster.head.run(f"pkill -KILL -f '{SEARCH}'")
            wait_until(lambda: cluster.job_status(self.job) == "FAILED", 120, "the end of the job")
            self.start()
        elif kind == "head's power":
            cluster.head.kill()
            time.sleep(rng.uniform(2, 10))
            cluster.head.start()
            cluster.up()
            self.start()
        else:
            worker = rng.choice(cluster.workers)
            worker.kill() if kind == "worker's power" else worker.cut_network()
            time.sleep(rng.uniform(2, 40))
            worker.start() if kind == "worker's power" else worker.restore_network()
        return at


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row a fault and the summary; exits 1 where a search did not end as the undisturbed one."""
    parser = harness.parser("recovery", __doc__)
    parser.add_argument("--faults", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if reason := hosts.missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory(prefix="recovery-benchmark-") as folder:
        faults, cold, wrong = _run(Path(folder), arguments.faults, random.Random(arguments.seed))
    _report(faults, cold)
    if arguments.json:
        content = {
            "machine": machine(["ray", "torch"]),
            "faults": [vars(fault) for fault in faults],
            "cold_start_s": cold,
            "wrong": wrong,
        }
        write_json(arguments.json, content)
    print(f"searches that ended otherwise than the undisturbed one: {wrong or 'none'}")
    return 1 if wrong or any(fault.lost > INTERVAL for fault in faults) else 0


def _run(folder: Path, num_faults: int, rng: random.Random) -> tuple[list[Fault], list[float], list[str]]:
    """All faults, the seconds of the cold starts, and the searches that ended wrongly."""
    phantom.write_phantom(str(folder / "source"), num_train_studies=42, num_valid_studies=7, difficulty="easy")
    kinds = [kind for _ in range(-(-num_faults // len(KINDS))) for kind in rng.sample(KINDS, len(KINDS))][:num_faults]
    faults, wrong = [], []
    with hosts_of_a_cluster(folder, SPACE) as cluster:
        put_folder(cluster.s3_url, folder / "source", "source")
        cluster.up()
        undisturbed = Search(cluster, "undisturbed")
        undisturbed.start()
        cluster.wait_for_job(undisturbed.job)
        expected = _losses(cluster, undisturbed.name)
        while kinds:
            search = Search(cluster, f"search-{len(faults)}")
            began = time.time()
            search.start()
            while kinds and cluster.job_status(search.job) == "RUNNING":
                if (fault := _next_fault(search, kinds[0], began, rng)) is None:
                    break
                faults.append(fault)
                kinds.pop(0)
                print(f"{len(faults)}/{num_faults} {_row(fault)}", flush=True)
            cluster.wait_for_job(search.job)
            found = _losses(cluster, search.name)
            if len(found) != len(expected) or max(abs(a - b) for a, b in zip(found, expected, strict=True)) > TOLERANCE:
                wrong.append(f"{search.name}: {found} instead of {expected}")
                print(f"WRONG {wrong[-1]}", flush=True)
        cold = _cold_starts(cluster)
    return faults, cold, wrong


def _next_fault(search: Search, kind: str, began: float, rng: random.Random) -> Fault | None:
    """Waits for a random moment and makes a fault there; None where the search ended first."""
    cluster = search.cluster
    wait_until(lambda: any(row["time"] > began for row in cluster.steps()), 300, "the first step")
    time.sleep(rng.uniform(0, CHANGE_S))
    if cluster.job_status(search.job) != "RUNNING" or _place(cluster.steps()[-1]) >= _last_place(cluster) - 3:
        return None
    old = {(row["host"], row["pid"]) for row in cluster.steps()}
    at = search.strike(kind, rng)

    def new_steps() -> list[dict[str, Any]]:
        return [row for row in cluster.steps() if (row["host"], row["pid"]) not in old]

    # A cable that was out for a moment costs nothing: the steps just go on, unless Ray gave the node up meanwhile. Nor
    # does a fault behind the last step: the search just ends.
    decided = time.time() + DECIDED_S

    def goes_on() -> bool:
        now = time.time()
        unbroken = kind == "network" and now > decided and cluster.steps()[-1]["time"] > now - 2
        ended = kind in KINDS[:3] and not cluster.head.pids(SEARCH)
        return bool(new_steps()) or unbroken or ended

    wait_until(goes_on, 400, f"a step after the fault ({kind}); {cluster.job_log(search.job)[-2000:]}")
    rows = cluster.steps()
    last = max(_place(row) for row in rows if row["trial"] == rows[-1]["trial"] and (row["host"], row["pid"]) in old)
    if not new_steps():
        return Fault(kind, at, None, at, at, 0.0, 0)
    first = _place(new_steps()[0])
    group = {(row["host"], row["pid"]) for row in new_steps()}
    events = [event for event in cluster.events() if (event["host"], event["pid"]) in group]
    return Fault(
        kind,
        at,
        noticed=_noticed(cluster, search, at) if kind in KINDS[:3] else None,
        able=_able(cluster, at),
        started=max(event["time"] for event in events if event["event"] == "started"),
        restored=_seconds(events, "restoring", "restored"),
        lost=last + 1 - first,
    )


def _place(row: dict[str, Any]) -> int:
    """The step's number in its run."""
    return (row["epoch"] - 1) * row["num_batches"] + row["batch"]


def _last_place(cluster: Cluster) -> int:
    return EPOCHS * cluster.steps()[-1]["num_batches"] - 1


def _noticed(cluster: Cluster, search: Search, at: float) -> float | None:
    """When Ray Train first saw the fault."""
    runs = get_folder(cluster.s3_url, f"runs/{search.name}/training")
    rows = [
        json.loads(line) for key, text in runs.items() if key.endswith("faults.jsonl") for line in text.splitlines()
    ]
    return min((row["time"] for row in rows if row["time"] > at), default=None)


def _able(cluster: Cluster, at: float) -> float:
    """From when on there were all hosts' Ray and the search's own process."""
    starts = [at]
    for host in (cluster.head, *cluster.workers):
        starts.append(time.time() - float(host.run("ps -o etimes= -C raylet | sort -n | tail -1")))
    starts += [event["time"] for event in cluster.events() if event["event"] == "begun"]
    return max(starts)


def _seconds(events: list[dict[str, Any]], first: str, last: str) -> float:
    """The longest time from one event to another of the same process."""
    found = [0.0]
    for pid in {(event["host"], event["pid"]) for event in events}:
        times = {event["event"]: event["time"] for event in events if (event["host"], event["pid"]) == pid}
        if first in times and last in times:
            found.append(times[last] - times[first])
    return max(found)


def _cold_starts(cluster: Cluster) -> list[float]:
    """Seconds from each beginning of a trial's process to the start of its last worker."""
    events = cluster.events()
    found = []
    for begun in (event for event in events if event["event"] == "begun"):
        after = [event["time"] for event in events if event["event"] == "started" and event["time"] > begun["time"]]
        if len(after) >= 2:
            found.append(after[1] - begun["time"])
    return found


def _losses(cluster: Cluster, name: str) -> list[float]:
    """The validation losses of a search's one trial, an epoch each."""
    runs = get_folder(cluster.s3_url, f"runs/{name}/training")
    (text,) = [content for key, content in runs.items() if key.endswith("epochs.jsonl")]
    return [json.loads(line)["val_loss"] for line in text.splitlines()]


def _row(fault: Fault) -> str:
    noticed = "" if fault.noticed is None else f"noticed after {fault.noticed - fault.at:.1f} s, "
    return (
        f"{fault.kind}: {noticed}able after {fault.able - fault.at:.1f} s, workers {fault.started - fault.at:.1f} s, "
        f"restored in {fault.restored:.1f} s, {fault.lost} steps lost"
    )


def _report(faults: Sequence[Fault], cold: Sequence[float]) -> None:
    cold_s = statistics.median(cold)
    rows = []
    for kind in KINDS:
        some = [fault for fault in faults if fault.kind == kind]
        if some:
            starts = [fault.started - max(fault.able, fault.noticed or 0) for fault in some if fault.started > fault.at]
            rows.append([
                kind, str(len(some)),
                _spread([fault.noticed - fault.at for fault in some if fault.noticed is not None]),
                _spread([fault.able - fault.at for fault in some]),
                _spread(starts), _spread([start / cold_s for start in starts], " x"),
                _spread([fault.restored for fault in some]), str(max(fault.lost for fault in some)),
            ])  # fmt: skip
    head = [
        "fault",
        "times",
        "noticed",
        "able to go on",
        "workers start",
        "of a cold start",
        "restore",
        "most steps lost",
    ]
    print(markdown_table(head, rows))
    print(f"cold start: {_spread(cold)}; a fault may cost {INTERVAL} steps")


def _spread(values: Sequence[float], unit: str = " s") -> str:
    return f"{Spread.of(values).text(1)}{unit}" if values else ""


if __name__ == "__main__":
    raise SystemExit(main())
