"""The network: DenseNet-169 with one output (paper, section 3.1), and the weights that training starts from.

Parameter names are torchvision's. Knows nothing of losses, optimisers or ensembles.

Torchvision is imported where a network is made: its import takes seconds, for it imports torch's compiler, and the
processes that only watch over trials, two for each, need neither.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from mura_ray import store
from mura_ray.model.cam import class_activation_map

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class AbnormalityNet(nn.Module):
    """DenseNet-169 whose one output is the logit of abnormality.

    It takes one-channel views and itself makes three channels of ImageNet's mean and standard deviation (paper, section
    3.1), so that training and serving cannot differ in it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        from torchvision.models import densenet169

        super().__init__()
        body = densenet169(num_classes=1)
        self.features = body.features
        self.classifier = body.classifier
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        """Logits of abnormality, float32 [N], of views, float32 [N, 1, S, S] in 0 to 1."""
        return self._logits(self._activations(gray))

    def forward_with_maps(self, gray: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and class activation maps of the same forward pass.

        Args:
            gray: float32 [N, 1, S, S] in 0 to 1.

        Returns:
            Logits, float32 [N], and maps, float32 [N, S / 32, S / 32]: a map's mean plus the classifier's
            bias is the logit.
        """
        activations = self._activations(gray)
        with torch.autocast(gray.device.type, enabled=False):
            return self._logits(activations), class_activation_map(activations, self.classifier.weight[0])

    def _activations(self, gray: torch.Tensor) -> torch.Tensor:
        features = self.features((gray - self.mean) / self.std)
        return F.relu(features, inplace=True).float()

    def _logits(self, activations: torch.Tensor) -> torch.Tensor:
        # In fp32 under autocast too: bf16 would leave a logit two or three digits, and losses are ranked by it.
        with torch.autocast(activations.device.type, enabled=False):
            return self.classifier(activations.mean(dim=(2, 3))).squeeze(1)


def build_network(initial: str | None, seed: int) -> AbnormalityNet:
    """A network to train, equal for equal arguments; the process's own random state is left as it was.

    Args:
        initial: URI of the body's weights as `prepare_initial_weights` gives it, or None for random ones.
        seed: of the random weights; the classifier's are always random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = AbnormalityNet()
    if initial is not None:
        body = read_tensors(store.read_bytes(initial), initial)
        network.load_state_dict(network.state_dict() | body)
    return network


def prepare_initial_weights(spec: str, runs: str) -> str | None:
    """Puts the weights that training starts from where every worker can read them; run once, by the driver.

    Args:
        spec: "random"; "imagenet", which is fetched once and then read from the runs' storage; or the URI of a
            .safetensors, .pth or .pt file with torchvision's DenseNet-169 names. A classifier in it is dropped.
        runs: URI of the runs' storage.

    Returns:
        What `build_network` takes as `initial`.

    Raises:
        ValueError: the spec is none of these, the file is not a DenseNet-169, or it cannot be fetched.
    """
    if spec == "random":
        return None
    if spec == "imagenet":
        uri = store.join(runs, "weights", "densenet169-imagenet.safetensors")
        if not store.exists(uri):
            store.write_bytes(uri, safetensors.torch.save(_body_weights(_fetch_imagenet(), imagenet_url())))
        return uri
    if Path(spec).suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"initial_weights {spec!r}: pass imagenet, random, or a .safetensors, .pth or .pt file")
    content = store.read_bytes(spec)
    digest = hashlib.sha256(content).hexdigest()[:16]
    uri = store.join(runs, "weights", f"densenet169-{digest}.safetensors")
    if not store.exists(uri):
        store.write_bytes(uri, safetensors.torch.save(_body_weights(read_tensors(content, spec), spec)))
    return uri


def read_tensors(content: bytes, origin: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of one that torch saved.

    Args:
        content: the whole file.
        origin: its name; the ending says the format, and errors name it.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    if origin.endswith(".safetensors"):
        try:
            return safetensors.torch.load(content)
        except SafetensorError as error:
            raise ValueError(f"{origin} is damaged: {error}") from error
    tensors = read_torch(content, origin)
    if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{origin} holds no plain state dict (parameter name to tensor); save `model.state_dict()`")
    return tensors


def read_torch(content: bytes, origin: str) -> dict[str, Any]:
    """The dictionary in a file that torch saved, on the CPU, read without running pickled code.

    Raises:
        ValueError: the file is damaged, or holds something else than a dictionary of plain values and tensors.
    """
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch meets damage with whatever its unpickler stumbles over
        raise ValueError(f"{origin} is damaged, or holds more than plain values and tensors: {error!r}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{origin} holds a {type(saved).__name__} instead of a dictionary")
    return saved


def check_names(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], origin: str) -> None:
    """Checks that weights have the names and shapes of a network's.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the error counts and names them.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    told = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(f"{origin} does not hold a DenseNet-169 with torchvision's names: {'; '.join(told)}")


def _body_weights(tensors: Mapping[str, torch.Tensor], origin: str) -> dict[str, torch.Tensor]:
    """The `features.*` of a state dict with torchvision's names, old or new, checked."""
    expected = {name: value for name, value in AbnormalityNet().state_dict().items() if name.startswith("features.")}
    found = {}
    for name, tensor in tensors.items():
        if name not in ("classifier.weight", "classifier.bias"):
            # Files saved before PyTorch 0.4.1, torchvision's own among them, say "norm.1" for "norm1".
            found[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)] = tensor
    for name in expected:
        if name.endswith(".num_batches_tracked"):  # such old files lack the counters, which the network never reads
            found.setdefault(name, torch.tensor(0))
    check_names(found, expected, origin)
    return {name: found[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()}


def imagenet_url() -> str:
    """Where torchvision's DenseNet-169 weights of ImageNet lie."""
    from torchvision.models import DenseNet169_Weights

    return DenseNet169_Weights.IMAGENET1K_V1.url


def _fetch_imagenet() -> dict[str, torch.Tensor]:
    url = imagenet_url()
    name = Path(urlparse(url).path).name
    sha256_prefix = name.removesuffix(".pth").rsplit("-", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256_prefix)
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot fetch the ImageNet weights from {url}: {error}. On a machine without network put that "
            f"file at {path}, or set initial_weights to a file of DenseNet-169 weights, or to random"
        ) from error
    if not hashlib.sha256(content).hexdigest().startswith(sha256_prefix):
        raise ValueError(f"{path} is not the file at {url} (its sha256 differs): remove it and run again")
    return read_tensors(content, str(path))
