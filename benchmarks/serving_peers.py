"""What `benchmarks.serve` compares with, a plain server and pytorch-grad-cam, and the ensemble that all answer from.

python -m benchmarks.serving_peers ENSEMBLE PORT     the plain server, on loopback
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, UploadFile

from benchmarks.loader.radiographs import draw
from mura_ray.config import TrialConfig
from mura_ray.images import read_gray, resize_gray
from mura_ray.model.checkpoint import CheckpointMeta, network_from_bytes, save_checkpoint
from mura_ray.model.densenet import AbnormalityNet, build_network
from mura_ray.model.ensemble import MemberSource, member_file, read_description, write_ensemble

NUM_CALIBRATION_VIEWS = 16


def write_trained_like_ensemble(folder: Path, image_size: int, num_members: int = 5) -> str:
    """The URI of an ensemble that was not trained, but computes like one that was.

    Its norms fit what they see of phantom radiographs, and its logits spread by 2 about 0: those of random weights are
    all equal, so nothing would be seen of rounding.
    """
    views = np.stack([resize_gray(draw(number), image_size) for number in range(NUM_CALIBRATION_VIEWS)])
    gray = torch.from_numpy(views)[:, None].float() / 255
    sources = []
    for seed in range(num_members):
        network = _fit_norms(build_network(None, seed), gray)
        config = TrialConfig(image_size=image_size, initial_weights="random", seed=seed)
        meta = CheckpointMeta(
            trial=f"trial-{seed}", epoch=1, val_loss=0.5, image_size=image_size, config=config, data_id="0" * 16,
            data_manifest_sha256="0" * 64,
        )  # fmt: skip
        save_checkpoint(folder / meta.trial, network, meta, None)
        sources.append(MemberSource(meta.trial, 1, 0.5, config, str(folder / meta.trial)))
    write_ensemble(str(folder / "ensemble"), sources, data_id="0" * 16, data_manifest_sha256="0" * 64)
    return str(folder / "ensemble")


@torch.no_grad()
def _fit_norms(network: AbnormalityNet, gray: torch.Tensor) -> AbnormalityNet:
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean over all that it sees
    network.train()(gray)
    logits = network.eval()(gray)
    network.classifier.weight.mul_(2 / logits.std())
    network.classifier.bias.sub_(network(gray).mean())
    return network


def read_networks(uri: str) -> list[AbnormalityNet]:
    """The members of an ensemble as anybody would load them."""
    names = [member_file(place) for place in range(len(read_description(uri).members))]
    return [network_from_bytes(Path(uri, name).read_bytes(), name).eval() for name in names]


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


def grad_cam(networks: Sequence[AbnormalityNet]) -> Callable[[torch.Tensor], np.ndarray]:
    """pytorch-grad-cam's maps of an ensemble: from pixels, uint8 [N, 1, S, S], to the mean map, float32 [N, h, w].

    Its GradCAM of the last norm is the nearest that it has to the paper's map; it takes a backward pass.
    """
    from pytorch_grad_cam import GradCAM  # pyright: ignore[reportMissingImports]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # pyright: ignore[reportMissingImports]

    # It wants a dimension of classes.
    cams: list[Any] = [
        GradCAM(torch.nn.Sequential(network, torch.nn.Unflatten(0, (-1, 1))), [network.features[-1]])
        for network in networks
    ]

    def maps(pixels: torch.Tensor) -> np.ndarray:
        gray = pixels.float() / 255
        targets = [ClassifierOutputTarget(0) for _ in pixels]
        return np.mean([cam(input_tensor=gray, targets=targets) for cam in cams], axis=0)

    return maps


if __name__ == "__main__":
    uvicorn.run(plain_server(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
