"""The interface without a server: a client of the ASGI application, and predictors of a few lines."""

import asyncio
import io
import struct
import threading
import zlib

import httpx
import numpy as np
from PIL import Image

from mura_ray.config import TrialConfig
from mura_ray.domain import MemberPrediction, StudyPrediction, ViewPrediction
from mura_ray.model.ensemble import EnsembleDescription, MemberDescription
from mura_ray.platt import CalibrationDescription, FittedOn, Scaling
from serve.api import PREDICT_PATH, build_api
from serve.limits import Limits

CAM = np.array([[-1.5, 0.0, 2.25], [0.5, 1.0, -0.25]], dtype=np.float32)
DESCRIPTION = EnsembleDescription(
    id="0123456789abcdef",
    image_size=64,
    threshold=0.5,
    members=tuple(
        MemberDescription(trial=f"trial-{place}", epoch=place, val_loss=0.1 * place, config=TrialConfig(), sha256="0")
        for place in range(2)
    ),
    data_id="feedfeedfeedfeed",
    data_manifest_sha256="0",
    git_revision="unknown",
    created="2026-01-02T03:04:05.000006+00:00",
)


class MeanGray:
    """A view's probability is its mean gray over 255; the members say 0.1 less and 0.1 more."""

    description = DESCRIPTION
    max_views = 2

    def predict_studies(self, studies):
        return [self.predict_study(views) for views in studies]

    def predict_study(self, views):
        means = [float(view.mean()) / 255 for view in views]
        probability = sum(means) / len(means)
        return StudyPrediction(
            probability=probability,
            abnormal=probability > 0.5,
            threshold=0.5,
            views=tuple(
                ViewPrediction(view.shape[1], view.shape[0], mean, CAM) for view, mean in zip(views, means, strict=True)
            ),
            members=(MemberPrediction("trial-0", probability - 0.1), MemberPrediction("trial-1", probability + 0.1)),
        )


CALIBRATION = CalibrationDescription(
    pooled=Scaling(slope=2.0, intercept=0.0, num_normal=60, num_abnormal=50),
    by_type={"wrist": Scaling(slope=1.0, intercept=-1.0, num_normal=30, num_abnormal=25)},
    fitted_on=FittedOn(data_id="feedfeedfeedfeed", split="valid", num_studies=110),
    uncalibrated_id=DESCRIPTION.id,
)


class Calibrated(MeanGray):
    """The same members; wrists have a calibration of their own."""

    description = DESCRIPTION.model_copy(update={"id": "ca11b7a7ed000000", "calibration": CALIBRATION})


class Broken(MeanGray):
    def predict_study(self, views):
        raise RuntimeError("out of memory")


class Blocked(MeanGray):
    """Predicts once it is let go; knows how many predictions ran at a time."""

    def __init__(self):
        self.go, self.num_running, self.most_running = threading.Event(), 0, 0

    def predict_study(self, views):
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        self.go.wait(60)
        self.num_running -= 1
        return super().predict_study(views)


def encoded(gray, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(gray).save(file, format=kind)
    return file.getvalue()


def gradient(height, width, low=0):
    return np.linspace(low, 255, height * width).reshape(height, width).astype(np.uint8)


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


LEFT, RIGHT = encoded(gradient(80, 120)), encoded(gradient(90, 70, low=100))


class Client:
    """Sends one request at a time, and gives the answer of the application where it failed too."""

    def __init__(self, app):
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def request(self, *args, **kwargs):
        async def send():
            async with httpx.AsyncClient(transport=self._transport, base_url="http://server") as client:
                return await client.request(*args, **kwargs)

        return asyncio.run(send())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **kwargs):
        return self.request("POST", path, **kwargs)


def client_of(predictor=None, **limits):
    return Client(build_api(predictor or MeanGray(), Limits(**limits)))


def post(client, *views, query="", headers=None, **data):
    """Asks for a prediction; without views, of one that is sound."""
    files = [("views", view) for view in views or [("a.png", LEFT)]]
    return client.post(PREDICT_PATH + query, files=files, data=data, headers=headers)


def problem_of(response):
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["title"]
    assert problem["detail"]
    return problem
