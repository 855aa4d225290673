"""`python -m mura_ray.evaluate`: how well an ensemble tells abnormal studies, on a split of a converted data set."""

import argparse
from contextlib import closing

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.special import expit

from mura_ray import cli, store
from mura_ray.config import Locations
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader
from mura_ray.data.manifest import Manifest, read_boxes, read_manifest, read_table
from mura_ray.domain import ABNORMAL, STUDY_TYPES
from mura_ray.model.ensemble import DESCRIPTION, MAX_BATCH, Ensemble, EnsembleDescription, newest_ensemble
from mura_ray.render.overlay import painted
from mura_ray.render.report import OVERALL, EvaluationResult, evaluation_text, write_evaluation
from mura_ray.stats.localisation import BoxedView, pointing_game
from mura_ray.stats.metrics import Metrics, study_metrics

EPILOG = """example:
  python -m mura_ray.evaluate --ensemble runs/paper/ensemble --data shards

Prints the numbers and writes metrics.csv, metrics.json and studies.csv (each study's label and probability)."""


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates, reports."""
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.evaluate",
        description="Study-level AUROC, sensitivity, specificity and Cohen's kappa, by study type and overall.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ensemble", help="the ensemble's folder (default: the newest under $MURA_RUNS)")
    parser.add_argument("--data", default=locations.data, help="converted data set (default: $MURA_DATA)")
    parser.add_argument("--split", default="test", help="train, valid or test (default: %(default)s)")
    parser.add_argument("--out", help="where to write (default: beside the ensemble's folder, named by split and ids)")
    return cli.run(lambda: _evaluate(parser.parse_args(argv), locations.runs))


def _evaluate(arguments: argparse.Namespace, runs: str | None) -> None:
    data = cli.location(arguments.data, "data")
    if not arguments.ensemble and not runs:
        raise ValueError("no ensemble: pass --ensemble DIR, or set MURA_RUNS to take the newest there")
    uri = store.absolute(arguments.ensemble or newest_ensemble(store.absolute(str(runs)))).removesuffix(
        f"/{DESCRIPTION}"
    )
    out = arguments.out and store.absolute(arguments.out)
    if out and f"{out}/".startswith(f"{uri}/"):
        raise ValueError(f"--out {out!r} lies in the ensemble's folder, which is never changed: pass another")
    ensemble = Ensemble.load(uri, "cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate_ensemble(ensemble, data, arguments.split)
    out = out or default_out(uri, result)
    write_evaluation(result, out)
    print(evaluation_text(result))
    print(f"\nwritten to {out}")


def default_out(ensemble: str, result: EvaluationResult) -> str:
    """Where an evaluation is written by default: a folder beside the ensemble's, named by split and ids."""
    home, _, _ = ensemble.rpartition("/")
    return store.join(home, f"evaluation-{result.data['split']}-{result.data['id']}-{result.ensemble_id}")


def evaluate_ensemble(ensemble: Ensemble, data: str, split: str = "test") -> EvaluationResult:
    """Predicts every view of a split from its shards, and compares the studies with their labels.

    A view's probability is the mean over the members, a study's the mean over its views (paper, section 3.1).

    Args:
        ensemble: whose answers are judged.
        data: URI of a converted data set.
        split: one of its splits.

    Raises:
        ValueError: no such data set or split, or it was converted to another image size than the ensemble's.
    """
    description, manifest, table = ensemble.description, read_manifest(data), read_table(data, split)
    if manifest.image_size != description.image_size:
        size = description.image_size
        raise ValueError(
            f"the ensemble takes images of {size} px, {data!r} holds {manifest.image_size} px: convert the radiographs "
            f"again with --image-size {size} to another --dest"
        )
    probabilities, maps = _predict(ensemble, data, split, table["sample_id"].to_numpy())
    studies = _studies(table.assign(probability=probabilities), description.threshold)
    boxes = read_boxes(data, split)
    return EvaluationResult(
        ensemble_id=description.id,
        data={"name": manifest.name, "id": manifest.id, "split": split, "split_policy": manifest.split_policy},
        threshold=description.threshold,
        notes=_notes(manifest, split, description),
        metrics=_metrics(studies, description.threshold),
        studies=studies,
        painted=_painted(table["label"], maps),
        localisation=None if boxes is None else pointing_game(_boxed_views(table, boxes, maps)),
    )


def _predict(ensemble: Ensemble, data: str, split: str, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float64 [n], and maps, float32 [n, h, w], in the order of the sample ids, [n]."""
    seen, probabilities, maps = [], [], []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        local_split(data, split) as path,
        closing(SplitLoader(path, batch_size=MAX_BATCH, shuffle=False)) as loader,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task(f"views of {split}", total=len(sample_ids))
        for batch in loader.epoch():
            logits, batch_maps = ensemble.predict_pixels(batch.images)
            seen.append(batch.sample_ids.numpy())
            probabilities.append(expit(logits.astype(np.float64)).mean(axis=0))
            maps.append(batch_maps)
            progress.advance(task, len(batch_maps))
    place = pd.Index(np.concatenate(seen)).get_indexer(pd.Index(sample_ids))
    assert sorted(place) == list(range(sum(map(len, seen)))), "the shards and the table hold different images"
    return np.concatenate(probabilities)[place], np.concatenate(maps)[place]


def _studies(views: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """A row per study, in the order of their first views."""
    keys = views["study_type"] + "/" + views["patient_id"] + "/" + views["study_id"]
    groups = views.assign(study=keys).groupby(["study", "study_type", "patient_id", "label"], sort=False)
    studies = groups["probability"].agg(num_views="size", probability="mean").reset_index()
    assert studies["study"].is_unique, "a study's views have different labels"
    return studies.assign(abnormal=(studies["probability"] > threshold).astype(int))


def _metrics(studies: pd.DataFrame, threshold: float) -> dict[str, Metrics]:
    strata = {name: studies[studies["study_type"] == name] for name in STUDY_TYPES}
    strata = {name: rows for name, rows in strata.items() if len(rows)} | {OVERALL: studies}
    return {
        name: study_metrics(rows["label"], rows["probability"], rows["patient_id"].to_numpy(), threshold)
        for name, rows in strata.items()
    }


def _painted(labels: pd.Series, maps: np.ndarray) -> pd.DataFrame:
    """How much the maps paint over views labelled normal (0) and abnormal (1): means over the views of a label."""
    shares = pd.DataFrame([painted(cam) for cam in maps], columns=["share", "strength"])
    groups = shares.assign(label=labels.to_numpy()).groupby("label")
    return groups.agg(num_views=("share", "size"), share=("share", "mean"), strength=("strength", "mean")).reset_index()


def _boxed_views(table: pd.DataFrame, boxes: pd.DataFrame, maps: np.ndarray) -> list[BoxedView]:
    """The abnormal views that have boxes, these as shares of the view's sides."""
    edges = boxes.merge(table[["sample_id", "width", "height"]], on="sample_id", suffixes=("", "_view"))
    edges = edges.assign(
        left=edges["x"] / edges["width_view"],
        top=edges["y"] / edges["height_view"],
        right=(edges["x"] + edges["width"]) / edges["width_view"],
        bottom=(edges["y"] + edges["height"]) / edges["height_view"],
    )
    by_view = {
        sample: rows[["left", "top", "right", "bottom"]].to_numpy() for sample, rows in edges.groupby("sample_id")
    }
    return [
        BoxedView(study_type, patient_id, cam, by_view[sample_id])
        for sample_id, study_type, patient_id, label, cam in zip(
            table["sample_id"], table["study_type"], table["patient_id"], table["label"], maps, strict=True
        )
        if label == ABNORMAL and sample_id in by_view
    ]


def _notes(manifest: Manifest, split: str, description: EnsembleDescription) -> tuple[str, ...]:
    """Why the numbers are not what new patients would give."""
    notes = []
    if split == "train":
        notes.append("training numbers: members learn from the split 'train'")
    elif split == "valid" or manifest.split_policy == "official":
        notes.append(f"optimistic numbers: epochs and members are chosen on the split {split!r}")
    if description.data_id != manifest.id:
        notes.append(
            f"the ensemble was trained on the data set {description.data_id}, this is {manifest.id}: the numbers "
            "hold for new patients only if no patient is in both"
        )
    return tuple(notes)


if __name__ == "__main__":
    raise SystemExit(main())
