"""How many images/s does a training step take, and what does each setting and the input add?

    python -m benchmarks.train_step --json train_step.json

Compares this project's step, setting by setting, with the plain loop: torchvision's network in eager mode with TF32,
torch's Adam, PNG files through Pillow and torchvision's v2 transforms in a DataLoader with pinned memory and the number
of workers that is fastest here. Each step runs on tensors that lie on the device already, and with its input: files,
augmentation and copies. What the second is slower by is the input's share. Every measurement has a process, and so a
GPU, of its own; the rounds of all steps take turns, and ratios are those within a round.

Without a GPU it shows that all of it runs: small images, one batch size, nothing compiled unless --only asks for it
(minutes a process), and figures that say nothing of a GPU. With one, `kernels` alone takes most of the time.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Goals, Isolated, Spread, machine, markdown_table, write_json
from benchmarks.loader import radiographs
from benchmarks.loader.contenders import Data
from benchmarks.steps import ON_CPU, ON_GPU, PLAIN, STEPS, Round, measure

BEST = "graphs"
GOAL_TIMES, GOAL_INPUT_PERCENT = {8: 3.0, 128: 2.0}, 2.0

ALL = [step.name for step in STEPS]
GPU_DEFAULTS = {"size": 320, "batch": [8, 32, 128], "rounds": 3, "seconds": 5.0, "images": 8192, "only": ALL}
CPU_DEFAULTS = {"size": 64, "batch": [8], "rounds": 2, "seconds": 2.0, "images": 64, "only": list(ON_CPU)}

Rounds = dict[str, list[Round]]
"""By name of the step; those of all steps correspond."""


def main() -> int:
    """Parses, measures, reports; 1 where a step failed."""
    arguments = _parser().parse_args()
    described = machine(("torch", "torchvision", "ffcv", "pillow", "numpy"))
    described["gpu"] = torch.cuda.get_device_name() if ON_GPU else "none: the figures say nothing of a GPU"
    for name, value in described.items():
        print(f"{name:9} {value}")
    results: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="train-step-", dir=arguments.folder) as folder:
        for batch in arguments.batch:
            num_images = -(-arguments.images // batch) * batch
            data = Data(Path(folder, str(batch)), num_images, arguments.size, batch)
            _say(f"batch {batch}: writing {num_images:,} radiographs")
            with Isolated() as maker:
                maker.call(_make, data)
            workers = _tuned_workers(data, arguments) if PLAIN in arguments.only else {}
            rounds = _run(data, arguments, workers, failures)
            print(f"\nbatch {batch}, {data.size} px, {arguments.rounds} rounds of {arguments.seconds:g} s", end="")
            print(f"; DataLoader workers: {_best(workers)}" if workers else "")
            print(f"\n{table(rounds)}\n")
            goals = Goals()
            if ON_GPU and data.size == 320:
                _add_goals(goals, rounds, batch)
            goals.report()
            results.append({
                "batch": batch, "images": num_images, "images_per_s_by_workers": workers, "goals": goals.found,
                "rounds": {name: [asdict(one) for one in of_step] for name, of_step in rounds.items()},
            })  # fmt: skip
    if arguments.json:
        write_json(arguments.json, {
            "machine": described, "size": arguments.size, "seconds": arguments.seconds,
            "steps": [asdict(step) for step in STEPS], "results": results, "failures": failures,
        })  # fmt: skip
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser("train_step", __doc__)
    parser.set_defaults(**(GPU_DEFAULTS if ON_GPU else CPU_DEFAULTS))
    parser.add_argument("--size", type=int, help="side in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", help="images of a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: %(default)s)")
    parser.add_argument("--images", type=int, help="raised to whole batches (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="DataLoader workers to try for the plain loop (default: 0, 1, 2, 4 ...)"
    )
    parser.add_argument("--folder", type=Path, help="where to make and remove the files (default: the temporary one)")
    return parser


def _make(data: Data) -> None:
    data.folder.mkdir(parents=True)
    radiographs.make_shards(data, radiographs.make_pngs(data))
    radiographs.fill_cache(data)


def _tuned_workers(data: Data, arguments: argparse.Namespace) -> dict[int, float]:
    """Images/s of the plain loop by number of DataLoader workers."""
    cpus, seconds = len(os.sched_getaffinity(0)), arguments.seconds
    found = {}
    for workers in arguments.workers or (0, *(2**power for power in range(cpus.bit_length()) if 2**power <= cpus)):
        try:
            with Isolated() as process:
                found[workers] = process.call(measure, STEPS[0], data, workers, seconds / 2).attached
        except torch.OutOfMemoryError:  # on the device: the rounds will say so
            break
    _say("images/s by DataLoader workers: " + ", ".join(f"{workers}: {speed:,.0f}" for workers, speed in found.items()))
    return found


def _best(workers: Mapping[int, float]) -> int:
    return max(workers, key=lambda number: workers[number], default=0)


def _run(data: Data, arguments: argparse.Namespace, workers: Mapping[int, float], failures: dict[str, str]) -> Rounds:
    """All rounds at one batch size, of the steps that do not fail in any."""
    rounds: Rounds = defaultdict(list)
    steps = [step for step in STEPS if step.name in arguments.only]
    for number in range(arguments.rounds):
        for step in list(steps):
            _say(f"batch {data.batch}, round {number + 1} of {arguments.rounds}: {step.title}")
            try:
                with Isolated() as process:
                    rounds[step.name].append(process.call(measure, step, data, _best(workers), arguments.seconds))
            except Exception as error:  # out of memory, or nothing to compile with: the others go on
                failures[f"{step.name}, batch {data.batch}"] = f"{type(error).__name__}: {error}"
                print(f"{step.title} FAILED at batch {data.batch}: {type(error).__name__}: {error}", flush=True)
                steps.remove(step)
                rounds.pop(step.name, None)
    return dict(rounds)


def table(rounds: Rounds) -> str:
    """A row for each step; ratios are of images/s with input, within a round."""
    head = [
        "step",
        "images/s, preloaded",
        "images/s with input",
        "x plain loop",
        "x plain step, preloaded",
        "input %",
        "start s",
    ]
    rows = []
    for step in STEPS:
        if step.name in rounds:
            mine, plain = rounds[step.name], rounds.get(PLAIN)
            rows.append([
                step.title,
                Spread.of([one.preloaded for one in mine]).text(1),
                Spread.of([one.attached for one in mine]).text(1),
                Spread.of(_ratios(mine, [one.attached for one in plain])).text(2) if plain else "",
                Spread.of(_ratios(mine, [one.preloaded for one in plain])).text(2) if plain else "",
                Spread.of([one.input_percent for one in mine]).text(1),
                Spread.of([one.start_s for one in mine]).text(1),
            ])  # fmt: skip
    return markdown_table(head, rows)


def _ratios(mine: Sequence[Round], theirs: Sequence[float]) -> list[float]:
    return [one.attached / other for one, other in zip(mine, theirs, strict=True)]


def _add_goals(goals: Goals, rounds: Rounds, batch: int) -> None:
    """Of the fastest settings, by median."""
    if BEST not in rounds:
        return
    share = Spread.of([one.input_percent for one in rounds[BEST]])
    goals.add("input %", share.text(1), share.median <= GOAL_INPUT_PERCENT, f"at most {GOAL_INPUT_PERCENT:g}")
    if PLAIN in rounds and batch in GOAL_TIMES:
        for what, theirs in (
            ("times the plain loop", [one.attached for one in rounds[PLAIN]]),
            ("times the plain step, preloaded", [one.preloaded for one in rounds[PLAIN]]),
        ):
            times = Spread.of(_ratios(rounds[BEST], theirs))
            goals.add(what, times.text(2), times.median >= GOAL_TIMES[batch], f"at least {GOAL_TIMES[batch]:g}")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
