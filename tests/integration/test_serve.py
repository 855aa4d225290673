import base64
import io
import json
import os
import re
import shutil
import signal
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from mura_ray.config import ENSEMBLE_SIZE
from mura_ray.images import read_gray
from mura_ray.model.ensemble import Ensemble, read_description
from mura_ray.ports import free_port
from serve.audit import verify
from serve.record import read_rows
from serve.tokens import add_token, revoke_token
from tests.evaluations import write_evaluation
from tests.s3_server import BUCKET, environment, put_folder, s3_server
from tests.serving import CONFIG, pids_of_session, ready, served, wait_until, write_random_ensemble

pytestmark = pytest.mark.slow


def tamper(folder, copy):
    """A copy of an ensemble with one bit of one member flipped."""
    shutil.copytree(folder, copy)
    content = bytearray((copy / "member-3.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "member-3.safetensors").write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def ensemble_folder(folder):
    ensemble = write_random_ensemble(folder)
    description = read_description(str(ensemble))
    write_evaluation(ensemble.parent, "valid", description.id, description.data_id)
    return ensemble


@pytest.fixture(scope="module")
def server(folder, ensemble_folder):
    """The product's own configuration on a free port, beside it the same application on a tampered ensemble."""
    tamper(ensemble_folder, folder / "tampered")
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port = free_port()
    (application,) = config["applications"]
    application["deployments"][0]["ray_actor_options"]["num_cpus"] = 1
    environment = {"env_vars": {"MURA_ENSEMBLE": str(folder / "tampered")}}
    tampered = {**application, "name": "tampered", "route_prefix": "/tampered", "runtime_env": environment}
    config["applications"].append(tampered)
    with served(config, folder, MURA_RUNS="runs") as (process, log):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url), process, log)
        yield url, process, log


@pytest.fixture(scope="module")
def ensemble(ensemble_folder):
    return Ensemble.load(str(ensemble_folder), "cpu")


def encoded(gray, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(gray).save(file, format=kind)
    return file.getvalue()


def noise(height, width):
    values = np.random.default_rng(height * width).integers(0, 256, (height, width), dtype=np.uint8)
    return np.sort(values, axis=1)


STUDY = {
    "front.png": encoded(noise(200, 90)),
    "side.jpg": encoded(noise(64, 64), "JPEG"),
    "oblique.png": encoded(noise(33, 150)),
}


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def post(url, views=STUDY, **options):
    files = [("views", view) for view in views.items()]
    return httpx.post(f"{url}/v1/studies/predict", **{"files": files, "timeout": 120, **options})


def test_the_answer_is_what_the_ensemble_predicts(server, ensemble):
    expected = ensemble.predict_study([read_gray(content) for content in STUDY.values()])
    answer = post(server[0], params={"cam": "raw"}, data={"study_type": "wrist"}).json()
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-4)  # another engine, as auto chooses it
    assert (answer["abnormal"], answer["threshold"]) == (expected.abnormal, 0.5)
    assert answer["study_type"] == "wrist"
    assert [member["trial"] for member in answer["members"]] == [f"trial-{place}" for place in range(ENSEMBLE_SIZE)]
    for found, member in zip(answer["members"], expected.members, strict=True):
        assert found["probability"] == pytest.approx(member.probability, abs=1e-4)
    assert len({member.probability for member in expected.members}) == ENSEMBLE_SIZE
    for name, found, view in zip(STUDY, answer["views"], expected.views, strict=True):
        assert (found["name"], found["width"], found["height"]) == (name, view.width, view.height)
        assert found["probability"] == pytest.approx(view.probability, abs=1e-4)
        cam = np.frombuffer(base64.b64decode(found["cam"]["float32_base64"]), "<f4").reshape(found["cam"]["shape"])
        np.testing.assert_allclose(cam, view.cam, atol=1e-3)
        assert found["cam"]["range"] == [cam.min(), cam.max()]


def test_overlays_have_the_pixels_of_their_views(server):
    views = post(server[0], params={"cam": "overlay"}).json()["views"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(view["cam"]["png_base64"]))).size for view in views]
    assert sizes == [(90, 200), (64, 64), (150, 33)]


def test_it_says_what_is_served(server, ensemble):
    answer = httpx.get(f"{server[0]}/v1/ensemble").json()
    assert answer["id"] == ensemble.description.id
    assert len(answer["members"]) == ENSEMBLE_SIZE
    assert "medical device" in httpx.get(server[0]).text
    assert httpx.get(f"{server[0]}/healthz").status_code == 200


def test_prometheus_finds_every_series_that_the_dashboard_asks_for(server):
    url, process, log = server
    post(url)
    post(url, {"a.png": b"no radiograph"})
    text = (CONFIG.parent / "grafana.json").read_text()
    asked = {name for name in re.findall(r"ray_mura_\w+", text) if "shadow" not in name}  # there is no candidate here
    variables = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    (ray_folder,) = [one.removeprefix("RAY_TMPDIR=") for one in variables if one.startswith("RAY_TMPDIR=")]
    (discovery,) = {file.resolve() for file in Path(ray_folder).rglob("prom_metrics_service_discovery.json")}

    def all_there():
        targets = [target for entry in json.loads(discovery.read_text()) for target in entry["targets"]]
        exported = ""
        for target in targets:
            with suppress(httpx.TransportError):  # Ray's own head metrics have a fixed port, which other clusters share
                exported += httpx.get(f"http://{target}/metrics").text
        return all(f"\n{name}{{" in exported for name in asked)

    wait_until(all_there, process, log)


def endless_view():
    yield b'--x\r\nContent-Disposition: form-data; name="views"; filename="a.png"\r\n\r\n'
    for _ in range(200):
        yield bytes(2**20)


HOSTILE = {
    "an empty file": (422, {"views": {"a.png": b""}}),
    "a text": (422, {"views": {"a.png": b"no radiograph"}}),
    "a truncated JPEG": (422, {"views": {"a.jpg": STUDY["side.jpg"][:-200]}}),
    "a header of four billion pixels": (422, {"views": {"a.png": png_header(65535, 65535)}}),
    "too many views": (422, {"files": [("views", ("a.png", STUDY["front.png"]))] * 17}),
    "too large a body": (413, {"views": {"a.png": bytes(2**27)}}),
    "too large a body without a length": (
        413,
        {
            "files": None,
            "content": endless_view(),
            "headers": {"content-type": "multipart/form-data; boundary=x"},
        },
    ),
    "another content type": (415, {"files": None, "content": b"{}", "headers": {"content-type": "application/json"}}),
    "no views": (422, {"files": {"image": b""}}),
    "an unknown study type": (422, {"data": {"study_type": "knee"}}),
    "a bad cam": (422, {"params": {"cam": "heat"}}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_requests_get_a_problem_and_the_replica_lives(server, case):
    status, request = HOSTILE[case]
    response = post(server[0], **request)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert post(server[0]).status_code == 200


def test_a_tampered_member_keeps_the_server_from_starting_and_the_log_says_why(server):
    url, process, log = server
    wait_until(lambda: "is not the member that ensemble.json describes" in log.read_text(), process, log)
    assert "member-3.safetensors" in log.read_text()
    for path in ("readyz", "healthz", "v1/ensemble"):
        assert httpx.get(f"{url}/tampered/{path}").status_code >= 400
    assert post(f"{url}/tampered").status_code >= 400
    assert ready(url)


def test_no_file_name_is_logged_and_an_interrupt_ends_it(server):
    _, process, log = server
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert "POST /v1/studies/predict" in log.read_text()
    assert not [name for name in STUDY if name in log.read_text()]
    assert verify(os.environ["MURA_AUDIT"])[0] > 0
    assert not [name for name in STUDY if name in str(list(read_rows(os.environ["MURA_AUDIT"])))]
    end = time.monotonic() + 60
    while pids_of_session(process.pid):
        assert time.monotonic() < end
        time.sleep(0.5)


def test_an_open_address_is_refused(folder, ensemble_folder):
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"] = {"host": "0.0.0.0", "port": free_port()}
    with served(config, folder, MURA_ENSEMBLE=str(ensemble_folder)) as (process, log):
        wait_until(lambda: "http_options.host is '0.0.0.0'" in log.read_text(), process, log)
        assert not ready(f"http://127.0.0.1:{config['http_options']['port']}")


@pytest.fixture
def stored(folder, ensemble_folder):
    """Variables that find the runs with the ensemble in S3."""
    with s3_server(folder / "s3.log") as url:
        put_folder(url, ensemble_folder.parents[1], "runs")
        yield environment(url) | {"MURA_RUNS": f"s3://{BUCKET}/runs"}


def test_a_hospitals_server_answers_from_s3_behind_haproxy_until_the_token_is_revoked(folder, ensemble_folder, stored):
    token = add_token(folder / "tokens.json", "pacs")
    record = f"sqlite:///{folder / 'audit.sqlite3'}"
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"] = {"host": "0.0.0.0", "port": free_port()}
    config["applications"][0]["deployments"][0]["ray_actor_options"]["num_cpus"] = 1
    locations = {"MURA_TOKENS": str(folder / "tokens.json"), "MURA_AUDIT": record, "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    with served(config, folder, **stored, **locations) as (process, log):
        url, bearer = f"http://127.0.0.1:{config['http_options']['port']}", {"Authorization": f"Bearer {token}"}
        wait_until(lambda: ready(url), process, log)
        stranger, answered = post(url), post(url, headers=bearer)
        revoke_token(folder / "tokens.json", "pacs")
        revoked = post(url, headers=bearer)
        assert [response.status_code for response in (stranger, answered, revoked)] == [401, 200, 401]
        assert revoked.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert token not in log.read_text()
        (request_id,) = answered.headers.get_list("x-request-id")
        verify(record)
        assert answered.json()["ensemble"]["id"] == read_description(str(ensemble_folder)).id
        pids = pids_of_session(process.pid)
        comms = [file.read_text() for pid in pids if (file := Path(f"/proc/{pid}/comm")).exists()]
        assert "haproxy\n" in comms
        (row,) = [row for row in read_rows(record) if row["status"] == 200]
        assert (row["request_id"], row["caller"]) == (request_id, "pacs")
        assert row["probability"] == answered.json()["probability"]
