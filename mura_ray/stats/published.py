"""What the paper prints (Rajpurkar et al. 2018, arXiv 1712.06957): Tables 1 and 2, the abstract's rates and claims.

Table 1's sums are checked here; what lies behind Table 2 is `paper`'s to find.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from mura_ray.domain import OVERALL, STUDY_TYPES

READERS = ("radiologist 1", "radiologist 2", "radiologist 3", "model")
MODEL = READERS[-1]

TABLE_2 = {
    "elbow": ("0.850 (0.830, 0.871)", "0.710 (0.674, 0.745)", "0.719 (0.685, 0.752)", "0.710 (0.674, 0.745)"),
    "finger": ("0.304 (0.249, 0.358)", "0.403 (0.339, 0.467)", "0.410 (0.358, 0.463)", "0.389 (0.332, 0.446)"),
    "forearm": ("0.796 (0.772, 0.821)", "0.802 (0.779, 0.825)", "0.798 (0.774, 0.822)", "0.737 (0.707, 0.766)"),
    "hand": ("0.661 (0.623, 0.698)", "0.927 (0.917, 0.937)", "0.789 (0.762, 0.815)", "0.851 (0.830, 0.871)"),
    "humerus": ("0.867 (0.850, 0.883)", "0.733 (0.703, 0.764)", "0.933 (0.925, 0.942)", "0.600 (0.558, 0.642)"),
    "shoulder": ("0.864 (0.847, 0.881)", "0.791 (0.765, 0.816)", "0.864 (0.847, 0.881)", "0.729 (0.697, 0.760)"),
    "wrist": ("0.791 (0.766, 0.817)", "0.931 (0.922, 0.940)", "0.931 (0.922, 0.940)", "0.931 (0.922, 0.940)"),
    OVERALL: ("0.731 (0.726, 0.735)", "0.763 (0.759, 0.767)", "0.778 (0.774, 0.782)", "0.705 (0.700, 0.710)"),
}
"""Table 2 as printed: a row per study type and one over all, its columns in the order of `READERS`."""

TEST_STUDIES = 207
MODEL_SENSITIVITY, MODEL_SPECIFICITY = Decimal("0.815"), Decimal("0.887")
CLAIMS = {name: "comparable" if name in ("finger", "wrist") else "lower" for name in STUDY_TYPES}
"""The abstract on the model beside the best radiologist of each study type."""

TABLE_1 = {
    "elbow": (1094, 660, 92, 66, 1912),
    "finger": (1280, 655, 92, 83, 2110),
    "forearm": (590, 287, 69, 64, 1010),
    "hand": (1497, 521, 101, 66, 2185),
    "humerus": (321, 271, 68, 67, 727),
    "shoulder": (1364, 1457, 99, 95, 3015),
    "wrist": (2134, 1326, 140, 97, 3697),
}
"""Table 1 as printed: studies, train normal and abnormal, valid normal and abnormal, total."""
TABLE_1_TOTALS = (8280, 5177, 661, 538, 14656)
NORMAL_STUDIES, ABNORMAL_STUDIES, ALL_STUDIES = 9045, 5818, 14863


@dataclass(frozen=True, slots=True)
class Printed:
    """A cell of Table 2: kappa and the bounds of its interval, three decimals each."""

    kappa: Decimal
    low: Decimal
    high: Decimal

    @classmethod
    def parse(cls, text: str) -> "Printed":
        """Reads "0.850 (0.830, 0.871)".

        Raises:
            ValueError: other than three numbers with three decimals each, so written.
        """
        match = re.fullmatch(r"(-?\d\.\d{3}) \((-?\d\.\d{3}), (-?\d\.\d{3})\)", text)
        if not match:
            raise ValueError(f"cell {text!r}: write kappa and its bounds as '0.850 (0.830, 0.871)'")
        return cls(*map(Decimal, match.groups()))

    @property
    def interval(self) -> tuple[Decimal, Decimal]:
        """The published one."""
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.kappa} ({self.low}, {self.high})"


@dataclass(frozen=True, slots=True)
class Sum:
    """Published parts and the published total that they should have."""

    name: str
    parts: tuple[int, ...]
    total: int

    @property
    def adds_up(self) -> bool:
        """Whether they do."""
        return sum(self.parts) == self.total


def table_1_sums() -> tuple[Sum, ...]:
    """The sums that Table 1 and the text of section 2 should keep."""
    columns = list(zip(*TABLE_1.values(), strict=True))
    names = ("train normal", "train abnormal", "valid normal", "valid abnormal", "train and valid")
    normal, abnormal = untold_test_labels()
    return (
        *(Sum(f"studies, {name}", counts[:-1], counts[-1]) for name, counts in TABLE_1.items()),
        *(
            Sum(f"studies, {name}", column, total)
            for name, column, total in zip(names, columns, TABLE_1_TOTALS, strict=True)
        ),
        Sum("studies, train", TABLE_1_TOTALS[:2], 13457),
        Sum("studies, valid", TABLE_1_TOTALS[2:4], 1199),
        Sum("studies, train, valid and test", (13457, 1199, TEST_STUDIES), ALL_STUDIES),
        Sum("studies, normal and abnormal", (NORMAL_STUDIES, ABNORMAL_STUDIES), ALL_STUDIES),
        Sum("studies, test, what Table 1 leaves of them", (normal, abnormal), TEST_STUDIES),
        Sum("images, train, valid and test", (36808, 3197, 556), 40561),
        Sum("patients, train, valid and test", (11184, 783, 206), 12173),
    )


def untold_test_labels() -> tuple[int, int]:
    """Normal and abnormal studies of the test set by their first labels: the text's totals less Table 1's."""
    normal = NORMAL_STUDIES - TABLE_1_TOTALS[0] - TABLE_1_TOTALS[2]
    return normal, ABNORMAL_STUDIES - TABLE_1_TOTALS[1] - TABLE_1_TOTALS[3]
