import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from mura_ray.stats.agreement import kappa_mchugh
from mura_ray.stats.estimates import Estimate, rate
from mura_ray.stats.readers import (
    MODEL,
    ReaderData,
    all_panels,
    draw_panel,
    majority,
    reader_data,
    reader_study,
)

NAMES = ["ada", "ben", "cem", "dia", "eva", "fox"]
TYPES = ["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]


def simulated(seed: int = 0, num: int = 207, readers_err: float = 0.1, model_errs: float = 0.15) -> ReaderData:
    """As many studies and readers as in the paper; patients have one or two studies."""
    generator = np.random.default_rng(seed)
    truth = (np.arange(num) % 9 < 4).astype(int)
    readers = {name: np.where(generator.random(num) < readers_err, 1 - truth, truth) for name in NAMES}
    sure = np.where(generator.random(num) < model_errs, 1 - truth, truth)
    probabilities = np.where(sure == 1, generator.uniform(0.5, 1, num), generator.uniform(0, 0.5, num))
    return reader_data(pd.DataFrame(readers), probabilities, np.arange(num) * 2 // 3, np.resize(TYPES, num))


def test_model_and_other_readers_against_the_majority_of_three():
    data = simulated()
    study = reader_study(data, ["ben", "eva", "ada"], 0.5, draws=200)
    votes = np.stack([data.readers[name] for name in ("ada", "ben", "eva")])
    gold = stats.mode(votes).mode
    np.testing.assert_array_equal(study.gold, gold)
    assert (study.num_studies, study.num_abnormal) == (207, gold.sum())
    assert study.panel == ("ben", "eva", "ada")
    assert list(study.readers) == ["cem", "dia", "fox"]
    called = (data.probabilities > 0.5).astype(int)
    for rater, labels in (
        (study.model, called),
        *((study.readers[name], data.readers[name]) for name in study.readers),
    ):
        assert rater.kappa == kappa_mchugh(gold, labels)
        assert rater.kappa_clustered.value == pytest.approx(cohen_kappa_score(gold, labels), abs=1e-9)
        assert rater.sensitivity == rate(int(labels[gold == 1].sum()), int(gold.sum()))
        assert rater.specificity == rate(int((1 - labels)[gold == 0].sum()), int((1 - gold).sum()))
        assert rater.operating_point == pytest.approx((labels[gold == 0].mean(), labels[gold == 1].mean()))
    assert study.auroc.value == pytest.approx(roc_auc_score(gold, data.probabilities), abs=1e-9)
    assert study.auroc_delong.value == pytest.approx(study.auroc.value, abs=1e-9)


def test_differences_are_paired():
    # A model that answers as a reader does: each draw has the same kappa for both.
    data = simulated()
    twin = reader_data(data.readers, data.readers["fox"] * 0.8 + 0.1, data.patients, data.study_types)
    study = reader_study(twin, NAMES[:3], 0.5)
    assert study.differences["fox"] == Estimate(0.0)
    assert study.differences["dia"].low is not None
    model, dia = study.model.kappa.value, study.readers["dia"].kappa.value
    assert model is not None
    assert dia is not None
    assert study.differences["dia"].value == pytest.approx(model - dia)


def test_the_difference_to_the_mean_is_the_mean_of_the_differences():
    study = reader_study(simulated(), NAMES[:3], 0.5)
    values = [one.value for one in study.differences.values()]
    assert None not in values
    assert study.difference_to_mean.value == pytest.approx(np.mean(np.array(values, dtype=float)))
    widths = [one.high - one.low for one in study.differences.values() if one.high is not None and one.low is not None]
    assert len(widths) == 3
    of_mean = study.difference_to_mean
    assert of_mean.low is not None
    assert of_mean.high is not None
    assert of_mean.high - of_mean.low < np.mean(widths)


def test_a_plainly_worse_model_is_found_out():
    study = reader_study(simulated(model_errs=0.4), NAMES[:3], 0.5)
    for difference in study.differences.values():
        assert difference.high is not None
        assert difference.high < 0


def test_a_study_type_alone():
    data = simulated()
    hands = data.of_type("hand")
    assert len(hands.probabilities) == 30
    rows = data.study_types == "hand"
    study = reader_study(hands, NAMES[3:], 0.5, draws=100)
    np.testing.assert_array_equal(study.gold, reader_study(data, NAMES[3:], 0.5, draws=1).gold[rows])
    assert study.num_studies == 30
    assert study.model.kappa.value == pytest.approx(
        cohen_kappa_score(study.gold, data.probabilities[rows] > 0.5), abs=1e-9
    )


def test_every_panel_once():
    data = simulated()
    panels = all_panels(data, 0.5, draws=100)
    assert list(panels.table["panel"]) == [" + ".join(panel) for panel in itertools.combinations(NAMES, 3)]
    assert panels.num_panels == 20
    for row in panels.table.to_dict(orient="records"):
        members = row["panel"].split(" + ")
        study = reader_study(data, members, 0.5, draws=100)
        others = {name: rater.kappa.value for name, rater in study.readers.items()}
        assert {name: row[name] for name in others} == others
        assert all(np.isnan(row[name]) for name in members)
        assert row[MODEL] == study.model.kappa.value
        assert row["best_reader"] == max(row[name] for name in others)
        assert row["mean_reader"] == pytest.approx(np.mean([row[name] for name in others]))
        assert row["num_abnormal"] == study.num_abnormal
        shown = study.difference_to_mean
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (
            shown.value,
            shown.low,
            shown.high,
        )
    assert panels.model is not None
    assert (panels.model.least, panels.model.greatest) == (panels.table[MODEL].min(), panels.table[MODEL].max())
    assert panels.model.median == np.median(panels.table[MODEL])


@pytest.mark.parametrize(("model_errs", "above", "below"), [(0.0, 20, 0), (0.4, 0, 20)])
def test_panels_that_all_agree_say_so(model_errs: float, above: int, below: int):
    panels = all_panels(simulated(readers_err=0.15, model_errs=model_errs), 0.5, draws=300)
    assert (panels.above_best, panels.above_mean) == (above, above)
    assert (panels.surely_above_mean, panels.surely_below_mean) == (above, below)


def test_the_conclusion_may_depend_on_the_panel():
    panels = all_panels(simulated(seed=3, model_errs=0.07), 0.5, draws=50)
    assert (panels.above_best, panels.above_mean, panels.num_panels) == (11, 20, 20)
    rows = panels.table
    assert (rows[MODEL] > rows[NAMES].max(axis=1)).sum() == 11
    assert (rows[MODEL] > rows[NAMES].mean(axis=1)).sum() == 20


def test_too_few_studies_are_not_estimable():
    data = simulated(num=8)
    study = reader_study(data, NAMES[:3], 0.5)
    assert study.num_abnormal < 5
    assert study.model.kappa == study.model.kappa_clustered == study.auroc == study.auroc_delong == Estimate()
    assert study.differences["fox"] == study.difference_to_mean == Estimate()
    panels = all_panels(data, 0.5)
    assert (len(panels.table), panels.num_panels, panels.above_best, panels.model) == (20, 0, 0, None)
    assert panels.table[MODEL].isna().all()
    assert reader_study(data.of_type("ankle"), NAMES[:3], 0.5).model.operating_point is None


def test_few_patients_have_no_clustered_interval():
    data = simulated(num=60)
    data = reader_data(data.readers, data.probabilities, np.arange(60) % 4, data.study_types)
    study = reader_study(data, NAMES[:3], 0.5)
    assert study.model.kappa.low is not None
    assert study.model.kappa_clustered == Estimate(study.model.kappa.value)
    assert study.auroc == Estimate(study.auroc.value)
    assert study.auroc.value is not None
    assert study.difference_to_mean.value is not None
    assert study.difference_to_mean.low is None


def test_a_panel_drawn_by_chance():
    panels = {draw_panel(NAMES, seed) for seed in range(300)}
    assert panels == set(itertools.combinations(NAMES, 3))
    assert draw_panel(NAMES, 5) == draw_panel(NAMES, 5)


@pytest.mark.parametrize("panel", [["ada", "ben"], ["ada", "ben", "ben"], ["ada", "ben", "zoe"], NAMES[:4]])
def test_refuses_other_panels(panel: list[str]):
    with pytest.raises(ValueError, match="choose 3 different ones of ada, ben, cem, dia, eva, fox"):
        majority(simulated(), panel)


def test_refuses_what_is_no_reader_study():
    four = {name: [0, 1] for name in "abcd"}
    types, patients = ["hand", "hand"], [1, 2]
    assert list(reader_data(four, [0.1, 0.2], patients, types).readers) == list("abcd")
    for readers, named in (
        ({name: [0, 1] for name in "abc"}, "3 readers: 3 are the gold standard"),
        (four | {"d": [0, 2]}, "reader 'd': label 2 at position 1"),
        (four | {"d": [0, 1, 1]}, "reader 'd' has 3 labels for 2 studies"),
        (four | {"model": [0, 1]}, "a reader is called 'model'"),
        (four | {"abnormal": [0, 1]}, "a reader is called 'abnormal'"),
        (four | {"a + b": [0, 1]}, r"a reader is called 'a \+ b'"),
    ):
        with pytest.raises(ValueError, match=named):
            reader_data(readers, [0.1, 0.2], patients, types)
    with pytest.raises(ValueError, match=r"probability 1.2 at position 1"):
        reader_data(four, [0.1, 1.2], patients, types)
