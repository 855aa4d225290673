"""The report of an evaluation: what it holds, as text for people and as CSV and JSON for programs."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from mura_ray import store
from mura_ray.domain import ABNORMAL, NORMAL, PROBABILITY_EDGES
from mura_ray.render.document import Picture
from mura_ray.render.tables import NOT_ESTIMABLE, Table, as_csv, as_text, cell_text
from mura_ray.stats.estimates import DRAWS, MIN_COUNT
from mura_ray.stats.localisation import PointingGame
from mura_ray.stats.metrics import Metrics

COLUMNS = {
    "auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity", "kappa": "kappa",
}  # fmt: skip
MORE_COLUMNS = {
    "auroc_delong": "AUROC (DeLong)", "kappa_clustered": "kappa (by patient)", "ppv": "PPV", "npv": "NPV",
    "brier": "Brier score", "ece": "calibration error",
}  # fmt: skip
NUMBERS = "metrics.json"
"""Of an evaluation, written last."""

_WIDTH = 116  # of the table, and so of the text around it

METHODS = (
    f"95 % intervals: AUROC, kappa by patient, Brier score, calibration error (10 equal bins) and the localisation "
    f"ratio, bootstrap of {DRAWS:,} draws of patients (a perfect AUROC: Newcombe 2006, method 5); AUROC once more by "
    "DeLong (1988); sensitivity, specificity, PPV and NPV, Wilson; kappa, McHugh (2012). DeLong's, Wilson's and "
    "McHugh's take a patient's studies for independent.",
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
        metrics: by study type, and last over all studies (`domain.OVERALL`).
        studies: a row per study: study (its key), study_type, patient_id, label, num_views, probability, abnormal.
        painted: a row per label: label, num_views, and the mean over the views of the overlay's share of painted
            pixels and of its strength over all pixels.
        localisation: None where the data set has no boxes.
        tables: what else was asked for: operating points, readers, findings, localisation, subgroups, worst errors.
        pictures: figures, each with its caption.
    """

    ensemble_id: str
    data: Mapping[str, str]
    threshold: float
    notes: tuple[str, ...]
    metrics: Mapping[str, Metrics]
    studies: pd.DataFrame
    painted: pd.DataFrame
    localisation: PointingGame | None
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    @property
    def metric_tables(self) -> tuple[Table, Table]:
        """The metrics by study type and overall: those of the paper, and more."""
        where = f"{self.data['name']}, split {self.data['split']}, abnormal above {self.threshold:g}"
        return (
            Table("metrics", f"Study-level results: {where}", _metrics_frame(self.metrics, COLUMNS)),
            Table("metrics_more", f"More study-level results: {where}", _metrics_frame(self.metrics, MORE_COLUMNS)),
        )


def evaluation_text(result: EvaluationResult) -> str:
    """The report as a page of text."""
    head = (
        f"{result.data['name']} ({result.data['id']}), split {result.data['split']} ({result.data['split_policy']}), "
        f"by ensemble {result.ensemble_id}; abnormal above {result.threshold:g}"
    )
    game = [] if result.localisation is None else [_localisation_text(result.localisation)]
    notes = [textwrap.fill(f"NOTE: {note}", _WIDTH) for note in result.notes]
    methods = [textwrap.fill(method, _WIDTH) for method in METHODS]
    tables = [as_text(table) for table in result.metric_tables]
    more = [titled_text(table) for table in (*result.tables, painted_table(result.painted))]
    return "\n\n".join([head, *notes, *tables, *more, *game, "\n".join(methods)])


def titled_text(table: Table) -> str:
    """A table for a terminal, with its title above and its note below."""
    note = [textwrap.fill(table.note, _WIDTH)] if table.note else []
    return "\n".join([table.title, as_text(table), *note])


def write_numbers(result: EvaluationResult, out: str) -> None:
    """Writes `metrics.csv`, `metrics.json` and `studies.csv`; what is not estimable is empty, or null."""
    store.write_bytes(store.join(out, "studies.csv"), result.studies.to_csv(index=False).encode())
    everything = Table("metrics", "", _metrics_frame(result.metrics, {name: name for name in COLUMNS | MORE_COLUMNS}))
    store.write_bytes(store.join(out, "metrics.csv"), as_csv(everything))
    content = {
        "ensemble_id": result.ensemble_id,
        "data": dict(result.data),
        "threshold": result.threshold,
        "notes": result.notes,
        "methods": METHODS,
        "metrics": {name: asdict(row) for name, row in result.metrics.items()},
        "probabilities": _probability_counts(result.studies),
        "painted": result.painted.to_dict(orient="records"),
        "localisation": result.localisation and asdict(result.localisation),
    }
    store.write_bytes(store.join(out, NUMBERS), json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def _probability_counts(studies: pd.DataFrame) -> dict[str, list[int]]:
    """By study type, how many studies' probabilities are at most each of `PROBABILITY_EDGES`."""
    return {
        str(name): [int((of["probability"] <= edge).sum()) for edge in PROBABILITY_EDGES]
        for name, of in studies.groupby("study_type")
    }


def _metrics_frame(metrics: Mapping[str, Metrics], columns: Mapping[str, str]) -> pd.DataFrame:
    rows = [
        {"study_type": name, "num_studies": row.num_studies, "num_abnormal": row.num_abnormal}
        | {title: getattr(row, field) for field, title in columns.items()}
        for name, row in metrics.items()
    ]
    return pd.DataFrame(rows)


def painted_table(painted: pd.DataFrame) -> Table:
    """How much the overlays paint, by label."""
    frame = painted.assign(label=painted["label"].map({NORMAL: "normal", ABNORMAL: "abnormal"}))
    title = "Overlays: share of a view's pixels that are painted, and strength over all of them (1: the strongest)"
    return Table("painted", title, frame)


def _localisation_text(game: PointingGame) -> str:
    lines = [
        f"Localisation, {game.num_views} abnormal views with boxes of {game.num_patients} patients. The map's maximum "
        "lies in a box, grown by half a map cell, of",
        f"  its own view           {cell_text(game.rate)}",
        f"  other views of a type  {cell_text(game.baseline)}",
        f"  ratio                  {cell_text(game.ratio)}",
    ]
    if game.left_out:
        lines.append(f"  left out, because they have a single such view: {', '.join(game.left_out)}")
    return "\n".join(lines)
