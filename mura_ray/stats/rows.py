"""Results of many rows as one table, for CSV files and reports."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from mura_ray.stats.estimates import Estimate


def rows_frame(rows: Sequence[Any]) -> pd.DataFrame:
    """A row for each of some objects of one dataclass, a column for each field.

    An `Estimate` becomes three columns: the field's name, and that with `_low` and `_high`. What is None is empty.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for field in fields(row):
            value = getattr(row, field.name)
            if isinstance(value, Estimate):
                cells = {"": value.value, "_low": value.low, "_high": value.high}
            else:
                cells = {"": value}
            for suffix, cell in cells.items():
                columns.setdefault(field.name + suffix, []).append(cell)
    return pd.DataFrame(columns)
