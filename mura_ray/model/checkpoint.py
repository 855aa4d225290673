"""A checkpoint directory: what serving needs without any pickle, and beside it the state that only training reads."""

import io
import json
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from mura_ray import store
from mura_ray.config import Settings, TrialConfig
from mura_ray.model.densenet import AbnormalityNet, check_names, read_tensors, read_torch

FORMAT_VERSION = 1
MODEL, META, STATE = "model.safetensors", "meta.json", "state.pt"


class CheckpointMeta(Settings):
    """`meta.json`: which network the weights are of, and which run, epoch and data set they come from.

    Inside an epoch, after `batches_done` of its batches, there is no validation loss.
    """

    format_version: int = FORMAT_VERSION
    architecture: Literal["densenet169"] = "densenet169"
    trial: str
    epoch: int
    batches_done: int = 0
    val_loss: float | None
    image_size: int
    config: TrialConfig
    data_id: str
    data_manifest_sha256: str


def save_checkpoint(directory: Path, network: nn.Module, meta: CheckpointMeta, state: dict[str, Any] | None) -> None:
    """Writes a checkpoint directory; `meta.json` last, so that without it there is no checkpoint.

    Args:
        directory: made where it is missing.
        network: the bare network, not wrapped in DistributedDataParallel.
        meta: describes it.
        state: optimiser, schedule, random state, position: what `load_state` gives back; None for nothing.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    store.write_bytes(str(directory / MODEL), safetensors.torch.save(tensors))
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        store.write_bytes(str(directory / STATE), buffer.getvalue())
    store.write_bytes(str(directory / META), meta.model_dump_json(indent=2).encode() + b"\n")


def load_network(source: str | Path) -> AbnormalityNet:
    """The network of a checkpoint directory or of a .safetensors file, on the CPU.

    Raises:
        ValueError: there is no such file, it is damaged, or holds another network.
    """
    uri = str(source)
    if not uri.endswith(".safetensors"):
        uri = store.join(uri, MODEL)
    return network_from_bytes(store.read_bytes(uri), uri)


def network_from_bytes(content: bytes, origin: str) -> AbnormalityNet:
    """The network in the bytes of a .safetensors file; errors name it as `origin`.

    Raises:
        ValueError: the file is damaged or holds another network.
    """
    tensors = read_tensors(content, origin)
    network = AbnormalityNet()
    check_names(tensors, network.state_dict(), origin)
    network.load_state_dict(tensors)
    return network


def load_state(directory: str | Path) -> dict[str, Any]:
    """What training needs to go on, as given to `save_checkpoint`, on the CPU.

    Raises:
        ValueError: the checkpoint has no state, or it is damaged.
    """
    uri = store.join(str(directory), STATE)
    if not store.exists(uri):
        raise ValueError(f"no file at {uri!r}: training cannot go on from a checkpoint without its state")
    return read_torch(store.read_bytes(uri), uri)


def read_meta(directory: str | Path) -> CheckpointMeta:
    """`meta.json` of a checkpoint directory.

    Raises:
        ValueError: there is none, it is damaged, or of another format version.
    """
    uri = store.join(str(directory), META)
    if not store.exists(uri):
        raise ValueError(f"{str(directory)!r} is no checkpoint: it has no {META}, which is written last")
    try:
        content = json.loads(store.read_bytes(uri))
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version!r}, this program reads {FORMAT_VERSION}")
        return CheckpointMeta.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise ValueError(f"cannot use {uri}: {error}; train again, or use another checkpoint") from error
