import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from mura_ray.config import TrialConfig
from mura_ray.model.checkpoint import CheckpointMeta, load_network, load_state, read_meta, save_checkpoint
from mura_ray.model.densenet import AbnormalityNet, build_network

META = CheckpointMeta(
    trial="trial", epoch=4, val_loss=0.1 + 0.2, image_size=64, data_id="data", data_manifest_sha256="manifest",
    config=TrialConfig(image_size=64, learning_rate=3e-5),
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> AbnormalityNet:
    return build_network(None, seed=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, network: AbnormalityNet) -> Path:
    """A checkpoint that no test changes."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    save_checkpoint(folder, network, META, {"position": {"epoch": 4}, "rng": torch.arange(3)})
    return folder


def test_comes_back_as_it_was(saved: Path, network: AbnormalityNet):
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "meta.json", "state.pt"}
    for source in (saved, str(saved), saved / "model.safetensors"):
        loaded = load_network(source).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    assert read_meta(saved) == META
    state = load_state(saved)
    assert state["position"] == {"epoch": 4}
    assert torch.equal(state["rng"], torch.arange(3))


def test_weights_load_into_torchvisions_network(saved: Path):
    reference = torchvision.models.densenet169(num_classes=1)
    reference.load_state_dict(safetensors.torch.load_file(saved / "model.safetensors"))


def test_memory_layout_does_not_matter(tmp_path: Path, saved: Path):
    network = build_network(None, seed=0).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_checkpoint(tmp_path, network, META, None)
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_without_state(tmp_path: Path, network: AbnormalityNet):
    save_checkpoint(tmp_path, network, META, None)
    assert not (tmp_path / "state.pt").exists()
    with pytest.raises(ValueError, match=r"state\.pt.*cannot go on"):
        load_state(tmp_path)


def test_interrupted_before_its_end_is_no_checkpoint(
    tmp_path: Path, network: AbnormalityNet, monkeypatch: pytest.MonkeyPatch
):
    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, network, META, {"position": 1})
    with pytest.raises(ValueError, match=r"is no checkpoint: it has no meta\.json"):
        read_meta(tmp_path)


def test_missing_network(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no file at .*model\.safetensors"):
        load_network(tmp_path)


def test_truncated_network(tmp_path: Path, saved: Path):
    content = (saved / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_network(tmp_path)


def test_another_network(tmp_path: Path):
    safetensors.torch.save_file({"fc.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1014 missing|1 unexpected \(fc\.weight\)"):
        load_network(tmp_path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("state.pt ran code",)


def test_state_never_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"optimiser": Malicious()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is damaged, or holds more than plain values"):
        load_state(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda meta: meta | {"format_version": 2}, "format version 2, this program reads 1"),
        (lambda meta: {}, "format version None"),
        (lambda meta: [], "format version None"),
        (lambda meta: meta | {"architecture": "resnet50"}, "architecture"),
        (lambda meta: meta | {"surprise": 1}, "surprise"),
        (lambda meta: {key: value for key, value in meta.items() if key != "epoch"}, "epoch"),
    ],
)
def test_meta_that_is_not_ours(tmp_path: Path, change, expected: str):
    (tmp_path / "meta.json").write_text(json.dumps(change(json.loads(META.model_dump_json()))))
    with pytest.raises(ValueError, match=rf"(?s)cannot use .*meta\.json: .*{expected}"):
        read_meta(tmp_path)


def test_meta_that_is_no_json(tmp_path: Path):
    (tmp_path / "meta.json").write_text('{"format_version": 1, ')
    with pytest.raises(ValueError, match=r"cannot use .*meta\.json.*train again"):
        read_meta(tmp_path)
