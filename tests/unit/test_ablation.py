import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from mura_ray.stats.ablation import AVERAGE_MEMBER, MAXIMUM, MEMBER, RECIPE, Ablation, ablations
from mura_ray.stats.estimates import Estimate

TRIALS = ("a", "b", "c", "d", "e")


def cohort(num_patients: int = 60, seed: int = 0, noise: float = 2.0) -> tuple[pd.DataFrame, np.ndarray]:
    """Patients of one or two studies of one to three views; five members that each err by themselves."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(num_patients):
        for study in range(1 + patient % 2):
            label = int(generator.integers(0, 2))
            rows += [("hand", f"p{patient}", f"study{study}", label)] * int(generator.integers(1, 4))
    views = pd.DataFrame(rows, columns=["study_type", "patient_id", "study_id", "label"])
    views = views.sample(frac=1, random_state=seed).reset_index(drop=True)
    signal = 1.5 * (2 * views["label"].to_numpy() - 1) + generator.normal(size=len(views))
    return views, (signal + noise * generator.normal(size=(5, len(views)))).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> dict[str, Ablation]:
    return {row.variant: row for row in ablations(*cohort(), TRIALS, 0.5)}


def number(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_the_recipe_first_then_each_member_their_average_and_the_maximum(found: dict[str, Ablation]):
    assert list(found) == [RECIPE, *(MEMBER.format(trial) for trial in TRIALS), AVERAGE_MEMBER, MAXIMUM]
    views, _ = cohort()
    assert {row.num_studies for row in found.values()} == {len(views.groupby(["patient_id", "study_id"]))}


@pytest.mark.parametrize(
    ("variant", "member", "over_views"),
    [(RECIPE, slice(None), "mean"), (MEMBER.format("b"), slice(1, 2), "mean"), (MAXIMUM, slice(None), "max")],
)
def test_numbers_are_those_of_scikit_learn(found: dict[str, Ablation], variant: str, member: slice, over_views: str):
    views, logits = cohort()
    probability = expit(logits.astype(np.float64))[member].mean(axis=0)
    studies = views.assign(p=probability).groupby(["patient_id", "study_id"]).agg({"label": "first", "p": over_views})
    row = found[variant]
    assert number(row.auroc) == pytest.approx(roc_auc_score(studies["label"], studies["p"]))
    assert number(row.kappa) == pytest.approx(cohen_kappa_score(studies["label"], studies["p"] > 0.5))
    assert row.num_abnormal == studies["label"].sum()
    for estimate in (row.auroc, row.kappa):
        low, high = bounds(estimate)
        assert low < number(estimate) < high


def test_the_average_member_is_the_mean_of_the_members_numbers(found: dict[str, Ablation]):
    members = [found[MEMBER.format(trial)] for trial in TRIALS]
    assert number(found[AVERAGE_MEMBER].auroc) == pytest.approx(np.mean([number(row.auroc) for row in members]))
    assert number(found[AVERAGE_MEMBER].kappa) == pytest.approx(np.mean([number(row.kappa) for row in members]))
    assert len({number(row.auroc) for row in members}) == 5


def test_losses_are_the_recipe_less_the_variant(found: dict[str, Ablation]):
    recipe = found[RECIPE]
    assert (recipe.auroc_loss, recipe.kappa_loss) == (Estimate(0.0), Estimate(0.0))
    for row in found.values():
        assert number(row.auroc_loss) == pytest.approx(number(recipe.auroc) - number(row.auroc))
        assert number(row.kappa_loss) == pytest.approx(number(recipe.kappa) - number(row.kappa))


def test_five_members_that_err_apart_are_better_than_one_and_a_paired_interval_shows_it(found: dict[str, Ablation]):
    row = found[AVERAGE_MEMBER]
    assert bounds(row.auroc_loss)[0] > 0
    unpaired = bounds(row.auroc)[1] - bounds(row.auroc)[0]
    assert bounds(row.auroc_loss)[1] - bounds(row.auroc_loss)[0] < unpaired


def test_equal_members_lose_nothing():
    views, logits = cohort()
    rows = {row.variant: row for row in ablations(views, np.repeat(logits[:1], 5, axis=0), TRIALS, 0.5)}
    assert number(rows[AVERAGE_MEMBER].auroc_loss) == pytest.approx(0, abs=1e-12)
    assert rows[MEMBER.format("c")].kappa_loss == Estimate(0.0)


def test_the_maximum_equals_the_mean_where_studies_have_one_view():
    views, logits = cohort()
    one = ~views.duplicated(["patient_id", "study_id"])
    rows = {row.variant: row for row in ablations(views[one], logits[:, one], TRIALS, 0.5)}
    assert rows[MAXIMUM].auroc_loss == Estimate(0.0)
    assert rows[MAXIMUM].kappa == rows[RECIPE].kappa


def test_patients_are_drawn_whole():
    def width(views: pd.DataFrame, logits: np.ndarray) -> float:
        low, high = bounds(ablations(views, logits, TRIALS, 0.5)[0].auroc)
        return high - low

    views, logits = cohort(40)
    copies = pd.concat([views.assign(study_id=views["study_id"] + f"-{copy}") for copy in range(5)])
    split = copies.assign(patient_id=copies["patient_id"] + copies["study_id"])
    repeated = np.tile(logits, 5)
    assert width(split, repeated) < 0.6 * width(copies, repeated)


def test_few_studies_or_patients():
    views, logits = cohort(6)
    few = views["study_id"] == "study0"
    rows = ablations(views[few], logits[:, few], TRIALS, 0.5)
    assert {(row.auroc, row.kappa, row.auroc_loss) for row in rows} == {(Estimate(),) * 3}
    views, logits = cohort()
    row = ablations(views.assign(patient_id="p", study_id=views["patient_id"] + views["study_id"]), logits, TRIALS, 0.5)
    assert row[1].auroc.value is not None
    assert row[1].auroc.low is row[1].auroc_loss.low is None
