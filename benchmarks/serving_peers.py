"""What `benchmarks.serve` compares with: the same ensemble in a plain server.

python -m benchmarks.serving_peers ENSEMBLE PORT     on loopback
"""

import sys
from threading import Lock
from typing import Annotated

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, UploadFile

from benchmarks.ensembles import read_networks
from mura_ray.images import read_gray, resize_gray
from mura_ray.model.ensemble import read_description


def plain_server(uri: str) -> FastAPI:
    """FastAPI and PyTorch as a tutorial has them: eager fp32, a study at a time, nothing shared between requests.

    A lock keeps studies from slowing each other down on the same cores.
    """
    networks, size, lock = read_networks(uri), read_description(uri).image_size, Lock()
    app = FastAPI()

    @app.post("/v1/studies/predict")
    def predict(views: Annotated[list[UploadFile], File()]) -> dict[str, float]:
        pixels = np.stack([resize_gray(read_gray(view.file.read()), size) for view in views])
        with lock, torch.inference_mode():
            gray = torch.from_numpy(pixels)[:, None].float() / 255
            return {"probability": torch.stack([torch.sigmoid(network(gray)) for network in networks]).mean().item()}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return app


if __name__ == "__main__":
    uvicorn.run(plain_server(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
