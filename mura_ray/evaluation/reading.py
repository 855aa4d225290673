"""The reader study and the findings of a report: a user's tables beside the ensemble's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit

from mura_ray.domain import OVERALL, STUDY_TYPES
from mura_ray.evaluation.predictions import strata
from mura_ray.render.document import Picture
from mura_ray.render.figures import Curve, OperatingPoint, roc_figure
from mura_ray.render.report import EvaluationResult
from mura_ray.render.tables import NOT_ESTIMABLE, Table, cell_text
from mura_ray.stats.estimates import Estimate
from mura_ray.stats.findings import sensitivity_by_finding
from mura_ray.stats.readers import (
    JOINED,
    MODEL,
    AllPanels,
    Rater,
    ReaderData,
    ReaderStudy,
    Spread,
    all_panels,
    draw_panel,
    reader_data,
    reader_study,
)
from mura_ray.stats.roc import roc_points

OF_PANEL = "-"
_NOISE = 1.05, 0.45
"""Of the simulated readers' evidence: standard deviation of their own noise, and of the noise that they share."""


@dataclass(frozen=True, slots=True)
class ReaderQuestion:
    """What a reader study is asked for.

    Attributes:
        gold: whose majority is the gold standard; None: drawn by `seed`.
        seed: of that draw.
        every_panel: whether every choice of three is tried as well.
    """

    gold: Sequence[str] | None
    seed: int
    every_panel: bool


def add_readers(result: EvaluationResult, answers: pd.DataFrame, question: ReaderQuestion) -> EvaluationResult:
    """The result with the reader study's tables, and the ROC curve of the studies that readers have seen.

    That curve is against the readers' gold standard (paper, section 4), the result's own is against the labels.

    Args:
        result: of an evaluation.
        answers: the readers', from `read_answers`.
        question: who is the gold standard.

    Raises:
        ValueError: too few readers, or the gold standard is not of them.
    """
    rows = result.studies.set_index("study").loc[answers.index]
    data = reader_data(answers, rows["probability"], rows["patient_id"].to_numpy(), rows["study_type"].to_numpy())
    tables, picture = reader_parts(data, question, result.threshold)
    return replace(result, tables=(*result.tables, *tables), pictures=(*result.pictures, picture))


def reader_parts(data: ReaderData, question: ReaderQuestion, threshold: float) -> tuple[list[Table], Picture]:
    """Tables in the form of the paper's Table 2, and the figure in that of its Figure 3."""
    panel = tuple(question.gold or draw_panel(list(data.readers), question.seed))
    chosen = "chosen by name" if question.gold else f"drawn with the seed {question.seed}"
    overall = reader_study(data, panel, threshold)
    named = [name for name in strata(pd.Series(data.study_types)) if name != OVERALL]
    by_type = {name: reader_study(data.of_type(name), panel, threshold) for name in named} | {OVERALL: overall}
    note = (
        f"Gold standard: majority of {', '.join(panel)}, {chosen}; {overall.num_studies} studies, "
        f"{overall.num_abnormal} abnormal. McHugh's and Wilson's intervals take studies as independent."
    )
    tables = [
        Table("readers", "The model and the compared readers", _raters_frame(overall), note),
        Table("reader_differences", "Kappa of the model less the reader's, paired, by patient",
              pd.DataFrame([{"reader": name, "difference": value} for name, value in overall.differences.items()])),
        Table("readers_by_type", "Cohen's kappa by study type", _kappa_frame(by_type), note),
    ]  # fmt: skip
    if question.every_panel:
        tables.append(_panels_table(all_panels(data, threshold), list(data.readers)))
    return tables, _roc_picture(data, overall)


def add_findings(result: EvaluationResult, findings: pd.DataFrame) -> EvaluationResult:
    """The result with sensitivity by finding (paper, section 2.3), the findings from `read_answers`."""
    rows = result.studies.set_index("study").loc[findings.index]
    found = sensitivity_by_finding(findings, rows["label"], rows["abnormal"])
    frame = pd.DataFrame([
        {"finding": name, "abnormal studies": one.num_studies, "called abnormal": one.num_called,
         "sensitivity": one.sensitivity, "labelled normal": one.num_normal}
        for name, one in found.items()
    ])  # fmt: skip
    note = "Studies with the finding that are labelled normal are left out. Wilson's intervals, studies as independent."
    return replace(result, tables=(*result.tables, Table("findings", "Sensitivity by finding", frame, note)))


def simulated_readers(seed: int = 0) -> ReaderData:
    """A reader study of the paper's size: 207 studies of seven types, six readers and a model. Nothing in it is real.

    How many studies each type has is what `stats.paper` finds of the paper's.

    Readers and model see the same disease, each through noise of their own and noise that all share.
    """
    generator = np.random.default_rng(seed)
    counts = (28, 30, 30, 30, 30, 30, 29)
    study_types = np.repeat(np.array(STUDY_TYPES), counts)
    disease = (generator.random(len(study_types)) < 0.45).astype(np.int64)
    own, shared = _NOISE
    seen = 3 * disease - 1.5 + shared * generator.standard_normal(len(disease))
    evidence = seen[None] + own * generator.standard_normal((7, len(disease)))
    readers = {f"reader {place + 1}": (row > 0).astype(np.int64) for place, row in enumerate(evidence[:6])}
    patients = np.array([f"simulated{place:03d}" for place in range(len(disease))])
    return reader_data(readers, expit(1.6 * evidence[6]), patients, study_types)


def _raters_frame(study: ReaderStudy) -> pd.DataFrame:
    return pd.DataFrame([
        {"rater": rater.name, "kappa (McHugh)": rater.kappa, "kappa (by patient)": rater.kappa_clustered,
         "sensitivity": rater.sensitivity, "specificity": rater.specificity}
        for rater in _raters(study)
    ])  # fmt: skip


def _kappa_frame(studies: dict[str, ReaderStudy]) -> pd.DataFrame:
    return pd.DataFrame([
        {"study_type": name, "n": study.num_studies} | {rater.name: rater.kappa for rater in _raters(study)}
        for name, study in studies.items()
    ])  # fmt: skip


def _raters(study: ReaderStudy) -> list[Rater]:
    return [*study.readers.values(), study.model]


def _panels_table(panels: AllPanels, readers: Sequence[str]) -> Table:
    note = (
        f"{OF_PANEL}: of the panel. Of {panels.num_panels} panels the model is above the best compared reader in "
        f"{panels.above_best}, above their mean in {panels.above_mean}; the interval of that difference lies above 0 "
        f"in {panels.surely_above_mean} and below in {panels.surely_below_mean}. Kappa, median [least, greatest]: "
        f"model {_spread(panels.model)}, best reader {_spread(panels.best_reader)}, mean reader "
        f"{_spread(panels.mean_reader)}."
    )
    rows = []
    for row in panels.table.to_dict(orient="records"):
        panel = row["panel"].split(JOINED)
        numbers = (row[f"difference{end}"] for end in ("", "_low", "_high"))
        rows.append(
            {"panel": row["panel"], "abnormal": row["num_abnormal"], MODEL: row[MODEL]}
            | {name: OF_PANEL if name in panel else row[name] for name in readers}
            | {"best reader": row["best_reader"], "mean reader": row["mean_reader"]}
            | {"model less mean reader": Estimate(*(None if pd.isna(one) else one for one in numbers))}
        )
    return Table("panels", "Every choice of three readers as the gold standard: kappa", pd.DataFrame(rows), note)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NOT_ESTIMABLE
    return f"{cell_text(spread.median)} [{cell_text(spread.least)}, {cell_text(spread.greatest)}]"


def _roc_picture(data: ReaderData, study: ReaderStudy) -> Picture:
    points = [
        OperatingPoint(rater.name, *rater.operating_point, is_reader=rater is not study.model)
        for rater in _raters(study)
        if rater.operating_point
    ]
    curves: list[Curve] = []
    if 0 < study.num_abnormal < study.num_studies:
        curve = roc_points(study.gold, data.probabilities)
        curves = [Curve(f"model, AUROC {cell_text(study.auroc)}", curve.fpr, curve.tpr)]
    caption = (
        f"ROC curve of the model against the majority of {', '.join(study.panel)}, with its own and the compared "
        f"readers' operating points; {study.num_studies} studies."
    )
    return Picture("roc_readers", roc_figure(curves, points), caption)
