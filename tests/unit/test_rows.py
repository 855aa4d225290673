import io
from dataclasses import dataclass

import pandas as pd

from mura_ray.stats.estimates import Estimate
from mura_ray.stats.rows import rows_frame


@dataclass(frozen=True)
class Result:
    name: str
    auroc: Estimate
    centre: float | None


def test_an_estimate_is_three_columns_and_what_is_not_estimable_is_empty():
    frame = rows_frame([Result("a", Estimate(0.5, 0.25, 0.75), 0.125), Result("b", Estimate(), None)])
    written = frame.to_csv(index=False)
    assert written == "name,auroc,auroc_low,auroc_high,centre\na,0.5,0.25,0.75,0.125\nb,,,,\n"
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(written)), frame)


def test_no_rows_are_an_empty_table():
    assert rows_frame([]).empty
