from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.experiment import Experiment

from mura_ray.config import Augmentation, nested
from mura_ray.distributed.space import Space, param_space, read_space, searcher, trial_config

SPACES = Path(__file__).resolve().parents[2] / "tune_spaces"


def write_space(folder: Path, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "num_trials": 6,
        "fixed": {"image_size": 64, "initial_weights": "random", "augmentation": {"scale": 0.1}},
        "search": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}, "augmentation.rotation_deg": {"uniform": [0, 30]}},
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_project_s_own_space_files_are_valid(path: Path) -> None:
    space = read_space(str(path))
    assert space.ensemble_size == 5
    assert "learning_rate" in space.search


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        ("plain-loss", {"weighted_loss": False}),
        ("no-augmentation", {"augmentation": {"inversion_probability": 0, "rotation_deg": 0}}),
    ],
)
def test_an_arm_of_the_ablation_differs_from_the_reference_in_one_setting(arm: str, changed: dict[str, Any]) -> None:
    reference = read_space(str(SPACES / "ablation-reference.yaml"))
    assert reference.num_trials == reference.ensemble_size == 5
    config = trial_config(reference, {})
    assert (config.weighted_loss, config.augmentation) == (True, Augmentation())
    assert read_space(str(SPACES / f"ablation-{arm}.yaml")) == reference.model_copy(
        update={"fixed": {**reference.fixed, **changed}}
    )


def test_spaces_that_search_the_same_draw_the_same_learning_rates_and_seeds(tmp_path: Path) -> None:
    def drawn(name: str) -> list[dict[str, Any]]:
        space = read_space(str(SPACES / name))
        search = searcher(space, 5)
        search.add_configurations(
            Experiment("arm", lambda config: None, config=param_space(space), num_samples=5, storage_path=str(tmp_path))
        )
        trials = [search.next_trial() for _ in range(5)]
        return [{key: trial.config[key] for key in ("learning_rate", "seed")} for trial in trials]

    reference = drawn("ablation-reference.yaml")
    assert len({trial["learning_rate"] for trial in reference}) == 5
    assert drawn("ablation-plain-loss.yaml") == drawn("ablation-no-augmentation.yaml") == reference


def test_bounds_that_yaml_reads_as_text_become_numbers(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-5") == "1e-5", "PyYAML's reading of YAML 1.1, the trap that this test is about"
    path = tmp_path / "space.yaml"
    path.write_text(
        "num_trials: 5\nfixed: {weight_decay: 1e-4}\nsearch:\n  learning_rate: {log_uniform: [1e-5, 1e-3]}\n",
        encoding="utf-8",
    )
    space = read_space(str(path))
    assert space.search["learning_rate"].log_uniform == (1e-5, 1e-3)
    assert trial_config(space, {}).weight_decay == 1e-4


def test_sampled_values_lie_over_the_fixed_ones_and_those_over_the_paper_s(tmp_path: Path) -> None:
    space = read_space(write_space(tmp_path))
    config = trial_config(space, {"learning_rate": 5e-4, "augmentation.rotation_deg": 12.0, "seed": 7})
    assert (config.learning_rate, config.seed, config.image_size) == (5e-4, 7, 64)
    assert (config.augmentation.rotation_deg, config.augmentation.scale) == (12.0, 0.1)
    assert (config.augmentation.inversion_probability, config.batch_size, config.beta2) == (0.5, 8, 0.999)


def test_every_trial_draws_its_seed_unless_the_file_sets_one(tmp_path: Path) -> None:
    assert set(param_space(read_space(write_space(tmp_path)))) == {
        "learning_rate",
        "augmentation.rotation_deg",
        "seed",
    }
    assert "seed" not in param_space(read_space(write_space(tmp_path, fixed={"seed": 3})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trails": 6}, "num_trails"),
        ({"num_trials": 4}, "num_trials is 4, an ensemble of 5 needs as many"),
        ({"search": {}}, "search"),
        ({"search": {"learning_rat": {"uniform": [0.1, 0.2]}}}, "learning_rat"),
        ({"search": {"augmentation.rotate": {"uniform": [0, 1]}}}, "rotate"),
        ({"search": {"learning_rate": {"uniform": [0.2, 0.1]}}}, "0.2 is not below"),
        ({"search": {"learning_rate": {"log_uniform": [0, 0.1]}}}, "positive bounds"),
        ({"search": {"learning_rate": {"uniform": [0.1, 2]}}}, "2.0 is not possible"),
        ({"search": {"batch_size": {"choice": [8, "many"]}}}, "many"),
        ({"search": {"batch_size": {"choice": []}}}, "choice"),
        ({"search": {"learning_rate": {"uniform": [0, 1], "choice": [1]}}}, "exactly one of"),
        ({"search": {"image_size": {"choice": [64, 128]}}}, "image_size cannot be searched"),
        ({"fixed": {"epoch": 3}}, "epoch"),
        ({"scheduler": "pbt"}, "scheduler"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(write_space(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("- a\n", "name: value"), ("", "name: value")]
)
def test_a_file_that_is_no_space_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_space(str(path))
    with pytest.raises(ValueError, match="no space file at"):
        read_space(str(tmp_path / "none.yaml"))


def test_a_space_keeps_its_meaning_as_json(tmp_path: Path) -> None:
    space = read_space(write_space(tmp_path, search={"batch_size": {"choice": [8, 16]}}))
    assert Space.model_validate_json(space.model_dump_json()) == space


def test_a_name_below_a_setting_without_parts_is_named() -> None:
    with pytest.raises(ValueError, match=r"augmentation\.scale: augmentation has the value 3 already"):
        nested({"augmentation": 3, "augmentation.scale": 0.1})


def test_settings_of_every_trial_can_be_given_instead_of_the_files(tmp_path: Path):
    path = write_space(tmp_path, fixed={"image_size": 320, "augmentation": {"scale": 0.1}})
    space = read_space(path, {"image_size": 64, "augmentation.translation": 0.2})
    config = trial_config(space, {})
    assert (config.image_size, config.augmentation.scale, config.augmentation.translation) == (64, 0.1, 0.2)
    with pytest.raises(ValueError, match="imagesize"):
        read_space(path, {"imagesize": 64})
    with pytest.raises(ValueError, match="learning_rate is searched"):
        read_space(path, {"learning_rate": 1e-4})
