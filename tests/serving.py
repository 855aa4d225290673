"""The server as a user starts it, `serve run` with the product's configuration, and an ensemble for it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import torch
import yaml

from mura_ray.config import ENSEMBLE_SIZE, TrialConfig
from mura_ray.model.checkpoint import CheckpointMeta, save_checkpoint
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.ensemble import MemberSource, write_ensemble

CONFIG = Path(__file__).parents[1] / "serve" / "config.yaml"
IMAGE_SIZE = 64
START_TIMEOUT_S = 400


def write_random_ensemble(root, name="demo", first_seed=0):
    """An ensemble of untrained networks under `root/runs/<name>`; returns its folder."""
    members = []
    for place in range(ENSEMBLE_SIZE):
        torch.manual_seed(first_seed + place)
        config = TrialConfig(image_size=IMAGE_SIZE, initial_weights="random", seed=first_seed + place)
        meta = CheckpointMeta(
            trial=f"trial-{place}",
            epoch=place,
            val_loss=0.5 + place / 10,
            image_size=IMAGE_SIZE,
            config=config,
            data_id="0" * 16,
            data_manifest_sha256="0" * 64,
        )
        checkpoint = root / "checkpoints" / meta.trial
        save_checkpoint(checkpoint, AbnormalityNet(), meta, None)
        members.append(MemberSource(meta.trial, meta.epoch, 0.5 + place / 10, config, str(checkpoint)))
    folder = root / "runs" / name / "ensemble"
    write_ensemble(str(folder), members, data_id="0" * 16, data_manifest_sha256="0" * 64)
    shutil.rmtree(root / "checkpoints")
    return folder


def pids_of_session(session):
    """Every process of a session: Ray puts its workers into process groups of their own, but leaves them in it."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            pids.append(int(stat.parent.name))
    return pids


@contextmanager
def served(config, folder, **environment):
    """`serve run` with its own Ray, in a session of its own; gives process and log, and leaves no process behind.

    The dashboard, which `serve.rollout` talks to, is at the first port from 8265 on that was free: see `dashboard_of`.
    """
    ray_folder = tempfile.mkdtemp(prefix="mura-", dir="/tmp")  # Ray's sockets need a short path
    file, log = folder / "serve.yaml", folder / "serve.log"
    file.write_text(yaml.safe_dump(config))
    unset = ("RAY_ADDRESS", "MURA_ENSEMBLE", "MURA_RUNS")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", "--address", "local", str(file)],
            cwd=folder,
            env={**inherited, "RAY_TMPDIR": ray_folder, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, log
        finally:
            for pid in pids_of_session(process.pid):
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
            shutil.rmtree(ray_folder, ignore_errors=True)


def wait_until(condition, process, log):
    """Waits for a condition while the server lives."""
    end = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)


def dashboard_of(log):
    """The dashboard's URL, from what Ray logged when it started."""
    found = re.search(r"https?://127\.0\.0\.1:\d+", log.read_text())
    assert found, log.read_text()
    return found.group()


def ready(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
