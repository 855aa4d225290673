"""Hostile input against the interface in a process of its own: no 5xx, no dead process, no late answer.

`MURA_FUZZ_FILES` (default 1,200) is the number of damaged files, `MURA_FUZZ_SEED` draws others.
"""

import base64
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from mura_ray.data.phantom_view import DIFFICULTIES, render_view
from mura_ray.ports import free_port
from tests.fuzz_target import REQUEST_S
from tests.mutation import mutated
from tests.unit.dicom_files import dicom, phantom

pytestmark = pytest.mark.slow

NUM_FILES = int(os.environ.get("MURA_FUZZ_FILES", "1200"))
SEED = int(os.environ.get("MURA_FUZZ_SEED", "0"))
PICTURE, WORKLIST, INFER = "/v1/views/picture", "/v1/worklist", "/v2/models/mura/infer"
PATHS = (
    "/v1/studies/predict?cam=overlay", "/v1/studies/predict?cam=raw", "/v1/studies/predict.dcm",
    PICTURE, WORKLIST, INFER,
)  # fmt: skip


def sound_files():
    """A radiograph in each format that the interface takes, small and large, with what cameras and archives add."""
    view, _ = render_view("wrist", 1, DIFFICULTIES["easy"], (0,), 0)
    gray, deep = Image.fromarray(view), Image.fromarray(view.astype(np.uint16) * 257)
    kinds = {
        "gray.png": (gray, {"format": "PNG"}),
        "deep.png": (deep, {"format": "PNG"}),
        "palette.png": (gray.convert("P"), {"format": "PNG"}),
        "gray.jpg": (gray, {"format": "JPEG"}),
        "progressive.jpg": (gray.convert("RGB"), {"format": "JPEG", "progressive": True}),
        "small.jpg": (gray.resize((9, 7)), {"format": "JPEG", "quality": 50}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, **options)
        files[name] = file.getvalue()
    return files | {"deep.dcm": dicom(phantom(12)), "gray.dcm": dicom(phantom(8))}


@pytest.fixture(scope="module")
def target():
    """URL and process of the interface."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.fuzz_target", str(port)], cwd=Path(__file__).parents[2])
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not is_alive(url):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        yield url, process
    finally:
        process.kill()
        process.wait(60)


def is_alive(url):
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def body(path, name, content) -> dict[str, Any]:
    """A request's, with one view."""
    if path == INFER:
        view = {"name": "views", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(content).decode()]}
        return {"json": {"inputs": [view]}}
    if path == WORKLIST:
        return {"files": {"views": (f"study/{name}", content)}}
    return {"files": {"view" if path == PICTURE else "views": (name, content)}}


def status_of(path, response):
    """A worklist's answer is 200 whatever it says of its studies."""
    if path != WORKLIST or response.status_code != 200:
        return response.status_code
    first = json.loads(response.text.partition("\n")[0])
    return first["problem"]["status"] if "problem" in first else 200


def test_damaged_files_get_an_answer_in_time_and_nothing_dies(target):
    url, process = target
    files = sound_files()
    names = list(files)

    def send(number):
        rng = random.Random(f"{SEED}-{number}")
        name = rng.choice(names)
        content = mutated(files[name], files[rng.choice(names)], rng)
        path = rng.choice(PATHS)
        begun = time.monotonic()
        response = client.post(url + path, **body(path, name, content))
        return (number, path), status_of(path, response), time.monotonic() - begun

    with httpx.Client(timeout=3 * REQUEST_S) as client, ThreadPoolExecutor(3) as threads:
        list(threads.map(send, range(50)))
        before = psutil.Process(process.pid).memory_info().rss
        answers = list(threads.map(send, range(50, 50 + NUM_FILES)))
    grown = psutil.Process(process.pid).memory_info().rss - before
    statuses = Counter(status for _, status, _ in answers)
    print(
        f"{len(answers)} files: {dict(statuses)}, slowest {max(s for *_, s in answers):.2f} s, {grown / 2**20:+.0f} MiB"
    )
    assert {status for status in statuses if status >= 500} == set(), [one for one in answers if one[1] >= 500][:5]
    for one in PATHS:  # some damage is none, some is found
        assert {200, 422} <= {status for (_, path), status, _ in answers if path == one}, one
    assert max(seconds for *_, seconds in answers) < REQUEST_S
    assert process.poll() is None
    assert is_alive(url)
    assert grown < 300 * 2**20


def test_schemathesis_finds_no_fault(target, tmp_path):
    url, process = target
    command = [
        Path(sys.executable).with_name("st"), "run", f"{url}/openapi.json", "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--max-examples", "15", "--seed", str(SEED + 1), "--phases", "examples,coverage,fuzzing",
        "--max-response-time", str(REQUEST_S), "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert process.poll() is None
    assert is_alive(url)
