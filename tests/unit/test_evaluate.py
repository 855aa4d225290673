import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from mura_ray import evaluate
from mura_ray.data.manifest import (
    BOX_COLUMNS,
    Manifest,
    Shard,
    Split,
    TypeCount,
    content_id,
    read_manifest,
    write_manifest,
)
from mura_ray.data.shards import write_shard
from mura_ray.domain import STUDY_TYPES
from mura_ray.evaluate import evaluate_ensemble
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.ensemble import Ensemble, EnsembleDescription, MemberDescription
from mura_ray.render.report import EvaluationResult, evaluation_text, write_evaluation
from mura_ray.stats.estimates import Estimate

SIZE = 32


class ReadsOffPixels(torch.nn.Module):
    """Answers with what is painted: the first pixel is the logit, in sixteenths from -8; the map is means of cells."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self._offset = offset

    def forward_with_maps(self, gray: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.nn.functional.adaptive_avg_pool2d(gray, 4)[:, 0]
        return (gray[:, 0, 0, 0] * 255 - 128) / 16 + self._offset, maps


@dataclass
class Painted:
    """A view: its study, what the members read in it, the map's largest cell, and its box in pixels of 200 x 100."""

    study_type: str
    patient: str
    study: str
    label: int
    logit: float
    cell: tuple[int, int] = (1, 1)
    box: tuple[float, float, float, float] | None = None

    def pixels(self) -> np.ndarray:
        image = np.zeros((SIZE, SIZE), dtype=np.uint8)
        row, column = self.cell
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 200
        image[0, 0] = round(self.logit * 16) + 128
        return image


def write_data(
    folder: Path, splits: Mapping[str, list[Painted]], policy: str = "mura", boxes: bool = False
) -> Manifest:
    described = {}
    for split, views in splits.items():
        (folder / split).mkdir(parents=True)
        sample_ids = np.array([7000 - 13 * place for place in range(len(views))])
        shard = folder / split / "shard-00000.beton"
        write_shard(
            shard,
            np.stack([view.pixels() for view in views]),
            np.array([view.label for view in views]),
            np.array([STUDY_TYPES.index(view.study_type) for view in views]),
            sample_ids,
        )
        table = pd.DataFrame(
            {
                "sample_id": sample_ids,
                "path": [f"{split}/{place}.png" for place in range(len(views))],
                "patient_id": [view.patient for view in views],
                "study_id": [view.study for view in views],
                "study_type": [view.study_type for view in views],
                "label": [view.label for view in views],
                "width": 200,
                "height": 100,
                "sha256": [hashlib.sha256(view.pixels().tobytes()).hexdigest() for view in views],
            }
        )
        rows = [(id_, "lesion", *view.box) for id_, view in zip(sample_ids, views, strict=True) if view.box]
        (folder / f"{split}.csv").write_bytes(table.to_csv(index=False).encode())
        (folder / f"{split}.boxes.csv").write_bytes(
            pd.DataFrame(rows, columns=BOX_COLUMNS).to_csv(index=False).encode()
        )
        described[split] = Split(
            shards=(
                Shard(key=f"{split}/{shard.name}", bytes=shard.stat().st_size, sha256=sha256(shard), count=len(views)),
            ),
            table_sha256=sha256(folder / f"{split}.csv"),
            boxes_sha256=sha256(folder / f"{split}.boxes.csv") if boxes else None,
            counts={"hand": TypeCount(images=(0, 0), studies=(0, 0))},
        )
    manifest = Manifest(
        name="painted",
        id=content_id("painted", SIZE, described),
        source_id="0",
        split_policy=policy,
        image_size=SIZE,
        splits=described,
        class_weights={"hand": (0.5, 0.5)},
    )
    write_manifest(str(folder), manifest)
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_ensemble(data_id: str, size: int = SIZE, offsets: tuple[float, ...] = (-1.0, 1.0)) -> Ensemble:
    members = tuple(MemberDescription.model_construct(trial=f"trial-{offset}") for offset in offsets)
    description = EnsembleDescription.model_construct(
        id="e" * 16, image_size=size, threshold=0.5, data_id=data_id, members=members
    )
    return Ensemble(description, [cast(AbnormalityNet, ReadsOffPixels(offset)) for offset in offsets], "cpu")


def sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))


def cohort() -> list[Painted]:
    """Hands: five abnormal studies (one missed), six normal (two called). Wrists: two, of patients with hands."""
    abnormal = [Painted("hand", f"a{i}", "study1", 1, logit) for i, logit in enumerate([3, 2, 1, 0.5, -2])]
    normal = [Painted("hand", f"n{i}", "study1", 0, logit) for i, logit in enumerate([-3, -3, -2, -1, 1.5, 2.5])]
    wrists = [Painted("wrist", "a0", "study1", 1, 2), Painted("wrist", "n0", "study1", 0, -1)]
    return [*wrists, *abnormal, *normal]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MURA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, {"test": cohort(), "valid": cohort()})
    return str(folder)


@pytest.fixture(scope="module")
def result(data: str) -> EvaluationResult:
    return result_on(data)


def result_on(data: str, split: str = "test") -> EvaluationResult:
    return evaluate_ensemble(make_ensemble(read_manifest(data).id), data, split)


def test_a_studys_probability_is_the_mean_over_members_and_views(tmp_path: Path):
    views = [
        Painted("wrist", "p1", "study1", 1, 2.0),
        Painted("hand", "p1", "study1", 0, -3.0),
        Painted("wrist", "p1", "study1", 1, -4.0),
        Painted("wrist", "p1", "study2", 0, 0.0),
        Painted("wrist", "p2", "study1", 0, -0.75),
    ]
    manifest = write_data(tmp_path, {"test": views})
    ensemble = make_ensemble(manifest.id, offsets=(0.0, 1.5))
    studies = evaluate_ensemble(ensemble, str(tmp_path)).studies
    assert list(studies["study"]) == ["wrist/p1/study1", "hand/p1/study1", "wrist/p1/study2", "wrist/p2/study1"]
    assert list(studies["label"]) == [1, 0, 0, 0]
    assert list(studies["num_views"]) == [2, 1, 1, 1]
    first = np.mean([sigmoid(2), sigmoid(3.5), sigmoid(-4), sigmoid(-2.5)])
    expected = [first, np.mean([sigmoid(-3), sigmoid(-1.5)]), np.mean([0.5, sigmoid(1.5)]), 0.5]
    np.testing.assert_allclose(studies["probability"], expected, rtol=1e-6)
    assert list(studies["abnormal"]) == [int(first > 0.5), 0, 1, 0]
    served = ensemble.predict_study([views[0].pixels(), views[2].pixels()])
    assert served.probability == pytest.approx(studies["probability"][0])


def test_numbers_by_type_and_overall(result: EvaluationResult):
    metrics = result.metrics
    assert list(metrics) == ["hand", "wrist", "overall"]
    hand, wrist, overall = metrics.values()
    assert (hand.num_studies, hand.num_abnormal) == (11, 5)
    assert hand.sensitivity.value == 4 / 5
    assert hand.specificity.value == 4 / 6
    assert hand.auroc.value == pytest.approx((6 + 5 + 4 + 4 + 2.5) / 30)  # -2 ties with one normal
    assert hand.kappa.value == pytest.approx((8 / 11 - 60 / 121) / (1 - 60 / 121))
    assert (wrist.num_studies, wrist.num_abnormal, wrist.auroc) == (2, 1, Estimate())
    assert (overall.num_studies, overall.num_abnormal, overall.sensitivity.value) == (13, 6, 5 / 6)


def test_files(result: EvaluationResult, data: str, tmp_path: Path):
    write_evaluation(result, str(tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out/metrics.csv", index_col="study_type")
    assert list(table.index) == ["hand", "wrist", "overall"]
    assert table.loc["hand", "sensitivity"] == 0.8
    assert table.loc["hand", "auroc_low"] == result.metrics["hand"].auroc.low
    assert "wrist,2,1,,,,,,,,,,,,\n" in (tmp_path / "out/metrics.csv").read_text()
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["data"] == {
        "name": "painted", "id": read_manifest(data).id, "split": "test", "split_policy": "mura"
    }  # fmt: skip
    assert content["metrics"]["hand"]["specificity"]["value"] == 4 / 6
    assert content["metrics"]["wrist"]["kappa"] == {"value": None, "low": None, "high": None}
    assert content["localisation"] is None
    studies = pd.read_csv(tmp_path / "out/studies.csv")
    pd.testing.assert_frame_equal(studies, result.studies, check_dtype=False)


def test_text(result: EvaluationResult):
    text = evaluation_text(result)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    low = result.metrics["hand"].auroc.low
    assert rows["hand"][1:5] == ["11", "5", "0.717", f"[{low:.3f},"]
    assert rows["wrist"] == ["wrist", "2", "1", "n.e.", "n.e.", "n.e.", "n.e."]
    assert "fewer than 5 studies" in text
    assert "NOTE" not in text
    assert "Localisation" not in text


@pytest.mark.parametrize(
    ("split", "policy", "said"),
    [
        ("test", "mura", []),
        ("valid", "mura", ["optimistic"]),
        ("valid", "official", ["optimistic"]),
        ("test", "official", ["optimistic"]),
        ("train", "official", ["training"]),
    ],
)
def test_says_what_the_numbers_were_chosen_on(data: str, split: str, policy: str, said: list[str]):
    manifest = read_manifest(data).model_copy(update={"split_policy": policy})
    notes = evaluate._notes(manifest, split, make_ensemble(manifest.id).description)
    assert [word for word in ("optimistic", "training") if any(word in note for note in notes)] == said
    assert len(notes) == len(said)


def test_notes_are_printed_and_written(data: str, tmp_path: Path):
    result = evaluate_ensemble(make_ensemble("another"), data, "valid")
    optimistic, other_data = result.notes
    assert "chosen on the split 'valid'" in optimistic
    assert "trained on the data set another" in other_data
    write_evaluation(result, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["notes"] == list(result.notes)
    unwrapped = " ".join(evaluation_text(result).split())
    assert all(f"NOTE: {note}" in unwrapped for note in result.notes)


def test_localisation_in_the_views_own_proportions(tmp_path: Path):
    # A cell of the map is 50 x 25 pixels of the 200 x 100 view. Cell (1, 2) has its centre at x 125, y 37.5.
    hit, miss = (122.0, 35.0, 6.0, 5.0), (170.0, 80.0, 10.0, 10.0)
    views = [Painted("hand", f"p{i}", "study1", 1, 1, (1, 2), hit if i < 6 else miss) for i in range(8)]
    views += [Painted("hand", "q", "study1", 1, 1, (1, 2)), Painted("hand", "n", "study1", 0, 1, (1, 2), hit)]
    views += [Painted("wrist", "w", "study1", 1, 1, (1, 2), hit)]
    manifest = write_data(tmp_path, {"test": views}, boxes=True)
    result = evaluate_ensemble(make_ensemble(manifest.id), str(tmp_path))
    game = result.localisation
    assert game is not None
    assert (game.num_views, game.num_patients, game.left_out) == (8, 8, ("wrist",))
    assert game.rate == game.baseline == 6 / 8
    assert "8 abnormal views with boxes" in evaluation_text(result)
    assert "left out, because they have a single such view: wrist" in evaluation_text(result)
    write_evaluation(result, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["localisation"]["ratio"]["value"] == 1


def test_painted_shares_are_reported_apart_for_normal_and_abnormal_views(result: EvaluationResult, tmp_path: Path):
    counts = dict(zip(result.painted["label"], result.painted["num_views"], strict=True))
    assert counts == {0: 7, 1: 6}
    assert result.painted[["share", "strength"]].to_numpy().min() > 0
    assert result.painted[["share", "strength"]].to_numpy().max() <= 1
    assert "labelled normal    0." in evaluation_text(result)
    write_evaluation(result, str(tmp_path))
    written = json.loads((tmp_path / "metrics.json").read_text())["painted"]
    assert [row["num_views"] for row in written] == [7, 6]
    assert written[0]["share"] == result.painted["share"][0] > 0


def test_boxes_of_which_none_is_in_an_abnormal_view(tmp_path: Path):
    write_data(tmp_path, {"test": cohort()}, boxes=True)
    game = result_on(str(tmp_path)).localisation
    assert game is not None
    assert (game.num_views, game.rate, game.ratio) == (0, None, Estimate())


def test_another_image_size_names_the_remedy(data: str):
    with pytest.raises(ValueError, match=r"takes images of 64 px, .* holds 32 px: .*--image-size 64"):
        evaluate_ensemble(make_ensemble("x", size=64), data)


def test_a_split_that_is_not_there(tmp_path: Path):
    write_data(tmp_path, {"train": cohort(), "valid": cohort()})
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        result_on(str(tmp_path))


@pytest.fixture
def loads(data: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `Ensemble.load` is asked for; it gives the painted ensemble."""
    asked = []

    def load(uri: str, device: str) -> Ensemble:
        asked.append(uri)
        return make_ensemble(read_manifest(data).id)

    monkeypatch.setattr(Ensemble, "load", load)
    for name in ("MURA_DATA", "MURA_RUNS"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_command(
    data: str, result: EvaluationResult, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
):
    ensemble = tmp_path / "runs/sweep/ensemble"
    assert evaluate.main(["--ensemble", f"{ensemble}/ensemble.json", "--data", data]) == 0
    assert loads == [str(ensemble)]
    out = tmp_path / f"runs/sweep/evaluation-test-{read_manifest(data).id}-{'e' * 16}"
    assert {file.name for file in out.iterdir()} == {"metrics.csv", "metrics.json", "studies.csv"}
    printed = capsys.readouterr()
    assert evaluation_text(result) in printed.out
    assert str(out) in printed.out
    assert evaluate.main(["--ensemble", str(ensemble), "--data", data, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here/metrics.json").read_bytes() == (out / "metrics.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data", "DATA"], "pass --ensemble DIR, or set MURA_RUNS"),
        (["--ensemble", "E"], "pass --data URI or set MURA_DATA"),
        (["--ensemble", "E", "--data", "E"], "no converted data set"),
        (["--ensemble", "E", "--data", "DATA", "--split", "nope"], "no split 'nope'; it has test, valid"),
        (["--ensemble", "E", "--data", "DATA", "--out", "E/report"], "never changed"),
        (["--ensemble", "E", "--data", "DATA", "--out", "E"], "never changed"),
    ],
)
def test_command_says_what_is_wrong(
    options: list[str],
    named: str,
    data: str,
    tmp_path: Path,
    loads: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([data if option == "DATA" else option for option in options]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "E").exists()
