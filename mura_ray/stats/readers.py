"""A model beside readers (radiologists), judged by the majority of three of them (paper, section 4)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from mura_ray.stats.agreement import binary_labels, cohen_kappa, kappa_mchugh, weighted_kappa
from mura_ray.stats.estimates import (
    DRAWS,
    Estimate,
    Statistic,
    bootstrap,
    has_both_labels,
    has_patients,
    percentile_interval,
    rate,
)
from mura_ray.stats.metrics import checked
from mura_ray.stats.roc import auroc_delong, auroc_interval, weighted_auroc

PANEL = 3
"""Readers whose majority is the gold standard; the others are compared with the model."""

MODEL = "model"
_AUROC = "auroc"
_DIFFERENCE = ("difference", "difference_low", "difference_high")
_RESERVED = {
    MODEL, _AUROC, "panel", "num_abnormal", "best_reader", "mean_reader", *_DIFFERENCE, "study_type", "n", "abnormal",
    "best reader", "mean reader", "model less mean reader",
}  # fmt: skip
"""Columns of the tables that have one for each reader."""

JOINED = " + "
"""Between the names of a panel."""


@dataclass(frozen=True, slots=True, eq=False)
class ReaderData:
    """What readers and a model said of the same studies; made by `reader_data`.

    Attributes:
        readers: each reader's labels by name, int64 [n].
        probabilities: the model's, float64 [n].
        patients: whose study it is, [n].
        study_types: [n].
    """

    readers: Mapping[str, np.ndarray]
    probabilities: np.ndarray
    patients: np.ndarray
    study_types: np.ndarray

    def of_type(self, study_type: str) -> "ReaderData":
        """The studies of one type."""
        rows = self.study_types == study_type
        readers = {name: labels[rows] for name, labels in self.readers.items()}
        return ReaderData(readers, self.probabilities[rows], self.patients[rows], self.study_types[rows])


@dataclass(frozen=True, slots=True)
class Rater:
    """A reader, or the model, against the gold standard.

    McHugh's interval (`kappa`) and Wilson's (of the shares) take the studies as independent; `kappa_clustered` has that
    of a bootstrap that draws whole patients.
    """

    name: str
    kappa: Estimate
    kappa_clustered: Estimate
    sensitivity: Estimate
    specificity: Estimate

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """1 - specificity and sensitivity, for the figure of the ROC curve (paper, figure 3)."""
        if self.sensitivity.value is None or self.specificity.value is None:
            return None
        return 1 - self.specificity.value, self.sensitivity.value


@dataclass(frozen=True, slots=True, eq=False)
class ReaderStudy:
    """A model and readers against the majority of three other readers, on one set of studies.

    Attributes:
        panel: names of the readers who are the gold standard.
        gold: their majority, int64 [n]; with the model's probabilities it gives the ROC curve.
        num_studies: of the set.
        num_abnormal: of them, by the gold standard.
        model: the model's results.
        readers: those of the compared readers, by name.
        differences: kappa of the model less that of the reader, by name, with the interval of a paired bootstrap that
            draws whole patients.
        difference_to_mean: kappa of the model less the mean of the readers', likewise.
        auroc: the model's, with the clustered bootstrap's interval.
        auroc_delong: the same with DeLong's, which takes the studies as independent.
    """

    panel: tuple[str, ...]
    gold: np.ndarray
    num_studies: int
    num_abnormal: int
    model: Rater
    readers: Mapping[str, Rater]
    differences: Mapping[str, Estimate]
    difference_to_mean: Estimate
    auroc: Estimate
    auroc_delong: Estimate


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a kappa over panels. No interval: the panels share studies and readers."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True, eq=False)
class AllPanels:
    """How much a reader study depends on who is the gold standard.

    Attributes:
        table: a row per choice of three readers: panel (names, joined by " + "), num_abnormal, kappa of the model
            (`MODEL`) and of each reader (NaN in the reader's own panel, and where it is not estimable), best_reader and
            mean_reader (of the compared readers' kappas), and difference, difference_low and difference_high
            (`ReaderStudy.difference_to_mean`).
        num_panels: that have kappas; the following are over these.
        above_best: panels in which the model's kappa is greater than that of each compared reader.
        above_mean: panels in which it is greater than their mean.
        surely_above_mean: panels in which the difference's interval lies above 0.
        surely_below_mean: panels in which it lies below 0.
        model: the model's kappa; None if no panel has one.
        best_reader: the best compared reader's.
        mean_reader: the compared readers' mean.
    """

    table: pd.DataFrame
    num_panels: int
    above_best: int
    above_mean: int
    surely_above_mean: int
    surely_below_mean: int
    model: Spread | None
    best_reader: Spread | None
    mean_reader: Spread | None


def reader_data(
    readers: pd.DataFrame | Mapping[str, ArrayLike],
    probabilities: ArrayLike,
    patients: ArrayLike,
    study_types: ArrayLike,
) -> ReaderData:
    """Checks what readers and a model said of the same studies.

    Args:
        readers: each reader's labels, 0 normal, 1 abnormal, [n], by name.
        probabilities: the model's, of abnormality, [n].
        patients: whose study it is, [n].
        study_types: [n].

    Raises:
        ValueError: there are fewer than four readers, or one has a name that is not free; lengths differ; a label is
            neither 0 nor 1, or a probability is not within 0 and 1.
    """
    labels = {str(name): _labels(str(name), column) for name, column in readers.items()}
    if len(labels) <= PANEL:
        raise ValueError(f"{len(labels)} readers: {PANEL} are the gold standard, and at least one more is compared")
    if taken := _RESERVED & set(labels):
        raise ValueError(f"a reader is called {min(taken)!r}, which names something else: give the reader another name")
    if joined := [name for name in labels if JOINED in name]:
        raise ValueError(f"a reader is called {joined[0]!r}: a name with {JOINED!r} would be taken for a panel's")
    study_types = np.asarray(study_types)
    for name, column in labels.items():
        if not len(column) == len(study_types) == len(np.asarray(probabilities)):
            raise ValueError(f"reader {name!r} has {len(column)} labels for {len(study_types)} studies: one for each")
    _, probabilities, patients = checked(next(iter(labels.values())), probabilities, patients)
    return ReaderData(labels, probabilities, patients, study_types)


def draw_panel(names: Sequence[str], seed: int) -> tuple[str, ...]:
    """Three readers by chance, in the order given."""
    chosen = np.random.default_rng(seed).choice(len(names), PANEL, replace=False)
    return tuple(names[int(place)] for place in sorted(chosen))


def reader_study(
    data: ReaderData, panel: Sequence[str], threshold: float, *, draws: int = DRAWS, seed: int = 0
) -> ReaderStudy:
    """Compares the model, and the readers who are not of the panel, with the panel's majority.

    Args:
        data: of all studies, or of one type (`ReaderData.of_type`).
        panel: names of three readers.
        threshold: the model calls a study abnormal iff its probability is greater.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the panel is not three different readers of the data.
    """
    gold = majority(data, panel)
    called = {MODEL: (data.probabilities > threshold).astype(np.int64)}
    called |= {name: labels for name, labels in data.readers.items() if name not in panel}
    found = _draws(gold, called, data, draws, seed)
    raters = {name: _rater(name, gold, labels, found.get(name)) for name, labels in called.items()}
    model = raters.pop(MODEL)
    return ReaderStudy(
        panel=tuple(panel),
        gold=gold,
        num_studies=len(gold),
        num_abnormal=int(gold.sum()),
        model=model,
        readers=raters,
        differences={name: _difference(model, [rater], found) for name, rater in raters.items()},
        difference_to_mean=_difference(model, list(raters.values()), found),
        auroc=_auroc(gold, data, found),
        auroc_delong=auroc_delong(gold, data.probabilities),
    )


def all_panels(data: ReaderData, threshold: float, *, draws: int = DRAWS, seed: int = 0) -> AllPanels:
    """The reader study with every choice of three readers as the gold standard; arguments as in `reader_study`."""
    panels = itertools.combinations(data.readers, PANEL)
    studies = [reader_study(data, panel, threshold, draws=draws, seed=seed) for panel in panels]
    table = pd.DataFrame([_row(study, list(data.readers)) for study in studies])
    table = table.astype(dict.fromkeys(table.columns.drop(["panel", "num_abnormal"]), float))
    rows = table.dropna(subset=[MODEL])
    return AllPanels(
        table=table,
        num_panels=len(rows),
        above_best=int((rows[MODEL] > rows["best_reader"]).sum()),
        above_mean=int((rows[MODEL] > rows["mean_reader"]).sum()),
        surely_above_mean=int((rows["difference_low"] > 0).sum()),
        surely_below_mean=int((rows["difference_high"] < 0).sum()),
        model=_spread(rows[MODEL]),
        best_reader=_spread(rows["best_reader"]),
        mean_reader=_spread(rows["mean_reader"]),
    )


def majority(data: ReaderData, panel: Sequence[str]) -> np.ndarray:
    """What most of a panel say of each study, int64 [n].

    Raises:
        ValueError: the panel is not three different readers of the data.
    """
    if len(panel) != PANEL or len(set(panel)) != PANEL or not set(panel) <= set(data.readers):
        raise ValueError(f"panel {', '.join(panel)}: choose {PANEL} different ones of {', '.join(data.readers)}")
    votes = np.stack([data.readers[name] for name in panel])
    return (votes.sum(axis=0) > PANEL / 2).astype(np.int64)


def _draws(
    gold: np.ndarray, called: Mapping[str, np.ndarray], data: ReaderData, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Kappa of each rater, by name, and the model's `_AUROC`, in the same draws; empty if there is none to be drawn."""
    if not has_both_labels(gold) or not has_patients(gold, data.patients):
        return {}
    statistics: dict[str, Statistic] = {name: partial(weighted_kappa, gold, labels) for name, labels in called.items()}
    statistics[_AUROC] = partial(weighted_auroc, gold, data.probabilities)
    return bootstrap(statistics, data.patients, draws=draws, seed=seed)


def _rater(name: str, gold: np.ndarray, labels: np.ndarray, draws: np.ndarray | None) -> Rater:
    kappa = kappa_mchugh(gold, labels)
    clustered = Estimate(kappa.value) if draws is None else percentile_interval(cohen_kappa(gold, labels), draws)
    abnormal, normal = gold == 1, gold == 0
    return Rater(
        name=name,
        kappa=kappa,
        kappa_clustered=clustered,
        sensitivity=rate(int(labels[abnormal].sum()), int(abnormal.sum())),
        specificity=rate(int((1 - labels)[normal].sum()), int(normal.sum())),
    )


def _difference(model: Rater, readers: Sequence[Rater], found: Mapping[str, np.ndarray]) -> Estimate:
    """Kappa of the model less the mean of the readers'."""
    kappas = [reader.kappa.value for reader in readers if reader.kappa.value is not None]
    if model.kappa.value is None or len(kappas) < len(readers):
        return Estimate()
    value = model.kappa.value - sum(kappas) / len(kappas)
    if not found:
        return Estimate(value)
    return percentile_interval(value, found[model.name] - np.mean([found[reader.name] for reader in readers], axis=0))


def _auroc(gold: np.ndarray, data: ReaderData, found: Mapping[str, np.ndarray]) -> Estimate:
    if not has_both_labels(gold):
        return Estimate()
    if not found:
        return Estimate(float(roc_auc_score(gold, data.probabilities)))
    return auroc_interval(gold, data.probabilities, data.patients, found[_AUROC])


def _row(study: ReaderStudy, names: Sequence[str]) -> dict[str, object]:
    """Of `AllPanels.table`."""
    kappas = {name: rater.kappa.value for name, rater in study.readers.items()}
    compared = [kappa for kappa in kappas.values() if kappa is not None]
    difference = study.difference_to_mean
    return {
        "panel": JOINED.join(study.panel),
        "num_abnormal": study.num_abnormal,
        MODEL: study.model.kappa.value,
        **{name: kappas.get(name) for name in names},
        "best_reader": max(compared, default=None),
        "mean_reader": sum(compared) / len(compared) if compared else None,
        **dict(zip(_DIFFERENCE, (difference.value, difference.low, difference.high), strict=True)),
    }


def _spread(kappas: pd.Series) -> Spread | None:
    return Spread(float(kappas.median()), float(kappas.min()), float(kappas.max())) if len(kappas) else None


def _labels(name: str, column: ArrayLike) -> np.ndarray:
    try:
        return binary_labels(column)
    except ValueError as error:
        raise ValueError(f"reader {name!r}: {error}") from error
