"""Every setting of a trial, with its default and the paper's section it comes from, and where data, runs, copies lie.

Knows nothing of how the settings are searched (distributed/sweep.py) or used (training/loop.py).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ENSEMBLE_SIZE = 5
"""Members of an ensemble (paper, section 3.1)."""

THRESHOLD = 0.5
"""A study is abnormal iff its probability is greater (paper, section 3.1)."""


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error instead of a silently dropped typing mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def explain(error: ValidationError) -> str:
    """What is wrong with settings, one `name: reason` after the other."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


def nested(values: dict[str, Any], over: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings by dotted name (`augmentation.scale`) as nested ones, laid over others.

    Raises:
        ValueError: a name goes below a setting that has none below it.
    """
    settings = {name: dict(value) if isinstance(value, dict) else value for name, value in (over or {}).items()}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        level = settings
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise ValueError(f"{name}: {parent} has the value {level!r} already, it is no group of settings here")
        level[leaf] = value
    return settings


class Augmentation(Settings):
    """Random changes of each training image. The first two are the paper's (section 3.1); the rest default to none."""

    inversion_probability: float = Field(
        default=0.5, ge=0, le=1, description="lateral inversion (mirroring left to right)"
    )
    rotation_deg: float = Field(default=30.0, ge=0, le=180, description="rotation, uniform in plus or minus this")
    scale: float = Field(
        default=0.0, ge=0, lt=1, description="zoom factor, log-uniform in 1 / (1 + scale) to 1 + scale"
    )
    translation: float = Field(
        default=0.0, ge=0, le=0.5, description="shift, uniform in plus or minus this share of the side"
    )
    brightness: float = Field(
        default=0.0, ge=0, le=1, description="added gray, uniform in plus or minus this share of white"
    )
    contrast: float = Field(default=0.0, ge=0, lt=1, description="factor around mid-gray, log-uniform as in scale")


class TrialConfig(Settings):
    """One training run: the paper's recipe (section 3.1) unless a comment says that the choice is ours."""

    image_size: int = Field(default=320, ge=32, le=1024, description="side of the network's input in pixels")
    initial_weights: str = Field(default="imagenet", description="imagenet, random, or a .safetensors or .pth file")
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)  # ours: the paper names none
    batch_size: int = Field(default=8, ge=1, description="images in a global batch, over all workers of the trial")
    lr_factor: float = Field(
        default=0.1, gt=0, lt=1, description="multiplies the learning rate when the validation loss plateaus"
    )
    lr_patience: int = Field(default=0, ge=0, description="epochs without improvement that are forgiven")  # ours
    epochs: int = Field(default=10, ge=1)  # ours
    early_stopping_epochs: int | None = Field(
        default=None, ge=1, description="stop after so many epochs in a row without improvement"
    )  # ours
    weighted_loss: bool = True
    augmentation: Augmentation = Augmentation()
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32",
        description="fp32: exact, as in the paper; tf32: GPUs multiply with 10 bits of mantissa (on a CPU as fp32); "
        "bf16: forward pass under autocast, 7 bits, weights in fp32",
    )
    channels_last: bool = Field(
        default=True, description="memory layout; faster on CPU and GPU, same arithmetic"
    )  # ours
    compile: Literal["auto", "none", "kernels", "graphs"] = Field(
        default="auto",
        description="graphs: a CUDA graph launches a step's operations at once, where a batch of 8 would wait for some "
        "2,300 launches; kernels: torch.compile fuses operations, which takes minutes once a node and batch size; "
        "auto: graphs where a trial has one GPU, else none",
    )  # ours
    sync_batch_norm: bool = Field(
        default=True, description="statistics over all of a trial's GPUs (CUDA only), which exchange them at each layer"
    )  # ours
    seed: int = Field(default=0, ge=0, lt=2**31)


class Locations(Settings):
    """Where the radiographs, the shards and the runs lie: folders, or URIs that `store` reads."""

    source: str | None = None
    data: str | None = None
    runs: str | None = None

    @classmethod
    def from_environment(cls) -> "Locations":
        """MURA_SOURCE, MURA_DATA and MURA_RUNS; None where one is unset or empty."""
        return cls(
            source=os.environ.get("MURA_SOURCE") or None,
            data=os.environ.get("MURA_DATA") or None,
            runs=os.environ.get("MURA_RUNS") or None,
        )


def cache_folder() -> Path:
    """Where a node keeps its copies of data sets: MURA_CACHE, or else ~/.cache/mura_ray."""
    return Path(os.environ.get("MURA_CACHE") or "~/.cache/mura_ray").expanduser()


def cache_budget_bytes() -> int | None:
    """What these copies may fill, from MURA_CACHE_GB; None: the disk.

    Raises:
        ValueError: it is no number of gigabytes.
    """
    budget = os.environ.get("MURA_CACHE_GB")
    if not budget:
        return None
    with suppress(ValueError, OverflowError):
        if (num_bytes := int(float(budget) * 1e9)) > 0:
            return num_bytes
    raise ValueError(f"MURA_CACHE_GB is {budget!r}: pass a number of gigabytes greater than 0, or unset it")
