import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from copy import copy as copy_of
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.transforms.functional import normalize

from mura_ray.images import resize_gray
from mura_ray.model import ensemble as module
from mura_ray.model.ensemble import (
    Ensemble,
    EnsembleDescription,
    MemberSource,
    newest_ensemble,
    read_description,
    write_ensemble,
)
from tests.unit.tiny_ensemble import DATA_ID, IMAGE_SIZE, MANIFEST_SHA256, member_source, write_tiny_ensemble

VAL_LOSSES = (0.5, 0.3, 0.4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints and the ensemble of them; no test changes it."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_ensemble(folder, VAL_LOSSES)
    return folder


@pytest.fixture(scope="module")
def ensemble(home: Path) -> Ensemble:
    return Ensemble.load(str(home / "ensemble"))


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The ensemble's folder again, its files to be replaced at will (the members are hard links)."""
    return Path(shutil.copytree(home / "ensemble", tmp_path / "ensemble", copy_function=os.link))


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def sources(home: Path) -> list[MemberSource]:
    metas = [json.loads((home / f"trial-{seed}" / "meta.json").read_text()) for seed in range(len(VAL_LOSSES))]
    return [
        MemberSource(m["trial"], m["epoch"], m["val_loss"], module.TrialConfig(**m["config"]), str(home / m["trial"]))
        for m in metas
    ]


def write(dest: Path, members: list[MemberSource], manifest: str = MANIFEST_SHA256) -> EnsembleDescription:
    return write_ensemble(str(dest), members, data_id=DATA_ID, data_manifest_sha256=manifest)


def views() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(50, 40), (32, 32), (20, 90)]
    return [random.integers(0, 50 + 100 * index, shape, dtype=np.uint8) for index, shape in enumerate(shapes)]


def reference_logits(home: Path, grays: list[np.ndarray]) -> np.ndarray:
    """[M, N], by torchvision's network and transforms, one view at a time, from the checkpoints."""
    rows = []
    for seed in (1, 2, 0):  # ascending validation loss
        network = torchvision.models.densenet169(num_classes=1).eval()
        network.load_state_dict(safetensors.torch.load_file(home / f"trial-{seed}" / "model.safetensors"))
        row = []
        for gray in grays:
            unit = torch.from_numpy(resize_gray(gray, IMAGE_SIZE) / 255.0).float().expand(1, 3, -1, -1)
            with torch.inference_mode():
                row.append(network(normalize(unit, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).item())
        rows.append(row)
    return np.array(rows)


def test_folder_is_as_the_contract_says(home: Path):
    folder = home / "ensemble"
    assert {path.name for path in folder.iterdir()} == {
        "ensemble.json", "member-0.safetensors", "member-1.safetensors", "member-2.safetensors"
    }  # fmt: skip
    content = json.loads((folder / "ensemble.json").read_text())
    assert [member["trial"] for member in content["members"]] == ["trial-1", "trial-2", "trial-0"]
    assert [member["val_loss"] for member in content["members"]] == [0.3, 0.4, 0.5]
    assert (content["image_size"], content["threshold"], content["calibration"]) == (IMAGE_SIZE, 0.5, None)
    assert (content["data_id"], content["data_manifest_sha256"]) == (DATA_ID, MANIFEST_SHA256)
    for place, member in enumerate(content["members"]):
        digest = subprocess.run(["sha256sum", folder / f"member-{place}.safetensors"], capture_output=True, text=True)
        assert digest.stdout.split()[0] == member["sha256"]
        assert member["config"]["image_size"] == IMAGE_SIZE
        original = home / member["trial"] / "model.safetensors"
        assert original.read_bytes() == (folder / f"member-{place}.safetensors").read_bytes()


def test_id_depends_on_the_content_alone(home: Path, tmp_path: Path):
    first = read_description(str(home / "ensemble"))
    again = write(tmp_path / "again", sources(home)[::-1])
    assert again.id == first.id
    assert again.created > first.created
    fewer = write(tmp_path / "fewer", sources(home)[:2])
    assert fewer.id != first.id


def test_prediction_equals_the_reference(home: Path, ensemble: Ensemble):
    grays = views()
    prediction = ensemble.predict_study(grays)
    probabilities = 1 / (1 + np.exp(-reference_logits(home, grays)))
    assert np.ptp(probabilities) > 0.05
    assert prediction.probability == pytest.approx(probabilities.mean(), abs=1e-5)
    assert [view.probability for view in prediction.views] == pytest.approx(probabilities.mean(axis=0), abs=1e-5)
    assert [m.probability for m in prediction.members] == pytest.approx(probabilities.mean(axis=1), abs=1e-5)
    assert [m.trial for m in prediction.members] == ["trial-1", "trial-2", "trial-0"]
    assert [(view.width, view.height) for view in prediction.views] == [(40, 50), (32, 32), (90, 20)]
    assert prediction.abnormal == (prediction.probability > prediction.threshold == 0.5)


def test_map_is_the_mean_of_the_members_raw_maps(home: Path, ensemble: Ensemble):
    # Over the area, a member's map plus its bias averages to its logit; so does the mean of the maps to the mean logit.
    biases = np.array([0.5, 0.75, 0.25])  # of the seeds 1, 2, 0
    expected = (reference_logits(home, views()) - biases[:, None]).mean(axis=0)
    maps = [view.cam for view in ensemble.predict_study(views()).views]
    assert all(cam.dtype == np.float32 and cam.shape == (1, 1) for cam in maps)
    np.testing.assert_allclose([cam.mean() for cam in maps], expected, atol=1e-4)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_batches_do_not_change_the_answer(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch, as_tensor: bool):
    pixels = np.stack([resize_gray(view, IMAGE_SIZE) for view in views() + views()])[:, None]
    logits, maps = ensemble.predict_pixels(torch.from_numpy(pixels) if as_tensor else pixels)
    assert (logits.shape, maps.shape) == ((3, 6), (6, 1, 1))
    assert logits.dtype == maps.dtype == np.float32
    monkeypatch.setattr(ensemble, "max_views", 4)
    chunked_logits, chunked_maps = ensemble.predict_pixels(pixels)
    np.testing.assert_allclose(chunked_logits, logits, atol=1e-4)
    np.testing.assert_allclose(chunked_maps, maps, atol=1e-4)


def test_threshold_is_exceeded_not_reached(ensemble: Ensemble):
    probability = ensemble.predict_study(views()).probability
    for threshold, abnormal in ((probability, False), (np.nextafter(probability, 0), True)):
        description = ensemble.description.model_copy(update={"threshold": float(threshold)})
        same = copy_of(ensemble)
        same.description = description
        assert same.predict_study(views()).abnormal is abnormal


def test_answers_from_several_threads(ensemble: Ensemble):
    expected = ensemble.predict_study(views()).probability
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ensemble.predict_study(views()).probability, range(8)))
    assert answers == pytest.approx([expected] * 8, abs=1e-6)


def test_study_without_views(ensemble: Ensemble):
    with pytest.raises(ValueError, match="at least one view"):
        ensemble.predict_study([])


def test_loads_by_its_file_too(copy: Path):
    assert Ensemble.load(str(copy / "ensemble.json")).description == read_description(str(copy))


def test_relative_uri(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copy)
    assert read_description("ensemble.json") == read_description(".") == read_description(str(copy))


def test_changed_member_is_refused(copy: Path):
    file = copy / "member-1.safetensors"
    expected = read_description(str(copy)).members[1].sha256
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    replace(file, bytes(content))
    with pytest.raises(ValueError, match=r"member-1\.safetensors is not the member") as caught:
        Ensemble.load(str(copy))
    assert f"its sha256 is {module._sha256(bytes(content))}, expected {expected}" in str(caught.value)


def test_swapped_members_are_refused(copy: Path):
    (copy / "member-0.safetensors").rename(copy / "aside")
    (copy / "member-1.safetensors").rename(copy / "member-0.safetensors")
    (copy / "aside").rename(copy / "member-1.safetensors")
    with pytest.raises(ValueError, match=r"member-0\.safetensors is not the member"):
        Ensemble.load(str(copy))


def test_missing_member_is_refused(copy: Path):
    (copy / "member-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"member-2\.safetensors is missing: restore it"):
        Ensemble.load(str(copy))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[:-40], r"ensemble\.json is damaged"),
        (lambda text: "[]", "holds no JSON object"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "format version 2.*reads 1"),
        (lambda text: text.replace('"trial-1"', '"trial-9"'), "was changed after it was written"),
        (lambda text: text.replace('"threshold": 0.5', '"threshold": 0.4'), "was changed after it was written"),
        (lambda text: text.replace('"image_size"', '"picture_size"', 1), "picture_size"),
    ],
)
def test_description_that_is_not_ours(copy: Path, change, expected: str):
    text = (copy / "ensemble.json").read_text()
    assert change(text) != text
    replace(copy / "ensemble.json", change(text).encode())
    with pytest.raises(ValueError, match=rf"(?s)ensemble\.json.*{expected}|{expected}"):
        Ensemble.load(str(copy))


def test_no_ensemble_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no ensemble: .*ensemble\.json does not exist"):
        Ensemble.load(str(tmp_path))


def test_written_again_it_stays_as_it_is(home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    before = (copy / "ensemble.json").read_bytes()
    monkeypatch.setattr(module, "git_revision", lambda: "a later commit")
    assert write(copy, sources(home)) == read_description(str(copy))
    assert (copy / "ensemble.json").read_bytes() == before


def test_another_ensemble_is_never_overwritten(home: Path, copy: Path):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(ValueError, match=r"holds another ensemble.*choose another name"):
        write(copy, sources(home)[:2])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_half_written_ensemble_is_none_and_is_completed(home: Path, copy: Path):
    (copy / "ensemble.json").unlink()
    replace(copy / "member-0.safetensors", b"half")
    with pytest.raises(ValueError, match="no ensemble"):
        Ensemble.load(str(copy))
    write(copy, sources(home))
    Ensemble.load(str(copy))


def test_nothing_is_written_from_a_damaged_checkpoint(home: Path, tmp_path: Path):
    damaged = Path(shutil.copytree(home / "trial-0", tmp_path / "trial-0"))
    replace(damaged / "model.safetensors", (damaged / "model.safetensors").read_bytes()[:1000])
    members = sources(home)
    members[0] = MemberSource(**{**vars(members[0]), "checkpoint": str(damaged)})
    with pytest.raises(ValueError, match=r"trial-0/model\.safetensors is damaged"):
        write(tmp_path / "ensemble", members)
    assert not (tmp_path / "ensemble").exists()


def test_checkpoint_of_another_epoch_or_data_set_is_refused(home: Path, tmp_path: Path):
    members = sources(home)
    with pytest.raises(ValueError, match=r"trial-1 is not the checkpoint of trial trial-1.*'other'"):
        write(tmp_path / "ensemble", members[1:], manifest="other")
    members[0] = MemberSource(**{**vars(members[0]), "epoch": 7})
    with pytest.raises(ValueError, match=r"expected epoch and data set \(7, .*it has \(1, "):
        write(tmp_path / "ensemble", members)


def test_members_of_different_sizes_or_none(home: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no members"):
        write(tmp_path / "ensemble", [])
    members = [*sources(home), member_source(tmp_path, 7, 0.2, image_size=64)]
    with pytest.raises(ValueError, match=r"share one image_size, these have \[32, 64\]"):
        write(tmp_path / "ensemble", members)


def test_newest_is_the_one_created_last(home: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no ensemble under .*python -m mura_ray\.tune"):
        newest_ensemble(str(tmp_path))
    for name in ("z-first", "a-second"):
        write(tmp_path / name / "ensemble", sources(home)[:1])
    os.utime(tmp_path / "z-first" / "ensemble" / "ensemble.json")  # copied or touched later, created earlier
    (tmp_path / "unfinished" / "ensemble").mkdir(parents=True)
    assert newest_ensemble(str(tmp_path)) == str(tmp_path / "a-second" / "ensemble")
