"""How the maps of an ensemble and of its members lie over annotated findings, as a table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mura_ray.data.manifest import read_boxes
from mura_ray.domain import ABNORMAL
from mura_ray.evaluation.predictions import Predictions
from mura_ray.render.tables import Table
from mura_ray.stats.localisation import BoxedView
from mura_ray.stats.localisation_table import MEASURES, localisation

ENSEMBLE = "ensemble"


def localisation_tables(predictions: Predictions) -> list[Table]:
    """Two tables where the split has boxes, the ensemble's maps and the members', else none."""
    boxes = read_boxes(predictions.data, predictions.split)
    if boxes is None:
        return []
    sources = {ENSEMBLE: predictions.maps}
    sources |= {
        member.trial: maps
        for member, maps in zip(predictions.description.members, predictions.member_maps, strict=True)
    }
    views = {name: boxed_views(predictions.table, boxes, maps) for name, maps in sources.items()}
    rows = pd.DataFrame([
        {
            "maps": row.source, "measure": row.measure, "boxes of the view": row.size, "views": row.num_views,
            "patients": row.num_patients, "value": row.value, "permuted boxes": row.permuted,
            "centre map": row.centre, "above permuted": row.above_permuted, "above centre": row.above_centre,
        }
        for row in localisation(views)
        if row.num_views and (row.source == ENSEMBLE or row.value.value is not None)
    ])  # fmt: skip
    note = (
        f"{'; '.join(f'{name}: {meaning}' for name, meaning in MEASURES.items())}. Boxes of the view: the share of it "
        "that they cover together. Permuted boxes: those of the other views of the type and size, a patient's own "
        "other views among them. Centre map: one fixed map for all views, a Gaussian in the middle."
    )
    whole, parts = (rows[(rows["maps"] == ENSEMBLE) == is_whole].reset_index(drop=True) for is_whole in (True, False))
    return [
        Table("localisation", "Maps over annotated findings", whole, note),
        Table("localisation_members", "The members' maps over annotated findings", parts, note),
    ]


def boxed_views(table: pd.DataFrame, boxes: pd.DataFrame, maps: Sequence[np.ndarray] | np.ndarray) -> list[BoxedView]:
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
