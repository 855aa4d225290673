"""The report of an evaluation: what it holds, as text for people and as CSV and JSON for programs."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pandas as pd

from mura_ray import store
from mura_ray.domain import ABNORMAL, NORMAL
from mura_ray.stats.estimates import DRAWS, MIN_COUNT, Estimate
from mura_ray.stats.localisation import PointingGame
from mura_ray.stats.metrics import Metrics

OVERALL = "overall"
ESTIMATES = ("auroc", "sensitivity", "specificity", "kappa")
NOT_ESTIMABLE = "n.e."
_WIDTH = 116  # of the table, and so of the text around it

METHODS = (
    f"95 % intervals: AUROC and the localisation ratio, bootstrap of {DRAWS:,} draws of patients (a perfect AUROC: "
    "Newcombe 2006, method 5); sensitivity and specificity, Wilson; kappa, McHugh (2012). Wilson's and McHugh's take a "
    "patient's studies for independent.",
    f"Not estimable ({NOT_ESTIMABLE}): what has fewer than {MIN_COUNT} studies of a label that it needs, or views with "
    f"boxes. No interval: an AUROC with fewer than {MIN_COUNT} patients of a label, a ratio with fewer in all, "
    "a perfect kappa, a ratio whose denominator is 0 in any draw.",
)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """An ensemble on one split of a data set.

    Attributes:
        ensemble_id: which ensemble.
        data: the data set's `name` and `id`, the `split`, and its `split_policy`.
        threshold: a study is called abnormal iff its probability is greater.
        notes: why the numbers are not those of new patients, if they are not.
        metrics: by study type, and last over all studies (`OVERALL`).
        studies: a row per study: study (its key), study_type, patient_id, label, num_views, probability, abnormal.
        painted: a row per label: label, num_views, and the mean over the views of the overlay's share of painted
            pixels and of its strength over all pixels.
        localisation: None where the data set has no boxes.
    """

    ensemble_id: str
    data: Mapping[str, str]
    threshold: float
    notes: tuple[str, ...]
    metrics: Mapping[str, Metrics]
    studies: pd.DataFrame
    painted: pd.DataFrame
    localisation: PointingGame | None


def evaluation_text(result: EvaluationResult) -> str:
    """The report as a page of text."""
    head = (
        f"{result.data['name']} ({result.data['id']}), split {result.data['split']} ({result.data['split_policy']}), "
        f"by ensemble {result.ensemble_id}; abnormal above {result.threshold:g}"
    )
    rows = [
        [name, row.num_studies, row.num_abnormal, *(_shown(getattr(row, estimate)) for estimate in ESTIMATES)]
        for name, row in result.metrics.items()
    ]
    columns = ["study type", "studies", "abnormal", "AUROC", "sensitivity", "specificity", "kappa"]
    table = pd.DataFrame(rows, columns=columns).to_string(index=False, line_width=10_000)
    game = [] if result.localisation is None else [_localisation_text(result.localisation)]
    game = [_painted_text(result.painted), *game]
    notes = [textwrap.fill(f"NOTE: {note}", _WIDTH) for note in result.notes]
    methods = [textwrap.fill(method, _WIDTH) for method in METHODS]
    return "\n\n".join([head, *notes, table, *game, "\n".join(methods)])


def write_evaluation(result: EvaluationResult, out: str) -> None:
    """Writes `metrics.csv`, `metrics.json` and `studies.csv`; what is not estimable is empty, or null."""
    store.write_bytes(store.join(out, "studies.csv"), result.studies.to_csv(index=False).encode())
    store.write_bytes(store.join(out, "metrics.csv"), _metrics_frame(result.metrics).to_csv(index=False).encode())
    content = {
        "ensemble_id": result.ensemble_id,
        "data": dict(result.data),
        "threshold": result.threshold,
        "notes": result.notes,
        "methods": METHODS,
        "metrics": {name: asdict(row) for name, row in result.metrics.items()},
        "painted": result.painted.to_dict(orient="records"),
        "localisation": result.localisation and asdict(result.localisation),
    }
    store.write_bytes(store.join(out, "metrics.json"), json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def _metrics_frame(metrics: Mapping[str, Metrics]) -> pd.DataFrame:
    rows = []
    for name, row in metrics.items():
        numbers = {"study_type": name, "num_studies": row.num_studies, "num_abnormal": row.num_abnormal}
        for key in ESTIMATES:
            estimate: Estimate = getattr(row, key)
            numbers |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
        rows.append(numbers)
    return pd.DataFrame(rows)


def _painted_text(painted: pd.DataFrame) -> str:
    lines = ["Overlays: share of a view's pixels that are painted, and strength over all of them (1: the strongest)"]
    for label, word in ((NORMAL, "normal"), (ABNORMAL, "abnormal")):
        for row in painted[painted["label"] == label].to_dict(orient="records"):
            lines.append(f"  labelled {word:<9} {row['share']:.3f}, {row['strength']:.3f}  ({row['num_views']} views)")
    return "\n".join(lines)


def _localisation_text(game: PointingGame) -> str:
    lines = [
        f"Localisation, {game.num_views} abnormal views with boxes of {game.num_patients} patients. The map's maximum "
        "lies in a box, grown by half a map cell, of",
        f"  its own view           {_number(game.rate)}",
        f"  other views of a type  {_number(game.baseline)}",
        f"  ratio                  {_shown(game.ratio)}",
    ]
    if game.left_out:
        lines.append(f"  left out, because they have a single such view: {', '.join(game.left_out)}")
    return "\n".join(lines)


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return NOT_ESTIMABLE
    interval = NOT_ESTIMABLE if estimate.low is None else f"{_number(estimate.low)}, {_number(estimate.high)}"
    return f"{_number(estimate.value)} [{interval}]"


def _number(value: float | None) -> str:
    return NOT_ESTIMABLE if value is None else f"{value:.3f}"
