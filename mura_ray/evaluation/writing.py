"""The files of an evaluation: numbers, tables, figures, the report as HTML and PDF, and the model card."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import torch

from mura_ray import store
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.document import Picture, document_html, document_pdf
from mura_ray.render.evaluation_page import PART_NAMES, Provenance, model_card, report_sections
from mura_ray.render.figures import as_png, as_svg
from mura_ray.render.report import NUMBERS, EvaluationResult, painted_table, write_numbers
from mura_ray.render.tables import Table, as_csv, as_latex
from mura_ray.revision import git_revision

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "openvino")


def provenance(description: EnsembleDescription, command: str, choices: Mapping[str, str]) -> Provenance:
    """How the evaluation that runs now came about."""
    return Provenance(
        description=description,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_revision=git_revision(),
        environment={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
            "cores": str(len(os.sched_getaffinity(0))),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
        choices=choices,
    )


def write_evaluation(result: EvaluationResult, how: Provenance, out: str) -> None:
    """Writes everything into a folder, instead of an evaluation that is there; `metrics.json` comes last.

    Files: `report.html` and `report.pdf`, `model-card.md`, `tables/NAME.csv` and `.tex`, `figures/NAME.svg` and `.png`,
    `studies.csv`, `metrics.csv`, `metrics.json`.
    """
    _remove(out)
    tables = *result.metric_tables, *result.tables, painted_table(result.painted)
    write_tables(tables, store.join(out, "tables"), result.notes)
    write_figures(result.pictures, store.join(out, "figures"))
    title = f"{result.data['name']}, split {result.data['split']}: ensemble {result.ensemble_id}"
    page = document_html(title, f"mura_ray {how.git_revision}, {how.created}", report_sections(result, how))
    store.write_bytes(store.join(out, "report.html"), page.encode())
    store.write_bytes(store.join(out, "report.pdf"), document_pdf(page))
    store.write_bytes(store.join(out, "model-card.md"), model_card(result, how).encode())
    write_numbers(result, out)


def _remove(out: str) -> None:
    """Removes an evaluation that is there: its numbers first, then what this one may not write again."""
    files = [store.join("tables", f"{name}.{kind}") for name in PART_NAMES for kind in ("csv", "tex")]
    files += [store.join("figures", f"{name}.{kind}") for name in PART_NAMES for kind in ("svg", "png")]
    store.remove_files([store.join(out, NUMBERS), *(store.join(out, file) for file in files)])


def write_tables(tables: Sequence[Table], folder: str, notes: Sequence[str]) -> None:
    """Writes `NAME.csv` and `NAME.tex` of each, and `notes.txt`: what a reader must know of all, and of each."""
    about = [f"{table.name}: {table.title}. {table.note}".strip() for table in tables]
    store.write_bytes(store.join(folder, "notes.txt"), "\n\n".join([*notes, *about, ""]).encode())
    for table in tables:
        store.write_bytes(store.join(folder, f"{table.name}.csv"), as_csv(table))
        store.write_bytes(store.join(folder, f"{table.name}.tex"), as_latex(table))


def write_figures(pictures: Sequence[Picture], folder: str) -> None:
    """Writes `NAME.svg` and `NAME.png` of each."""
    for picture in pictures:
        store.write_bytes(store.join(folder, f"{picture.name}.svg"), as_svg(picture.figure))
        store.write_bytes(store.join(folder, f"{picture.name}.png"), as_png(picture.figure))
