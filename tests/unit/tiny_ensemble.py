"""An ensemble of untrained networks for 32-pixel views, written the way that a search writes one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mura_ray.config import TrialConfig
from mura_ray.model.checkpoint import CheckpointMeta, save_checkpoint
from mura_ray.model.densenet import build_network
from mura_ray.model.ensemble import MemberSource, write_ensemble

IMAGE_SIZE = 32
DATA_ID, MANIFEST_SHA256 = "data", "manifest"


def member_source(folder: Path, seed: int, val_loss: float, image_size: int = IMAGE_SIZE) -> MemberSource:
    """Saves a checkpoint whose logits vary enough between views to be told apart."""
    config = TrialConfig(image_size=image_size, initial_weights="random", seed=seed)
    network = build_network(None, seed)
    with torch.no_grad():
        network.classifier.weight.mul_(3)
        network.classifier.bias.fill_(0.25 * (seed + 1))
    trial = f"trial-{seed}"
    meta = CheckpointMeta(
        trial=trial, epoch=seed + 1, val_loss=val_loss, image_size=image_size, config=config,
        data_id=DATA_ID, data_manifest_sha256=MANIFEST_SHA256,
    )  # fmt: skip
    save_checkpoint(folder / trial, network, meta, None)
    return MemberSource(trial, seed + 1, val_loss, config, str(folder / trial))


def write_tiny_ensemble(folder: Path, val_losses: Sequence[float] = (0.5, 0.3)) -> str:
    """The URI of an ensemble whose members have the seeds 0, 1, ... and these validation losses."""
    sources = [member_source(folder, seed, val_loss) for seed, val_loss in enumerate(val_losses)]
    write_ensemble(str(folder / "ensemble"), sources, data_id=DATA_ID, data_manifest_sha256=MANIFEST_SHA256)
    return str(folder / "ensemble")
