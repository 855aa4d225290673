import hashlib
import re
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.transforms.functional import normalize

from mura_ray.model import densenet
from mura_ray.model.densenet import AbnormalityNet, build_network, prepare_initial_weights


@pytest.fixture(scope="module")
def network() -> AbnormalityNet:
    network = build_network(None, seed=3).eval()
    with torch.no_grad():
        network.classifier.bias.fill_(0.37)
        for module in network.modules():  # as training leaves them: no longer zero mean, unit variance, equal scales
            if isinstance(module, torch.nn.BatchNorm2d):
                module.get_buffer("running_mean").uniform_(-0.1, 0.1)
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.1, 0.1)
    return network


@pytest.fixture(scope="module")
def imagenet_like() -> torchvision.models.DenseNet:
    """What torchvision's ImageNet file holds, with random values."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(9)
        return torchvision.models.densenet169()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torchvision's own file has them: norm.1 for norm1, and no batch counters."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def test_mean_of_the_map_plus_bias_is_the_logit(network: AbnormalityNet):
    gray = torch.rand(2, 1, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, maps = network.forward_with_maps(gray)
        alone = network(gray)
    assert logits.shape == (2,)
    assert maps.shape == (2, 10, 10)
    assert logits.dtype == maps.dtype == torch.float32
    assert (maps.mean(dim=(1, 2)) + network.classifier.bias - logits).abs().max() < 1e-4
    torch.testing.assert_close(alone, logits)
    assert (maps[0] - maps[1]).abs().max() > 1e-3


def test_is_torchvisions_densenet_on_normalised_channels(network: AbnormalityNet):
    reference = torchvision.models.densenet169(num_classes=1).eval()
    reference.load_state_dict(network.state_dict())  # strict: the names and shapes are torchvision's
    gray = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(1))
    rgb = normalize(gray.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        torch.testing.assert_close(network(gray), reference(rgb)[:, 0], rtol=1e-4, atol=1e-5)


def test_head_stays_in_fp32_under_autocast(network: AbnormalityNet):
    gray = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, maps = network.forward_with_maps(gray)
    assert logits.dtype == maps.dtype == torch.float32
    assert (maps.mean(dim=(1, 2)) + network.classifier.bias - logits).abs().max() < 1e-4


def test_every_parameter_learns():
    network = build_network(None, seed=0).train()
    network(torch.rand(2, 1, 64, 64)).sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_random_weights_follow_the_seed_and_leave_the_process_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = build_network(None, 1), build_network(None, 1), build_network(None, 2)
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(first.state_dict().values(), same.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_random_needs_no_file(tmp_path: Path):
    assert prepare_initial_weights("random", str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_file_of_torchvisions_names(tmp_path: Path, imagenet_like: torchvision.models.DenseNet, suffix: str):
    state = imagenet_like.state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(old_names(state) if suffix == ".pth" else state, file)
    uri = prepare_initial_weights(str(file), str(tmp_path / "runs"))
    assert uri is not None
    assert Path(uri).parent == tmp_path / "runs" / "weights"
    built = build_network(uri, seed=1).state_dict()
    body = [name for name in built if name.startswith("features.")]
    assert all(torch.equal(built[name], state[name]) for name in body)
    assert torch.equal(built["classifier.weight"], build_network(None, seed=1).classifier.weight)
    file.unlink()  # workers read the prepared file alone
    assert torch.equal(build_network(uri, seed=1).state_dict()["features.conv0.weight"], state["features.conv0.weight"])


def test_files_of_other_content_are_kept_apart(tmp_path: Path, imagenet_like: torchvision.models.DenseNet):
    state = dict(imagenet_like.state_dict())
    uris = set()
    for value in (1.0, 2.0):
        state["features.norm5.bias"] = torch.full((1664,), value)
        torch.save(state, tmp_path / "same-name.pth")
        uris.add(prepare_initial_weights(str(tmp_path / "same-name.pth"), str(tmp_path)))
    assert len(uris) == 2


def test_wrong_names_and_shapes_are_all_told(tmp_path: Path, imagenet_like: torchvision.models.DenseNet):
    state = dict(imagenet_like.state_dict())
    del state["features.conv0.weight"]
    state["features.norm5.bias"] = torch.zeros(1024)
    state["fc.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth does not hold a DenseNet-169") as caught:
        prepare_initial_weights(str(tmp_path / "weights.pth"), str(tmp_path))
    assert "1 missing (features.conv0.weight)" in str(caught.value)
    assert "1 unexpected (fc.weight)" in str(caught.value)
    assert "1 of another shape (features.norm5.bias [1024] instead of [1664])" in str(caught.value)
    assert not (tmp_path / "weights").exists()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('/tmp/mura-ray-was-here', 'w')",)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.pth", b"", "is damaged"),
        ("a.pth", b"PK\x03\x04 not really a zip file", "is damaged"),
        ("a.pth", {"state": Malicious()}, "holds more than plain values"),
        ("a.pth", [torch.zeros(1)], "holds a list instead of a dictionary"),
        ("a.pth", {"state_dict": {}, "epoch": 3}, "holds no plain state dict"),
        ("a.safetensors", b"\x00\x01", "is damaged"),
        ("a.onnx", b"", "pass imagenet, random, or a"),
    ],
)
def test_hostile_files(tmp_path: Path, name: str, content: object, expected: str):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=expected):
        prepare_initial_weights(str(tmp_path / name), str(tmp_path))


@pytest.mark.parametrize("spec", ["imagnet", "", "nowhere/weights.pth"])
def test_wrong_spec_is_named(tmp_path: Path, spec: str):
    with pytest.raises(ValueError, match=re.escape(repr(spec))):
        prepare_initial_weights(spec, str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where torchvision keeps downloads, on a machine without network."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_imagenet_without_network_says_what_to_do(tmp_path: Path, hub: Path):
    with pytest.raises(ValueError, match="no network") as caught:
        prepare_initial_weights("imagenet", str(tmp_path / "runs"))
    assert str(hub / "densenet169-b2777c0a.pth") in str(caught.value)
    assert "or to random" in str(caught.value)


def test_imagenet_is_fetched_once(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, imagenet_like: torchvision.models.DenseNet
):
    fetched = []

    def download(url: str, dst: str, hash_prefix: str) -> None:
        fetched.append((url, hash_prefix))
        shutil.copyfile(published, dst)

    published = tmp_path / "published"
    torch.save(old_names(imagenet_like.state_dict()), published)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    url = f"https://example.org/models/densenet169-{digest[:8]}.pth"
    monkeypatch.setattr(densenet, "imagenet_url", lambda: url)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    uri = prepare_initial_weights("imagenet", str(tmp_path / "runs"))
    assert fetched == [(url, digest[:8])]
    next(hub.iterdir()).unlink()
    assert prepare_initial_weights("imagenet", str(tmp_path / "runs")) == uri
    assert len(fetched) == 1
    weight = build_network(uri, 0).state_dict()["features.conv0.weight"]
    assert torch.equal(weight, imagenet_like.state_dict()["features.conv0.weight"])


def test_imagenet_file_with_another_hash_is_refused(tmp_path: Path, hub: Path):
    hub.mkdir(parents=True)
    (hub / "densenet169-b2777c0a.pth").write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"its sha256 differs.*remove it"):
        prepare_initial_weights("imagenet", str(tmp_path / "runs"))


def test_what_watches_over_trials_imports_no_torchvision():
    check = "import sys, mura_ray.distributed.sweep; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
