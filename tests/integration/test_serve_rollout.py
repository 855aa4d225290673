"""Releases on a server that answers: rolled out, rolled back, a replica killed, and no study lost or mixed up."""

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from mura_ray.images import read_gray
from mura_ray.model.ensemble import Ensemble
from mura_ray.ports import free_port
from tests.serving import CONFIG, dashboard_of, pids_of_session, ready, served, wait_until, write_random_ensemble

pytestmark = pytest.mark.slow

NUM_STUDIES, CLIENTS = 200, 4


def view_file(side):
    """A view that its size tells from the others."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side + 1), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


FILES = [view_file(side) for side in (60, 70, 80, 90)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return folder, write_random_ensemble(folder, "winter"), write_random_ensemble(folder, "spring", first_seed=10)


@pytest.fixture(scope="module")
def server(folders):
    folder, winter, _ = folders
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port = free_port()
    (deployment,) = config["applications"][0]["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= {"max_replicas": 2, "upscale_delay_s": 1, "look_back_period_s": 3}
    with served(config, folder, MURA_ENSEMBLE=str(winter)) as (process, log):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url), process, log)
        yield url, process, log


def expected_probabilities(folder):
    ensemble = Ensemble.load(str(folder))
    return ensemble.description.id, [ensemble.predict_study([read_gray(file)]).probability for file in FILES]


def send(url, number):
    """A study as the documentation asks for it: what a replica took with it is sent again."""
    file = {"views": (f"{number}.png", FILES[number % len(FILES)])}
    for pause_s in (0.5, 1, 2, 4, 8, None):
        response = httpx.post(f"{url}/v1/studies/predict", files=file, timeout=120)
        if pause_s is None or response.status_code not in (429, 500, 502, 503):
            return response
        time.sleep(pause_s)
    raise AssertionError


def test_a_second_replica_comes_when_more_views_are_in_flight_than_one_should_have(server):
    url, process, log = server
    assert len(replicas(process)) == 1
    study = [("views", (f"{number}.png", FILES[0])) for number in range(16)]  # more than target_views, in one request
    done = threading.Event()

    def client():
        while not done.is_set():
            assert httpx.post(f"{url}/v1/studies/predict", files=study, timeout=120).status_code == 200

    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(client)
        try:
            wait_until(lambda: len(replicas(process)) == 2, process, log)
        finally:
            done.set()
        running.result(timeout=300)


def test_no_study_is_lost_or_mixed_up_while_ensembles_change_and_a_replica_dies(folders, server):
    folder, winter, spring = folders
    url, process, log = server
    expected = dict(map(expected_probabilities, (winter, spring)))
    winter_id, spring_id = expected
    assert abs(expected[winter_id][0] - expected[spring_id][0]) > 1e-3
    responses, numbers, released = [], itertools.count(), threading.Event()

    def client():
        while not released.is_set() or len(responses) < NUM_STUDIES:
            number = next(numbers)
            responses.append((number, send(url, number)))

    with ThreadPoolExecutor(CLIENTS) as clients:
        running = [clients.submit(client) for _ in range(CLIENTS)]
        assert rollout(log, spring)[0] == 0
        os.kill(replicas(process)[0], signal.SIGKILL)
        assert rollout(log, winter_id, runs=folder / "runs")[0] == 0
        released.set()
        for one in running:
            one.result(timeout=300)
    assert len(responses) >= NUM_STUDIES
    ids = set()
    for number, response in responses:
        assert response.status_code == 200, response.text
        answer = response.json()
        ids.add(answer["ensemble"]["id"])
        probability = expected[answer["ensemble"]["id"]][number % len(FILES)]
        assert answer["probability"] == pytest.approx(probability, abs=1e-4)
        assert answer["views"][0]["name"] == f"{number}.png"
        assert answer["views"][0]["height"] == (60, 70, 80, 90)[number % len(FILES)]
    assert ids == {winter_id, spring_id}
    assert httpx.get(f"{url}/v1/ensemble").json()["id"] == winter_id


def rollout(log, *arguments, runs=None):
    """The command as a user gives it; its exit status and what it says is wrong."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "serve.rollout", *map(str, arguments), "--address", dashboard_of(log)],
        env=kept | ({"MURA_RUNS": str(runs)} if runs else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done.returncode, done.stderr


def replicas(process):
    """Process numbers of the replicas."""
    found = []
    for pid in pids_of_session(process.pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if "ServeReplica:mura" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def test_an_ensemble_that_is_not_whole_is_refused_and_the_old_one_goes_on(folders, server):
    _, _, spring = folders
    url, _, log = server
    (spring / "member-4.safetensors").write_bytes(b"")
    before = httpx.get(f"{url}/v1/ensemble").json()["id"]
    status, error = rollout(log, spring)
    assert status == 1
    assert "is not the member" in error
    assert httpx.get(f"{url}/v1/ensemble").json()["id"] == before
