"""Every 2 x 2 table of a reader against a gold standard that a printed kappa and its interval can come from.

Every comparison is one of whole numbers, so that no rounding of a float decides it.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from mura_ray.stats.agreement import Agreement
from mura_ray.stats.published import Printed


class Size(NamedTuple):
    """Test studies of a row of Table 2, and how many of them the gold standard calls abnormal."""

    num: int
    abnormal: int


class Contingency(NamedTuple):
    """A reader against the gold standard: both abnormal, gold only, reader only, neither."""

    tp: int
    fn: int
    fp: int
    tn: int

    @property
    def size(self) -> Size:
        """Its studies, and those abnormal by the gold standard."""
        return Size(sum(self), self.tp + self.fn)

    @property
    def agreement(self) -> Agreement:
        """For kappa, its standard error and the interval that Table 2 should have."""
        num, abnormal = self.size
        called = self.tp + self.fp
        by_chance = abnormal * called + (num - abnormal) * (num - called)
        return Agreement(num=num, observed=(self.tp + self.tn) / num, expected=by_chance / num**2)


Fits = Mapping[Size, tuple[Contingency, ...]]
"""A cell's tables, by size."""


@dataclass(frozen=True, slots=True, eq=False)
class _AllTables:
    """Every 2 x 2 table of some sizes for which kappa exists, in the order of kappa.

    With n studies, A agreements and B = n^2 pe, kappa = (n A - B) / (n^2 - B) and SE^2 = n A (n - A) / (n^2 - B)^2:
    `above_chance`, `room` and `spread` are these three whole numbers, each int64 [m]; `counts` is int64 [m, 4].
    """

    counts: np.ndarray
    kappa: np.ndarray
    above_chance: np.ndarray
    room: np.ndarray
    spread: np.ndarray

    @classmethod
    @functools.cache
    def of(cls, sizes: range) -> "_AllTables":
        counts = np.concatenate([_tables_of_size(num, abnormal) for num in sizes for abnormal in range(num + 1)])
        tp, fn, fp, tn = counts.T
        num, agreed = counts.sum(axis=1), tp + tn
        by_chance = (tp + fn) * (tp + fp) + (fp + tn) * (fn + tn)
        room = num**2 - by_chance
        above_chance = num * agreed - by_chance
        kappa = np.divide(above_chance, room, out=np.full(len(room), np.nan), where=room > 0)
        order = np.argsort(kappa)[: np.count_nonzero(room)]  # NaN is sorted to the end
        spread = num * agreed * (num - agreed)
        return cls(counts[order], kappa[order], above_chance[order], room[order], spread[order])

    def near(self, kappa: Decimal) -> "_AllTables":
        """Those within a thousandth of kappa, which spares the others the exact comparison."""
        start, stop = np.searchsorted(self.kappa, [float(kappa) - 0.001, float(kappa) + 0.001])
        columns = (self.counts, self.kappa, self.above_chance, self.room, self.spread)
        return _AllTables(*(column[start:stop] for column in columns))


def _tables_of_size(num: int, abnormal: int) -> np.ndarray:
    tp, fp = np.indices((abnormal + 1, num - abnormal + 1)).reshape(2, -1)
    return np.stack([tp, abnormal - tp, fp, num - abnormal - fp], axis=1)


@functools.cache
def fitting(cell: Printed, tried: range) -> Fits:
    """By size, the tables whose kappa and kappa +- 1.96 SE^2 are within half a thousandth of what is printed.

    Times 2000 (n^2 - B)^2, all sides of |kappa +- 1.96 SE^2 - printed| <= 1 / 2000 are whole numbers.
    """
    tables = _AllTables.of(tried).near(cell.kappa)
    centre, margin, unit = 2000 * tables.above_chance * tables.room, 3920 * tables.spread, tables.room**2
    fits = np.ones(len(unit), dtype=bool)
    for value, printed in ((centre, cell.kappa), (centre - margin, cell.low), (centre + margin, cell.high)):
        fits &= abs(value - 2 * thousandths(printed) * unit) <= unit
    found: dict[Size, tuple[Contingency, ...]] = {}
    for table in sorted(Contingency(*counts) for counts in tables.counts[fits].tolist()):
        found[table.size] = (*found.get(table.size, ()), table)
    return found


@functools.cache
def fits_with_se(cell: Printed, tried: range) -> bool:
    """Whether kappa and kappa +- 1.96 SE are within half a thousandth of what is printed for any table.

    Times 2000 (n^2 - B) the margin is 3920 sqrt(n A (n - A)): its square is compared with those of whole numbers.
    """
    tables = _AllTables.of(tried).near(cell.kappa)
    centre, squared_margin, unit = 2000 * tables.above_chance, 3920**2 * tables.spread, tables.room
    fits = abs(centre - 2 * thousandths(cell.kappa) * unit) <= unit
    for printed, sign in ((cell.low, -1), (cell.high, 1)):
        distance = sign * (2 * thousandths(printed) * unit - centre)
        least, most = np.maximum(distance - unit, 0), distance + unit
        fits &= (most >= 0) & (least**2 <= squared_margin) & (squared_margin <= most**2)
    return bool(fits.any())


def rounds_to(count: int, total: int, printed: Decimal) -> bool:
    """Whether count / total is within half a thousandth of what is printed."""
    return abs(2000 * count - 2 * thousandths(printed) * total) <= total


def thousandths(printed: Decimal) -> int:
    """A number of three decimals as a whole one."""
    return int(printed.scaleb(3))
