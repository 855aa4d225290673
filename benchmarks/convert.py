"""How fast, in how much memory, and how safely against interruption does `convert` make a data set of MURA's size?

    python -m benchmarks.convert --images 40005 --out /tmp/convert-benchmark

Makes phantom radiographs, converts them once undisturbed, and once more killed (SIGKILL) at random moments and begun
again; the two results must be equal to the byte. Memory is the sum over all processes of the conversion, Ray's own
included, each with its share of what they share (PSS), sampled ten times a second.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import machine, write_json
from mura_ray.data import phantom

VIEWS_PER_STUDY = 2.55
TRAIN_SHARE = 0.92
RAY_DAEMONS = (
    "gcs_server",
    "raylet",
    "dashboard",
    "agent",
    "log_monitor",
    "monitor.py",
    "ray-dashboard",
    "ray::DashboardAgent",
)


@dataclass
class Memory:
    """Peaks in bytes, of all processes and of those that are not Ray's own daemons."""

    everything: int = 0
    conversion: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self, session: int) -> None:
        """Samples the processes of a session until stopped."""
        while not self.stopped.wait(0.1):
            sizes = list(_processes(session))
            self.everything = max(self.everything, sum(size for _, size in sizes))
            self.conversion = max(
                self.conversion, sum(size for name, size in sizes if not any(part in name for part in RAY_DAEMONS))
            )


def main() -> int:
    """Parses, measures, reports; 1 where the interrupted conversion came out different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="about so many (default: %(default)s)")
    parser.add_argument("--interruptions", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("convert-benchmark"), help="folder to work in; removed at the end"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    source, plain, cut = (arguments.out / name for name in ("source", "plain", "interrupted"))
    shutil.rmtree(arguments.out, ignore_errors=True)
    num_studies = round(arguments.images / VIEWS_PER_STUDY)
    num_train = round(num_studies * TRAIN_SHARE)
    print(f"making {num_studies:,} phantom studies", flush=True)
    phantom.write_phantom(str(source), num_train_studies=num_train, num_valid_studies=num_studies - num_train)
    num_images = sum(1 for _ in source.rglob("*.png"))

    memory = Memory()
    seconds = _convert(source, plain, memory)
    kills = _convert_interrupted(source, cut, arguments.interruptions, seconds)
    same = _digest(plain) == _digest(cut)
    figures = {
        "machine": machine(("ray", "ffcv", "numpy", "opencv-python-headless")),
        "images": num_images,
        "source_gb": sum(path.stat().st_size for path in source.rglob("*.png")) / 1e9,
        "seconds": seconds,
        "images_per_s": num_images / seconds,
        "peak_gib": memory.everything / 2**30,
        "peak_gib_without_ray_daemons": memory.conversion / 2**30,
        "killed_after_s": kills,
        "identical_after_interruptions": same,
    }
    for name, value in figures.items():
        print(f"{name:30} {value:,.2f}" if isinstance(value, float) else f"{name:30} {value}")
    if arguments.json:
        write_json(arguments.json, figures)
    shutil.rmtree(arguments.out)
    return 0 if same else 1


@contextmanager
def _conversion(source: Path, dest: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = ["--format", "phantom", "--source", str(source), "--dest", str(dest)]
    with dest.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mura_ray.convert", *command],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "RAY_ADDRESS": "local"},
        )  # fmt: skip
        try:
            yield process
        finally:
            for pid in _session_pids(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def _convert(source: Path, dest: Path, memory: Memory) -> float:
    """Seconds of a whole conversion, start to end."""
    started = time.monotonic()
    with _conversion(source, dest) as process:
        watcher = threading.Thread(target=memory.watch, args=(process.pid,))
        watcher.start()
        status = process.wait()
        seconds = time.monotonic() - started
        memory.stopped.set()
        watcher.join()
    if status != 0:
        raise SystemExit(dest.with_suffix(".log").read_text())
    return seconds


def _convert_interrupted(source: Path, dest: Path, times: int, whole_s: float) -> list[float]:
    """Kills the conversion at random moments, then lets it end. Returns after how many seconds it was killed."""
    rng, kills = random.Random(0), []
    for _ in range(times):
        wait_s = rng.uniform(0.1, 0.9) * whole_s / 2
        with _conversion(source, dest) as process:
            try:
                process.wait(timeout=wait_s)
            except subprocess.TimeoutExpired:
                kills.append(round(wait_s, 1))
    _convert(source, dest, Memory())
    return kills


def _session_pids(session: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _processes(session: int) -> Iterator[tuple[str, int]]:
    """Command line and proportional memory of each process of a session."""
    for pid in _session_pids(session):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        yield name, sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    raise SystemExit(main())
