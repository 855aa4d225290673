"""Views worth looking at: the surest right and wrong answers of each kind (paper, Figure 4), with their maps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mura_ray.domain import ABNORMAL, NORMAL
from mura_ray.evaluation.predictions import Predictions, read_pixels
from mura_ray.render.figures import Example

KINDS = (
    ("true positives", ABNORMAL, 1),
    ("false negatives", ABNORMAL, 0),
    ("false positives", NORMAL, 1),
    ("true negatives", NORMAL, 0),
)
"""Name, the study's label, and whether it was called abnormal."""


def gallery(predictions: Predictions, studies: pd.DataFrame, columns: int = 5) -> list[tuple[str, list[Example]]]:
    """For each kind its surest studies, of each the view that speaks most for the answer; kinds without are left out.

    Args:
        predictions: of a split.
        studies: its studies, from `Predictions.studies`.
        columns: examples of a kind, at most.
    """
    views = predictions.table.assign(study=predictions.study_keys, logit=predictions.logits.mean(axis=0))
    chosen: list[tuple[str, list[tuple[int, str]]]] = []
    for kind, label, called in KINDS:
        rows = studies[(studies["label"] == label) & (studies["abnormal"] == called)]
        rows = rows.sort_values("probability", ascending=not called, kind="stable").head(columns)
        places = [_speaking_view(views, study, bool(called)) for study in rows["study"]]
        titles = [f"{row['study_type']}\np = {row['probability']:.2f}" for _, row in rows.iterrows()]
        if places:
            chosen.append((kind, list(zip(places, titles, strict=True))))
    ids = [int(predictions.table["sample_id"].iloc[place]) for _, examples in chosen for place, _ in examples]
    pixels = read_pixels(predictions.data, predictions.split, ids)
    return [(kind, _examples(predictions, examples, pixels)) for kind, examples in chosen]


def _speaking_view(views: pd.DataFrame, study: str, called_abnormal: bool) -> int:
    logits = views.loc[views["study"] == study, "logit"]
    return views.index.get_loc(logits.idxmax() if called_abnormal else logits.idxmin())  # pyright: ignore[reportReturnType]


def _examples(
    predictions: Predictions, examples: Sequence[tuple[int, str]], pixels: dict[int, np.ndarray]
) -> list[Example]:
    made = []
    for place, title in examples:
        row = predictions.table.iloc[place]
        gray = pixels[int(row["sample_id"])]
        made.append(Example(title, gray, predictions.maps[place], float(row["width"] / row["height"])))
    return made
