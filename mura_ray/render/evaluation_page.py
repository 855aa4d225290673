"""The report of an evaluation as a document, and the ensemble's model card: what a group attaches to its paper."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mura_ray.domain import NOTICE, OVERALL
from mura_ray.model.card import INTENDED_USE, LIMITS, training_settings
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.document import Code, Part, Section, Text
from mura_ray.render.report import METHODS, EvaluationResult, painted_table
from mura_ray.render.tables import Table, cell_text, shown

_CHAPTERS = {
    "Results": ("metrics", "metrics_more", "roc", "auroc_by_type", "operating_points"),
    "Readers": ("readers", "roc_readers", "reader_differences", "readers_by_type", "panels"),
    "Comparison": ("comparison", "comparison_calibrated"),
    "Calibration": ("reliability", "calibrated", "calibration"),
    "Localisation": ("localisation", "painted", "localisation_members"),
    "Radiographs and their maps": ("gallery",),
    "Worst errors": ("worst_errors",),
    "Findings and subgroups": ("findings", "subgroups"),
    "Ablations": ("ablation",),
}
"""Which tables and pictures each chapter has, by name; one without any is left out."""

PART_NAMES = tuple(itertools.chain.from_iterable(_CHAPTERS.values()))


@dataclass(frozen=True, slots=True)
class Provenance:
    """How an evaluation came about.

    Attributes:
        description: of the ensemble.
        command: what was typed.
        created: when, UTC, ISO 8601.
        git_revision: of the program.
        environment: versions and machine, by name.
        choices: which split decided what: epochs, members, calibration, operating points.
    """

    description: EnsembleDescription
    command: str
    created: str
    git_revision: str
    environment: Mapping[str, str]
    choices: Mapping[str, str]


def report_sections(result: EvaluationResult, provenance: Provenance) -> list[Section]:
    """All chapters, from the summary to the checklist."""
    parts: dict[str, Part] = {table.name: table for table in (*result.metric_tables, *result.tables)}
    parts |= {picture.name: picture for picture in result.pictures}
    parts["painted"] = painted_table(result.painted)
    chapters = []
    for title, names in _CHAPTERS.items():
        present = [parts.pop(name) for name in names if name in parts]
        if present:
            chapters.append(Section(title, [*present, *(map(Text, METHODS) if title == "Results" else ())]))
    assert not parts, f"no chapter has {', '.join(parts)}"
    return [
        Section("Summary", _summary(result)),
        *chapters,
        Section("Data and recipe", _recipe(result, provenance)),
        Section("Reporting checklist", [_checklist(result, provenance)]),
        Section("Environment and command", [_pairs("environment", "Environment", provenance.environment),
                                            Code(provenance.command)]),
    ]  # fmt: skip


def model_card(result: EvaluationResult, provenance: Provenance) -> str:
    """The model card in Markdown: intended use, data, recipe, results, limits."""
    overall = shown(result.metric_tables[0].frame).to_dict(orient="records")
    head = "| " + " | ".join(result.metric_tables[0].frame.columns) + " |"
    rule = "|" + "---|" * len(result.metric_tables[0].frame.columns)
    rows = ["| " + " | ".join(str(cell) for cell in row.values()) + " |" for row in overall]
    description = provenance.description
    lines = [
        f"# Model card: ensemble {description.id}", "", f"> {NOTICE}", "",
        "## Model", "",
        f"{len(description.members)} DenseNet-169 of {description.image_size} x {description.image_size} px "
        f"(Rajpurkar et al., MURA, 2018); a study is called abnormal above {description.threshold:g}, the mean "
        f"over its views and the members. Made at revision {description.git_revision}, {description.created}.", "",
        "## Intended use", "", *(f"- {use}" for use in INTENDED_USE), "",
        "## Training data", "",
        f"Data set {description.data_id} (manifest sha256 {description.data_manifest_sha256}).", "",
        "## Recipe", "", *(f"- {name}: {value}" for name, value in _settings(description).items()), "",
        "## Choices", "", *(f"- {name}: {where}" for name, where in provenance.choices.items()), "",
        f"## Results on {result.data['name']} ({result.data['id']}), split {result.data['split']}", "",
        *(f"NOTE: {note}\n" for note in result.notes), head, rule, *rows, "", *METHODS, "",
        "## Limits", "", *(f"- {limit}" for limit in LIMITS),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _settings(description: EnsembleDescription) -> dict[str, str]:
    """Training settings by name: the value that all members share, else each member's."""
    shared, each = training_settings(description)
    differing = {name: ", ".join(str(own[name]) for own in each) for name in each[0]}
    return {name: str(value) for name, value in shared.items()} | differing


def _summary(result: EvaluationResult) -> list[Part]:
    overall = result.metrics[OVERALL]
    return [
        Text(NOTICE, "notice"),
        *(Text(f"Note: {note}", "notice") for note in result.notes),
        Text(
            f"Ensemble {result.ensemble_id} on {result.data['name']} ({result.data['id']}), split "
            f"{result.data['split']}: {overall.num_studies:,} studies, {overall.num_abnormal:,} of them abnormal. "
            f"AUROC {cell_text(overall.auroc)}, Cohen's kappa {cell_text(overall.kappa_clustered)}, sensitivity "
            f"{cell_text(overall.sensitivity)} and specificity {cell_text(overall.specificity)} at "
            f"{result.threshold:g}; brackets hold 95 % intervals."
        ),
    ]


def _recipe(result: EvaluationResult, provenance: Provenance) -> list[Part]:
    members = pd.DataFrame(
        [{"trial": member.trial, "epoch": member.epoch, "validation loss": member.val_loss}
         for member in provenance.description.members]
    )  # fmt: skip
    return [
        _pairs("data", "Data", result.data),
        _pairs("choices", "Which split decided what", provenance.choices),
        Table("members", "Members", members),
        _pairs("settings", "Training settings", _settings(provenance.description)),
    ]


def _pairs(name: str, title: str, values: Mapping[str, str]) -> Table:
    return Table(name, title, pd.DataFrame({"": list(values), "value": [str(value) for value in values.values()]}))


_TO_FILL = "to be filled by the authors"


def _checklist(result: EvaluationResult, provenance: Provenance) -> Table:
    """What TRIPOD+AI (Collins et al. 2024) and CLAIM 2024 (Tejani et al.) ask for, as far as a program can say it."""
    data, description = result.data, provenance.description
    size, num_studies = description.image_size, result.metrics[OVERALL].num_studies
    items: Sequence[tuple[str, str]] = (
        ("Aim: detection, diagnosis or triage; intended place in care", _TO_FILL),
        ("Source of data, dates, setting, eligibility of participants", _TO_FILL),
        ("Data set and its version", f"{data['name']}, id {data['id']}"),
        ("How data were divided", f"splits by policy {data['split_policy']!r}; reported: {data['split']}"),
        ("Patients or images in several splits", "looked for, as far as the notes do not say otherwise"),
        ("Reference standard, who labelled and with what information", _TO_FILL),
        ("Preprocessing", f"one channel, 8 bit, {size} x {size} px, sides scaled apart"),
        ("Excluded or damaged images", data.get("quarantined", _TO_FILL)),
        ("Sample size and how it was arrived at", f"{num_studies:,} studies; the reason: {_TO_FILL}"),
        ("Model, its initial weights, training and hyperparameters", "chapter Data and recipe"),
        ("Choice of the final model", f"{len(description.members)} lowest validation losses of a search"),
        ("Measures of discrimination, with uncertainty", "AUROC, sensitivity, specificity, kappa; chapter Results"),
        ("Calibration", "chapter Calibration"),
        ("Thresholds and where they were chosen", "chapter Data and recipe, Which split decided what"),
        ("Results by subgroup, fairness", f"by study type and number of views; age, sex, origin: {_TO_FILL}"),
        ("Failure analysis", "chapters Worst errors and Radiographs and their maps"),
        ("External validation", f"whether the data are from elsewhere: {_TO_FILL}"),
        ("Code, weights and environment", f"revision {provenance.git_revision}, ensemble {description.id}"),
        ("Ethics, registration, protocol, funding, interests", _TO_FILL),
    )  # fmt: skip
    return Table("checklist", "TRIPOD+AI and CLAIM", pd.DataFrame(items, columns=["item", "here"]))
