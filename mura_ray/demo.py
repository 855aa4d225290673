"""`python -m mura_ray.demo`: the main job once, on this machine alone, from radiographs to a study answered over HTTP.

The radiographs are synthetic (data/phantom.py) and the network starts from random weights, so the result says that
everything works together, not how well the method reads real radiographs. Each stage is one of the project's commands,
and is skipped where its result is already there.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import yaml

from mura_ray import cli, convert, evaluate, store, tune
from mura_ray.data import phantom
from mura_ray.data.collection import Collection
from mura_ray.data.manifest import read_table
from mura_ray.distributed.conversion import run_conversion
from mura_ray.distributed.session import API_SERVER, ray_session
from mura_ray.domain import ABNORMAL, NORMAL
from mura_ray.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
NUM_TRAIN_STUDIES, NUM_VALID_STUDIES = 250, 130
IMAGE_SIZE = 128
SEED = 0
SERVER_START_S = 180

EPILOG = """example:
  python -m mura_ray.demo --out demo

With --shuffled-labels the training labels say nothing about the images: the control in which AUROC must fall to 0.5."""


def main(argv: list[str] | None = None) -> int:
    """Parses, runs every stage, reports."""
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.demo",
        description="Phantom radiographs, shards, search, ensemble of five, evaluation, a study answered over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="demo", help="folder for everything it makes (default: %(default)s)")
    parser.add_argument(
        "--shuffled-labels", action="store_true", help="permute the labels of train and valid: a control"
    )
    arguments = parser.parse_args(argv)
    return cli.run(lambda: _demo(Path(store.absolute(arguments.out)), arguments.shuffled_labels))


def _demo(out: Path, shuffled: bool) -> None:
    os.environ["RAY_ADDRESS"] = "local"  # a cluster of this machine alone, whatever else runs here
    source, shards, runs = out / "radiographs", out / "shards", out / "runs"
    ensemble = runs / "demo" / "ensemble"
    stages: list[tuple[str, Callable[[], None]]] = [
        ("synthetic radiographs in the MURA-v1.1 layout", lambda: _make_radiographs(source)),
        ("shards", lambda: _make_shards(source, shards, shuffled)),
        ("search, and the five best trials as the ensemble", lambda: _search(shards, runs)),
        ("evaluation on patients that nothing was chosen on", lambda: _evaluate(ensemble, shards)),
        ("a study answered over HTTP", lambda: _serve_one_study(out, source, shards, ensemble)),
    ]
    seconds = {}
    with ray_session(worker_logs=False):
        for number, (title, stage) in enumerate(stages, start=1):
            print(f"\n=== {number}/{len(stages)}: {title}", flush=True)
            started = time.monotonic()
            stage()
            seconds[title] = time.monotonic() - started
            print(f"--- {seconds[title]:.0f} s", flush=True)
    _report(out, seconds)


def _make_radiographs(source: Path) -> None:
    if (source / phantom.COLLECTION).exists():
        print(f"already in {source}")
        return
    command = ["--out", str(source), "--train-studies", str(NUM_TRAIN_STUDIES), "--valid-studies",
               str(NUM_VALID_STUDIES), "--difficulty", "easy", "--seed", str(SEED)]  # fmt: skip
    _command("mura_ray.data.phantom", phantom.main, command)


def _make_shards(source: Path, shards: Path, shuffled: bool) -> None:
    if shuffled:
        collection = shuffle_labels(convert.read_collection("phantom", str(source)))
        run_conversion(collection, str(shards), image_size=IMAGE_SIZE, allow_damaged=False)
        return
    command = ["--format", "phantom", "--source", str(source), "--dest", str(shards), "--image-size", str(IMAGE_SIZE)]
    _command("mura_ray.convert", convert.main, command)


def _search(shards: Path, runs: Path) -> None:
    space = ROOT / "tune_spaces" / "demo.yaml"
    command = ["--space", str(space), "--data", str(shards), "--runs", str(runs), "--name", "demo"]
    _command("mura_ray.tune", tune.main, command)


def _evaluate(ensemble: Path, shards: Path) -> None:
    command = ["--ensemble", str(ensemble), "--data", str(shards), "--split", "test"]
    _command("mura_ray.evaluate", evaluate.main, command)


def _command(module: str, main_function: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Runs one of the commands in this process, after printing it as one would type it."""
    print(f"$ python -m {module} {' '.join(arguments)}", flush=True)
    if main_function(arguments) != 0:
        raise ValueError(f"python -m {module} failed, see above")


def shuffle_labels(collection: Collection) -> Collection:
    """The collection with labels in `train` and `valid` that say nothing of the images; `test` keeps its own.

    Each type keeps its share of abnormal studies, and has the same share among its truly normal and among its truly
    abnormal ones: a plain permutation of a few hundred studies would still agree with the truth by chance.
    """
    generator = np.random.default_rng(SEED)
    splits = dict(collection.splits)
    for split in ("train", "valid"):
        studies = list(splits[split])
        for study_type in sorted({study.study_type for study in studies}):
            labels = [study.label for study in studies if study.study_type == study_type]
            for label in (NORMAL, ABNORMAL):
                cell = [
                    i for i, study in enumerate(splits[split]) if (study.study_type, study.label) == (study_type, label)
                ]
                num_abnormal = round(len(cell) * sum(labels) / len(labels))
                for place, index in enumerate(generator.permutation(cell)):
                    studies[index] = replace(studies[index], label=int(place < num_abnormal))
        splits[split] = studies
    return replace(collection, name=f"{collection.name}-shuffled-labels", splits=splits)


def _serve_one_study(out: Path, source: Path, shards: Path, ensemble: Path) -> None:
    """Starts the server as users do, posts an abnormal study of the test split, and keeps its overlays."""
    table = read_table(str(shards), "test")
    first = table[table["label"] == ABNORMAL].iloc[0]
    same = (table["patient_id"] == first["patient_id"]) & (table["study_type"] == first["study_type"])
    paths = [source / path for path in table[same & (table["study_id"] == first["study_id"])]["path"]]
    with serving(out, ensemble) as address:
        print(f"POST {address}/v1/studies/predict?cam=overlay with {len(paths)} view(s) of {paths[0].parent}")
        answer = httpx.post(
            f"{address}/v1/studies/predict",
            params={"cam": "overlay"},
            data={"study_type": first["study_type"]},
            files=[("views", (path.name, path.read_bytes(), "image/png")) for path in paths],
            timeout=120,
        )
        answer.raise_for_status()
    study = answer.json()
    print(f"abnormal with probability {study['probability']:.3f} (threshold {study['threshold']}): {study['abnormal']}")
    for view in study["views"]:
        overlay = out / "overlays" / view["name"]
        store.write_bytes(str(overlay), base64.b64decode(view["cam"].pop("png_base64")))
        print(f"  {view['name']}: probability {view['probability']:.3f}, overlay {overlay}")
    store.write_bytes(str(out / "answer.json"), json.dumps(study, indent=2).encode() + b"\n")


@contextmanager
def serving(out: Path, ensemble: Path) -> Iterator[str]:
    """A server of the ensemble on a free port of this machine, as a process of its own; gives its address."""
    port = free_port()
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    store.write_bytes(str(out / "serve.yaml"), yaml.safe_dump(config).encode())
    log = out / "serve.log"
    print(f"$ MURA_ENSEMBLE={ensemble} serve run serve/config.yaml    # on port {port}, log in {log}", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(out / "serve.yaml")],
            cwd=ROOT,
            env={
                name: value
                for name, value in os.environ.items()
                if name not in ("RAY_ADDRESS", API_SERVER, "MURA_TOKENS")
            }
            | {"MURA_ENSEMBLE": str(ensemble), "MURA_AUDIT": f"sqlite:///{(out / 'audit.sqlite3').absolute()}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, address, log)
        yield address
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(f"the server ended with exit status {process.returncode}; its log is {log}")
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise ValueError(f"the server was not ready after {SERVER_START_S} s; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server as Ctrl-C would, and what it started with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            for pid in _session(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def _session(leader: int) -> list[int]:
    """The processes that a session's leader started: Ray gives its workers process groups of their own."""
    listed = subprocess.run(["ps", "-o", "pid=", "-s", str(leader)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _report(out: Path, seconds: dict[str, float]) -> None:
    store.write_bytes(str(out / "times.json"), json.dumps(seconds, indent=2).encode() + b"\n")
    print("\n=== done")
    for title, taken in seconds.items():
        print(f"{taken:6.0f} s  {title}")
    print(f"{sum(seconds.values()):6.0f} s  in all\n")
    print(f"everything lies in {out}:")
    for name, what in (
        ("radiographs/", "the collection"),
        ("shards/", "the converted data set"),
        ("runs/demo/", "the search: trials, TensorBoard logs, checkpoints, evaluation"),
        ("runs/demo/ensemble/", "the five members"),
        ("overlays/", "the answered study's maps on its views"),
    ):
        print(f"  {name:22}{what}")
    print(f"next: `MURA_RUNS={out}/runs make serve` and open http://127.0.0.1:8000/")
    print(f"      or `.venv/bin/tensorboard --logdir {out}/runs/demo`")


if __name__ == "__main__":
    raise SystemExit(main())
