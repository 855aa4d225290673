"""How often do the 95 % intervals of an evaluation hold the truth, when patients have several studies?

    python -m benchmarks.coverage --json coverage.json

Draws data sets of as many patients and studies as MURA-v1.1's validation set, evaluates each with the project's own
`study_metrics`, and counts how many intervals hold what a very large data set drawn alike gives. A patient's studies
are alike: the correlation is that of two studies' latent disease, and of what their radiographs show beyond it.
Correlation 0 has independent studies. The bootstrap inside takes fewer draws than an evaluation, to save time: the ends
of its intervals are rougher.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from benchmarks.harness import Goals, machine, markdown_table, parser, write_json
from mura_ray.stats.agreement import weighted_kappa
from mura_ray.stats.calibration_error import expected_calibration_error, weighted_brier, weighted_excess
from mura_ray.stats.estimates import Estimate
from mura_ray.stats.metrics import study_metrics
from mura_ray.stats.roc import weighted_auroc

PATIENTS_WITH = {1: 500, 2: 190, 3: 65, 4: 16, 5: 12}
"""Patients by their number of studies: 783 and 1,199 in all, as in MURA-v1.1's validation set. The split is ours."""

PREVALENCE = 0.45
DISTANCE = 1.9  # standard deviations between normal and abnormal evidence: an AUROC of 0.91
OVERCONFIDENCE = 1.3  # of the logits, so that there is a calibration error to be found
THRESHOLD = 0.5
TRUTH_STUDIES = 4_000_000

INTERVALS = {
    "auroc": "AUROC, clustered bootstrap",
    "auroc_delong": "AUROC, DeLong",
    "kappa_clustered": "kappa, clustered bootstrap",
    "kappa": "kappa, McHugh",
    "sensitivity": "sensitivity, Wilson",
    "specificity": "specificity, Wilson",
    "ppv": "PPV, Wilson",
    "npv": "NPV, Wilson",
    "brier": "Brier score, clustered bootstrap",
    "ece": "calibration error, clustered bootstrap",
}
GOAL = ("auroc", "kappa_clustered")
GOAL_RANGE = 0.93, 0.97


@dataclass(frozen=True)
class Scenario:
    """What is drawn.

    Attributes:
        name: of its column.
        correlation: of two studies of a patient, 0 to 1.
        every: takes every n-th patient only; every seventh is about one study type's share.
    """

    name: str
    correlation: float
    every: int = 1

    @property
    def sizes(self) -> np.ndarray:
        """Studies of each patient, int64 [patients]."""
        return np.repeat(list(PATIENTS_WITH), list(PATIENTS_WITH.values()))[:: self.every]


SCENARIOS = (
    Scenario("correlation 0", 0.0),
    Scenario("correlation 0.5", 0.5),
    Scenario("correlation 0.8", 0.8),
    Scenario("a seventh, 0.5", 0.5, every=7),
)


@dataclass(frozen=True)
class Coverage:
    """Of one interval in one scenario, over all data sets that have it.

    Attributes:
        truth: what is to be covered.
        estimable: data sets with an interval.
        covered: share of them whose interval holds the truth.
        below: share of them whose interval lies below it.
        width: mean.
    """

    truth: float
    estimable: int
    covered: float
    below: float
    width: float


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and exits with 1 if a goal is missed."""
    options = parser("coverage", __doc__)
    options.add_argument("--data-sets", type=int, default=1000, help="in each scenario (default: %(default)s)")
    options.add_argument("--draws", type=int, default=400, help="of the bootstrap in each (default: %(default)s)")
    arguments = options.parse_args(argv)
    here, start = machine(["numpy", "scipy", "scikit-learn"]), time.perf_counter()
    found = {each.name: measure(each, arguments.data_sets, arguments.draws) for each in SCENARIOS}
    goals = Goals()
    for name, coverages in found.items():
        for key in GOAL:
            low, high = GOAL_RANGE
            covered = coverages[key].covered
            goals.add(
                f"{INTERVALS[key]}, {name}", f"{covered:.1%}", low <= covered <= high, f"goal {low:.0%} - {high:.0%}"
            )
    print(", ".join(here.values()))
    print(f"{arguments.data_sets:,} data sets, {arguments.draws} draws, {time.perf_counter() - start:.0f} s\n")
    print(_table(found))
    goals.report()
    if arguments.json:
        content = {name: {key: asdict(one) for key, one in each.items()} for name, each in found.items()}
        write_json(arguments.json, {"machine": here, "coverage": content, "goals": goals.found})
    return 0 if goals.are_met else 1


def measure(scenario: Scenario, num_sets: int, draws: int) -> dict[str, Coverage]:
    """Coverage of each of `INTERVALS`."""
    truths = true_values(scenario)
    generator = np.random.default_rng(1)
    patients = np.repeat(np.arange(len(scenario.sizes)), scenario.sizes)
    found: dict[str, list[Estimate]] = {key: [] for key in INTERVALS}
    for number in range(num_sets):
        labels, probabilities = draw(scenario.sizes, scenario.correlation, generator)
        metrics = study_metrics(labels, probabilities, patients, THRESHOLD, draws=draws, seed=number)
        for key in INTERVALS:
            found[key].append(getattr(metrics, key))
    return {key: coverage(truths[key], estimates) for key, estimates in found.items()}


def coverage(truth: float, estimates: Sequence[Estimate]) -> Coverage:
    """How the estimates that have an interval cover the truth."""
    bounds = [(one.low, one.high) for one in estimates if one.low is not None and one.high is not None]
    low, high = np.array(bounds).T
    covered = (low <= truth) & (truth <= high)
    return Coverage(truth, len(bounds), float(covered.mean()), float((high < truth).mean()), float((high - low).mean()))


def draw(sizes: np.ndarray, correlation: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A data set: labels, int64 [n], and probabilities, float64 [n], patient by patient.

    Args:
        sizes: studies of each patient, [patients].
        correlation: of two studies of a patient.
        generator: of the draw.
    """
    disease, beyond = (
        math.sqrt(correlation) * np.repeat(generator.normal(size=len(sizes)), sizes)
        + math.sqrt(1 - correlation) * generator.normal(size=sizes.sum())
        for _ in range(2)
    )
    labels = (disease > norm.ppf(1 - PREVALENCE)).astype(np.int64)
    evidence = DISTANCE * (DISTANCE * labels + beyond - DISTANCE / 2) + logit(PREVALENCE)
    return labels, expit(OVERCONFIDENCE * evidence)


def true_values(scenario: Scenario) -> dict[str, float]:
    """Of each of `INTERVALS`, from a data set of some `TRUTH_STUDIES` studies."""
    sizes = np.tile(scenario.sizes, TRUTH_STUDIES // int(scenario.sizes.sum()))
    labels, probabilities = draw(sizes, scenario.correlation, np.random.default_rng(0))
    called = (probabilities > THRESHOLD).astype(np.int64)
    once = np.ones((1, len(labels)))
    auroc = float(weighted_auroc(labels, probabilities, once)[0])
    kappa = float(weighted_kappa(labels, called, once)[0])
    return {
        "auroc": auroc,
        "auroc_delong": auroc,
        "kappa_clustered": kappa,
        "kappa": kappa,
        "sensitivity": float(called[labels == 1].mean()),
        "specificity": float(1 - called[labels == 0].mean()),
        "ppv": float(labels[called == 1].mean()),
        "npv": float(1 - labels[called == 0].mean()),
        "brier": float(weighted_brier(labels, probabilities, once)[0]),
        "ece": float(expected_calibration_error(weighted_excess(labels, probabilities, once))[0]),
    }


def _table(found: dict[str, dict[str, Coverage]]) -> str:
    head = ("95 % interval", "truth", *(f"{name}: %, width" for name in found))
    rows = []
    for key, name in INTERVALS.items():
        each = [coverages[key] for coverages in found.values()]
        cells = (f"{one.covered:.1%}, {one.width:.3f}" for one in each)
        rows.append((name, f"{each[0].truth:.4f}", *cells))
    return markdown_table(head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
