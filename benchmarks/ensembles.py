"""The ensemble that benchmarks of serving compute, and its members as anybody would load them."""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader.radiographs import draw
from mura_ray.config import TrialConfig
from mura_ray.images import resize_gray
from mura_ray.model.checkpoint import CheckpointMeta, network_from_bytes, save_checkpoint
from mura_ray.model.densenet import AbnormalityNet, build_network
from mura_ray.model.ensemble import MemberSource, member_file, read_description, write_ensemble

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_CALIBRATION_VIEWS = 16


def write_trained_like_ensemble(folder: Path, image_size: int, num_members: int = 5) -> str:
    """The URI of an ensemble that was not trained, but computes like one that was.

    Its norms fit what they see of phantom radiographs, and its logits spread by 2 about 0: those of random weights are
    all equal, so nothing would be seen of rounding.
    """
    views = np.stack([resize_gray(draw(number), image_size) for number in range(NUM_CALIBRATION_VIEWS)])
    gray = (torch.from_numpy(views)[:, None].float() / 255).to(DEVICE)
    sources = []
    for seed in range(num_members):
        network = _fit_norms(build_network(None, seed).to(DEVICE), gray).cpu()
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which ensemble, and how often it is measured."""
    parser.add_argument("--ensemble", help="folder of an ensemble (default: one made here, its norms fitted)")
    parser.add_argument("--size", type=int, default=320, help="of the ensemble made here (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")


def read_networks(uri: str) -> list[AbnormalityNet]:
    """The members of an ensemble as anybody would load them."""
    names = [member_file(place) for place in range(len(read_description(uri).members))]
    return [network_from_bytes(Path(uri, name).read_bytes(), name).eval() for name in names]
