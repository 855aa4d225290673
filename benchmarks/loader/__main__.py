"""How fast do the same radiographs come through this project's loader and through others, and why?

    python -m benchmarks.loader --images 4000 --rounds 5 --json loader.json

Every contender reads phantom radiographs from files of its own format in a process of its own, shuffled, in batches,
out of a warm page cache. The rounds of all contenders take turns, and ratios are those within a round, so that what
else the machine does strikes all alike. Beforehand each must show that an epoch holds every image once, with the right
pixels. The plain array behind torch's DataLoader tells the share of the format from the share of the loader.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Isolated, disk_bytes, machine, watched_memory, write_json
from benchmarks.loader import measure, radiographs, report
from benchmarks.loader.contenders import CONTENDERS, INSTALL, Contender, Data
from benchmarks.loader.report import RemoteResult, Result

PACKAGES = (
    "torch", "torchvision", "numpy", "ffcv", "numba", "opencv-python-headless", "pillow", "webdataset",
    "mosaicml-streaming",
)  # fmt: skip
ROUND_S, TRIAL_S = 1.0, 2.0
OPENINGS = 3
REMOTE_IMAGES, REMOTE_ROUNDS = 2048, 3


def main() -> int:
    """Parses, measures, reports; 1 where a contender failed or delivered something else."""
    parser = _parser()
    arguments = parser.parse_args()
    num_images = -(-arguments.images // arguments.batch) * arguments.batch  # so that nobody leaves a rest out
    described = machine(PACKAGES)
    for name, value in described.items():
        print(f"{name:9} {value}")
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-", dir=arguments.folder) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # for what the contenders leave behind, too
        data = Data(Path(folder, "data"), num_images, arguments.size, arguments.batch)
        results, failures = ([], {}) if arguments.skip == "files" else _run_local(data, arguments)
        goals = report.goals(results)
        for goal in goals:
            print(report.goal_line(goal))
        remote = [] if arguments.skip == "s3" else _run_remote(data, arguments)
    if arguments.json:
        write_json(arguments.json, {
            "machine": described, "images": num_images, "size": arguments.size, "batch": arguments.batch,
            "loaders": [report.as_json(result, num_images) for result in results], "goals": goals,
            "first_epoch": [{**asdict(result), "contender": result.contender.name} for result in remote],
            "failures": failures,
        })  # fmt: skip
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser("loader", __doc__)
    parser.add_argument("--images", type=_positive, default=4000, help="raised to whole batches (default: %(default)s)")
    parser.add_argument("--size", type=_positive, default=320, help="side in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=_positive, default=64, help="images of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="(default: %(default)s)")
    parser.add_argument("--link", type=float, default=100, help="MB/s from the S3 server (default: %(default)s)")
    names = [one.name for one in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}, from files")
    parser.add_argument("--skip", choices=("files", "s3"), help="one of the two parts: from files, from S3")
    parser.add_argument("--folder", type=Path, help="where to make and remove the files (default: the temporary one)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: pass a whole number greater than 0")
    return int(text)


def _run_local(data: Data, arguments: argparse.Namespace) -> tuple[list[Result], dict[str, str]]:
    """All contenders from files. Returns the results, and why others have none, by name."""
    _say(f"writing {data.num_images:,} radiographs in every format")
    with Isolated() as maker:
        maker.call(radiographs.make, data)
        maker.call(radiographs.fill_cache, data)
    failures: dict[str, str] = {}
    running: list[tuple[Isolated, Result]] = []
    with ExitStack() as processes:
        for contender in CONTENDERS:
            if arguments.only and contender.name not in arguments.only:
                continue
            if not contender.is_installed:
                print(f"{contender.title}: not installed, left out; to have it: {INSTALL}")
                continue
            try:
                result = _prepare(contender, data)
                process = processes.enter_context(Isolated())
                _start(process, result, data)
                running.append((process, result))
            except Exception as error:  # of whatever kind another's loader raises
                failures[contender.name] = f"{type(error).__name__}: {error}"
                print(f"{contender.title} FAILED: {failures[contender.name]}", flush=True)
        for number in range(arguments.rounds):
            _say(f"round {number + 1} of {arguments.rounds}")
            for process, result in running:
                result.rounds.append(process.call(measure.run_round, data, ROUND_S))
        for process, _ in running:
            process.call(measure.close)
    results = [result for _, result in running]
    print(f"\n{data.num_images:,} images, {data.size} px, batches of {data.batch}, {arguments.rounds} rounds\n")
    print(report.loader_table(results, data.num_images), end="\n\n")
    return results, failures


def _prepare(contender: Contender, data: Data) -> Result:
    """Chooses the number of workers, and times the first batch in fresh processes, all but once."""
    result = Result(contender, contender.workers[0], disk_bytes=disk_bytes(data.folder / contender.folder))
    if len(contender.workers) > 1:
        with Isolated() as process:
            for workers in contender.workers:
                speed = process.call(measure.trial_images_per_s, contender, data, workers, TRIAL_S)
                result.trials[workers] = speed
        result.workers = max(result.trials, key=lambda workers: result.trials[workers])
    for _ in range(OPENINGS - 1):
        with Isolated() as process:
            result.openings.append(process.call(measure.seconds_to_first_batch, contender, data, result.workers))
            process.call(measure.close)
    return result


def _start(process: Isolated, result: Result, data: Data) -> None:
    """Opens the contender, warms it up, and checks what it delivers."""
    contender = result.contender
    result.openings.append(process.call(measure.seconds_to_first_batch, contender, data, result.workers))
    with watched_memory(process.pid) as result.memory:
        process.call(measure.warm_up, ROUND_S)
    process.call(measure.check_epoch, data, contender.pixels)
    tried = ", ".join(f"{workers}: {speed:,.0f}" for workers, speed in result.trials.items())
    _say(f"{contender.title}: checked" + (f"; images/s by workers: {tried}" if tried else ""))


def _run_remote(data: Data, arguments: argparse.Namespace) -> list[RemoteResult]:
    if importlib.util.find_spec("moto") is None:
        print("\nfirst epochs from S3: left out, because the development packages (moto, flask) are not installed")
        return []
    from benchmarks.loader import first_epoch

    num_images = min(data.num_images, REMOTE_IMAGES // data.batch * data.batch)
    some = Data(Path(tempfile.gettempdir(), "remote"), num_images, data.size, data.batch)
    _say("first epochs from S3")
    results = first_epoch.run(some, min(arguments.rounds, REMOTE_ROUNDS), arguments.link * 1e6)
    print(f"\nFrom S3 over a link of {arguments.link:g} MB/s, {num_images:,} images, nothing cached\n")
    print(report.remote_table(results, arguments.link * 1e6))
    return results


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
