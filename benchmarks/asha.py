"""How much of a search's training does ASHA save, and what does it lose?

    python -m benchmarks.asha --work asha-benchmark --json asha.json

Trains every trial of a seeded search to its end (FIFO) on a phantom, with the project's own commands, and keeps them in
the work folder; a second call only replays, and a call that was interrupted goes on. The trials start from a network
trained on another phantom, in the place of ImageNet's, or (`--start random`) from random weights. A replay lets the
trials arrive in another order, a few of them at once, and asks the scheduler that a space file would get, Ray's, after
each epoch whether the trial goes on. All replays are of one set of trials: they show what the order does, and another
`--seed` what other trials do.
"""

import argparse
import heapq
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from benchmarks import harness
from benchmarks.harness import Goals, Spread, machine, markdown_table, write_json
from mura_ray import cli
from mura_ray.distributed.space import Asha, Space, read_space, scheduler, trial_config
from mura_ray.distributed.sweep import kept_checkpoints
from mura_ray.distributed.tracking import EPOCHS_FILE, read_epochs
from mura_ray.model.checkpoint import MODEL
from mura_ray.training.selection import Candidate, choose_members

IMAGE_SIZE, BATCH_SIZE = 64, 32


@dataclass(frozen=True)
class Search:
    """What the searches from trained and from random weights do not share.

    Attributes:
        num_train: studies of the phantom.
        num_valid: studies of the phantom.
        learning_rate: bounds, log-uniform.
        epochs: of a trial that is not stopped.
        lr_patience: as in a trial's settings.
    """

    num_train: int
    num_valid: int
    learning_rate: tuple[float, float]
    epochs: int
    lr_patience: int


SEARCHES = {
    "trained": Search(420, 160, learning_rate=(1e-6, 1e-3), epochs=6, lr_patience=0),
    "random": Search(320, 200, learning_rate=(1e-5, 1e-2), epochs=10, lr_patience=2),
}
START_SETTINGS = {
    "image_size": IMAGE_SIZE, "initial_weights": "random", "batch_size": BATCH_SIZE, "learning_rate": 6e-4,
    "epochs": 8, "lr_patience": 1, "precision": "bf16", "augmentation.rotation_deg": 10,
}  # fmt: skip
GOAL_LOSS, GOAL_EPOCHS = 1.02, 0.45
START_FILE = "start.safetensors"
SHIPPED = Asha()
OTHERS = [Asha(grace_epochs=grace, reduction_factor=factor) for grace in (1, 2, 3) for factor in (2, 3, 4)]
EPOCH_JITTER = 0.1
"""Epochs of all trials are equally long but for this share: the batch size is not searched."""


@dataclass(frozen=True)
class Curve:
    """What a trial reported when it ran to its end: the validation loss of each epoch."""

    trial: str
    learning_rate: float
    val_losses: tuple[float, ...]

    @property
    def best(self) -> float:
        """The lowest validation loss."""
        return min(self.val_losses)


@dataclass(frozen=True)
class Replay:
    """What a search with early stopping comes to, beside the same trials run to their ends.

    Attributes:
        best: its lowest validation loss, as a multiple of the other's.
        epochs: trained, as a share.
        same_members: how many of its ensemble's members are the other's.
        members: mean validation loss of its ensemble's members, as a multiple.
    """

    best: float
    epochs: float
    same_members: float
    members: float


def main() -> int:
    """Parses, trains what is not trained yet, replays, reports; 1 where the defaults miss a goal."""
    parser = harness.parser("asha", __doc__)
    parser.add_argument("--work", type=Path, default=Path("asha-benchmark"), help="kept (default: %(default)s)")
    parser.add_argument("--start", choices=tuple(SEARCHES), default="trained", help="of trials (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=24, help="of the search (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the search's draws (default: %(default)s)")
    parser.add_argument("--replays", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="trials at once in a replay (default: %(default)s)")
    return cli.run(lambda: _benchmark(parser.parse_args()))


def _benchmark(arguments: argparse.Namespace) -> int:
    described = machine(("ray", "torch"))
    search, work = SEARCHES[arguments.start], arguments.work.absolute()
    initial_weights = "random" if arguments.start == "random" else str(work / START_FILE)
    space = benchmark_space(search, arguments.trials, arguments.seed, initial_weights)
    curves = read_curves(train_trials(work, f"{arguments.start}-{arguments.seed}", search, space), space)
    for name, value in described.items():
        print(f"{name:9} {value}")
    print(f"\n{_curves_table(curves)}\n")
    replays = {
        asha: list(replays_of(curves, _with_asha(space, asha), arguments.replays, arguments.slots))
        for asha in [SHIPPED, *(other for other in OTHERS if other != SHIPPED)]
    }
    print(f"{_title(SHIPPED)}, {arguments.slots} trials at once\n\n{_replays_table(replays[SHIPPED])}\n")
    print(f"median (least - most) of {arguments.replays} replays\n\n{_settings_table(replays)}\n")
    goals = Goals()
    for what, aim, values in (
        ("best validation loss, of FIFO's", GOAL_LOSS, [one.best for one in replays[SHIPPED]]),
        ("epochs, of FIFO's", GOAL_EPOCHS, [one.epochs for one in replays[SHIPPED]]),
    ):
        measured = Spread.of(values)
        goals.add(what, measured.text(3), measured.median <= aim, f"at most {aim}")
    goals.report()
    if arguments.json:
        write_json(arguments.json, {
            "machine": described, "space": space.model_dump(mode="json"), "slots": arguments.slots,
            "goals": goals.found,
            "curves": [asdict(curve) for curve in curves],
            "replays": [{**asha.model_dump(), "replays": list(map(asdict, each))} for asha, each in replays.items()],
        })  # fmt: skip
    return 0 if goals.are_met else 1


def benchmark_space(search: Search, num_trials: int, seed: int, initial_weights: str = "random") -> Space:
    """The space file: learning rates from far too small to too large, and the augmentation's strength."""
    return Space.model_validate({
        "num_trials": num_trials,
        "seed": seed,
        "fixed": {
            "image_size": IMAGE_SIZE, "initial_weights": initial_weights, "batch_size": BATCH_SIZE,
            "epochs": search.epochs, "lr_patience": search.lr_patience, "precision": "bf16",
        },
        "search": {
            "learning_rate": {"log_uniform": search.learning_rate},
            "augmentation.rotation_deg": {"uniform": [0, 30]},
            "augmentation.scale": {"uniform": [0, 0.3]},
        },
    })  # fmt: skip


def train_trials(work: Path, name: str, search: Search, space: Space) -> Path:
    """Trains all trials of a search, and first the network that they start from, where they are not there yet.

    Returns:
        The search's folder.
    """
    runs, space_file = work / "runs", work / f"{name}.yaml"
    if (runs / name / "ensemble" / "ensemble.json").exists() and read_space(str(space_file)) == space:
        return runs / name
    work.mkdir(parents=True, exist_ok=True)
    if space.fixed["initial_weights"] != "random" and not (work / START_FILE).exists():
        train_start(work)
    data = make_shards(work, name, search.num_train, search.num_valid, seed=0)
    space_file.write_text(yaml.safe_dump(space.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    _command(work, "tune", "--space", space_file, "--data", data, "--runs", runs, "--name", name)
    return runs / name


def train_start(work: Path) -> None:
    """Trains the network that trials start from, on a phantom of its own, into `START_FILE`."""
    data, runs = make_shards(work, "start", num_train=320, num_valid=200, seed=1), work / "runs"
    settings = [f"--set={name}={value}" for name, value in START_SETTINGS.items()]
    _command(work, "train", "--data", data, "--runs", runs, "--name", "start", *settings)
    checkpoint, _ = min(kept_checkpoints(str(runs / "start")), key=lambda pair: pair[1]["val_loss"])
    shutil.copy(Path(checkpoint.path) / MODEL, work / START_FILE)


def make_shards(work: Path, name: str, num_train: int, num_valid: int, seed: int) -> Path:
    """Makes a phantom of so many studies and its shards where they are not there yet. Returns the shards' folder."""
    source, shards = work / f"radiographs-{name}", work / f"shards-{name}"
    if not source.exists():
        _command(work, "data.phantom", "--out", source, "--train-studies", num_train, "--valid-studies", num_valid,
                 "--difficulty", "easy", "--seed", seed)  # fmt: skip
    if not (shards / "manifest.json").exists():
        _command(work, "convert", "--format", "phantom", "--splits", "official", "--source", source, "--dest", shards,
                 "--image-size", IMAGE_SIZE)  # fmt: skip
    return shards


def _command(work: Path, module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", f"mura_ray.{module}", *map(str, arguments)]
    print(f"$ {' '.join(['python', *command[1:]])}", flush=True)
    done = subprocess.run(
        command, env={**os.environ, "RAY_ADDRESS": "local", "MURA_CACHE": str(work / "cache")}, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"python -m mura_ray.{module} failed, see above")


def read_curves(home: Path, space: Space) -> list[Curve]:
    """The trials of a search that ran to its end, in the order in which they were drawn.

    Raises:
        ValueError: a trial has not reported each of its epochs.
    """
    epochs = trial_epochs(space)
    curves = []
    for log in sorted(home.glob(f"training/*/{EPOCHS_FILE}")):
        rows = read_epochs(str(log.parent))
        if len(rows) != epochs:
            raise ValueError(f"{log} has {len(rows)} of {epochs} epochs: remove {home}, to train the trials again")
        curves.append(Curve(log.parent.name, rows[0]["learning_rate"], tuple(row["val_loss"] for row in rows)))
    if len(curves) != space.num_trials:
        raise ValueError(f"{home} has {len(curves)} of {space.num_trials} trials: remove it, to train them again")
    return curves


def trial_epochs(space: Space) -> int:
    """Epochs of a trial that is not stopped."""
    return trial_config(space, {}).epochs


def replays_of(curves: Sequence[Curve], space: Space, number: int, slots: int) -> Iterator[Replay]:
    """So many replays of a search under the scheduler of a space, each with another order of the trials."""
    full = [candidate(curve, len(curve.val_losses)) for curve in curves]
    full_members = choose_members(full, space.ensemble_size)
    for seed in range(number):
        rng = random.Random(seed)
        order = rng.sample(curves, len(curves))
        reports = replay([curve.val_losses for curve in order], scheduler(space), slots, rng)
        epochs = [0] * len(order)
        for index, epoch in reports:
            epochs[index] = epoch
        members = choose_members(list(map(candidate, order, epochs)), space.ensemble_size)
        yield Replay(
            best=members[0].val_loss / full_members[0].val_loss,
            epochs=len(reports) / sum(len(curve.val_losses) for curve in curves),
            same_members=len({one.trial for one in members} & {one.trial for one in full_members}),
            members=mean_loss(members) / mean_loss(full_members),
        )


def replay(
    val_losses: Sequence[Sequence[float]], scheduler: Any, slots: int, rng: random.Random
) -> list[tuple[int, int]]:
    """Plays trials under one of Tune's schedulers, without training, as Tune would call it.

    Args:
        val_losses: of each trial and epoch, the trials in the order in which they arrive.
        scheduler: a new one.
        slots: trials at once.
        rng: draws by how much one epoch is longer than another.

    Returns:
        The reports in their order: index of the trial, and the epoch, which counts from 1.
    """
    scheduler.set_search_properties("val_loss", "min")
    epochs = [0] * len(val_losses)
    trials = [Trial("replay", trial_id=str(index), stub=True) for index in range(len(val_losses))]
    reports: list[tuple[int, int]] = []
    due: list[tuple[float, int]] = []  # a heap of when a trial's next epoch ends
    arrived = iter(range(len(trials)))
    now = 0.0

    def begin_epoch(index: int) -> None:
        heapq.heappush(due, (now + 1 + rng.uniform(0, EPOCH_JITTER), index))

    def fill_slots() -> None:
        for index in itertools.islice(arrived, slots - len(due)):
            scheduler.on_trial_add(None, trials[index])
            begin_epoch(index)

    fill_slots()
    while due:
        now, index = heapq.heappop(due)
        epoch = epochs[index] = epochs[index] + 1
        result = {"epoch": epoch, "val_loss": val_losses[index][epoch - 1]}
        reports.append((index, epoch))
        decision = scheduler.on_trial_result(None, trials[index], result)
        if decision == TrialScheduler.CONTINUE and epoch < len(val_losses[index]):
            begin_epoch(index)
        else:
            scheduler.on_trial_complete(None, trials[index], result)
            fill_slots()
    return reports


def candidate(curve: Curve, epochs: int) -> Candidate:
    """The best of a trial's first epochs, as the search would keep it."""
    best = min(range(epochs), key=lambda index: curve.val_losses[index])
    return Candidate(curve.trial, 1 + best, curve.val_losses[best], checkpoint="")


def mean_loss(members: Sequence[Candidate]) -> float:
    """Of an ensemble's members."""
    return statistics.mean(member.val_loss for member in members)


def _with_asha(space: Space, asha: Asha) -> Space:
    return space.model_copy(update={"scheduler": "asha", "asha": asha})


def _title(asha: Asha) -> str:
    return f"grace {asha.grace_epochs}, reduction {asha.reduction_factor}"


def _curves_table(curves: Sequence[Curve]) -> str:
    head = ("trial", "learning rate", "best", *map(str, range(1, 1 + len(curves[0].val_losses))))
    rows = [
        (str(number), f"{curve.learning_rate:.1e}", f"{curve.best:.4f}", *(f"{loss:.3f}" for loss in curve.val_losses))
        for number, curve in enumerate(curves)
    ]
    return markdown_table(head, rows)


def _replays_table(replays: Sequence[Replay]) -> str:
    head = ("replay", "best loss / FIFO's", "epochs / FIFO's", "members in common", "members' loss / FIFO's")
    return markdown_table(head, [
        (str(number), f"{one.best:.3f}", f"{one.epochs:.1%}", str(one.same_members), f"{one.members:.3f}")
        for number, one in enumerate(replays)
    ])  # fmt: skip


def _settings_table(replays: Mapping[Asha, Sequence[Replay]]) -> str:
    head = ("setting", "best loss / FIFO's", "within 2 %", "epochs %", "members in common", "members' loss / FIFO's")
    rows = []
    for asha, each in replays.items():
        columns = {
            name: Spread.of([getattr(one, name) for one in each]) for name in ("best", "same_members", "members")
        }
        rows.append((
            _title(asha),
            columns["best"].text(3),
            f"{sum(one.best <= GOAL_LOSS for one in each)} of {len(each)}",
            Spread.of([100 * one.epochs for one in each]).text(),
            columns["same_members"].text(),
            columns["members"].text(3),
        ))  # fmt: skip
    return markdown_table(head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
