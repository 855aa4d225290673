"""The paper's two tables checked by arithmetic (Rajpurkar et al. 2018, arXiv 1712.06957, Tables 1 and 2).

Table 2 prints Cohen's kappa with a 95 % interval for three radiologists and the model, by study type and overall, but
neither how many test studies a type has, nor how many of them are abnormal, nor the 2 x 2 tables. All of it is found
here by trying every table: the printed intervals turn out as kappa +- 1.96 SE^2, where kappa +- 1.96 SE is the 95 %
interval. Every comparison is one of whole numbers, so that no rounding of a float decides it.

What this does not know: which studies two readers were both wrong about, so it cannot test one against another.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from mura_ray.domain import STUDY_TYPES
from mura_ray.stats.agreement import Agreement

OVERALL = "overall"
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

TYPE_SIZES = range(1, 61)
"""How many test studies of a type are tried; seven types share 207."""
OVERALL_SIZES = range(TEST_STUDIES, TEST_STUDIES + 1)


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


_Fits = Mapping[Size, tuple[Contingency, ...]]  # a cell's tables


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
class Cell:
    """A cell of Table 2 and the 2 x 2 tables behind it.

    Attributes:
        row: a study type, or `OVERALL`.
        reader: one of `READERS`.
        printed: as published.
        fitting: the tables of the row's size whose kappa and kappa +- 1.96 SE^2 round to what is printed.
        adding_up: those of them that are part of an `Addition`.
        with_se: whether kappa +- 1.96 SE rounds to what is printed for any table of any size tried.
    """

    row: str
    reader: str
    printed: Printed
    fitting: tuple[Contingency, ...]
    adding_up: tuple[Contingency, ...]
    with_se: bool

    @property
    def tables(self) -> tuple[Contingency, ...]:
        """What the reader's row and column allow: those that add up, or where none do, all that fit."""
        return self.adding_up or self.fitting

    @property
    def with_variance(self) -> bool:
        """Whether kappa +- 1.96 SE^2 gives what is printed; overall, with a table that is the sum of seven."""
        return bool(self.adding_up if self.row == OVERALL else self.fitting)

    @property
    def right_interval(self) -> tuple[float, float] | None:
        """Kappa +- 1.96 SE, cut to -1 and 1; the widest, where several tables fit; None where none does."""
        intervals = [table.agreement.interval for table in self.tables]
        if not intervals:
            return None
        return min(low for low, _ in intervals), max(high for _, high in intervals)


@dataclass(frozen=True, slots=True)
class Addition:
    """One table for each study type (in the order of `STUDY_TYPES`) whose sum fits the reader's overall cell."""

    reader: str
    types: tuple[Contingency, ...]
    overall: Contingency


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model beside a radiologist.

    Attributes:
        row: a study type, or `OVERALL`.
        reader: the radiologist.
        rank: "best" or "worst" by the printed kappa of the three, else "middle"; two may share one.
        claim: what the abstract says of the model beside the best, else None.
        difference: the model's printed kappa less the radiologist's.
        published_overlap: whether the published intervals have a number in common.
        right_overlap: whether those with the standard error have.
        smallest_p: of McNemar's exact test of the two accuracies, the smallest that any pairing of errors allows.
    """

    row: str
    reader: str
    rank: str
    claim: str | None
    difference: Decimal
    published_overlap: bool
    right_overlap: bool
    smallest_p: float


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


@dataclass(frozen=True, slots=True)
class PaperResult:
    """What arithmetic finds in the paper's tables.

    Attributes:
        sums: Table 1's sums, and those of the text.
        sizes: by row, the size that the other findings rest on.
        possible_sizes: by row, every size tried at which all four cells fit a table.
        num_choices: choices of one possible size per study type with which all four readers' tables add up.
        cells: all of Table 2, row by row.
        additions: every way in which a reader's seven tables add up to a table of the overall cell.
        comparisons: the model beside each radiologist, where both have a table (overall, an addition).
    """

    sums: tuple[Sum, ...]
    sizes: Mapping[str, Size]
    possible_sizes: Mapping[str, tuple[Size, ...]]
    num_choices: int
    cells: tuple[Cell, ...]
    additions: tuple[Addition, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def reproduced_with_variance(self) -> int:
        """Cells that kappa +- 1.96 SE^2 reproduces."""
        return sum(cell.with_variance for cell in self.cells)

    @property
    def reproduced_with_se(self) -> int:
        """Cells that kappa +- 1.96 SE reproduces."""
        return sum(cell.with_se for cell in self.cells)


def rederive(table: Mapping[str, Sequence[str]] = TABLE_2) -> PaperResult:
    """Finds the sizes and the 2 x 2 tables behind Table 2, and checks Table 1's sums.

    A row's candidates are the sizes at which most of its cells fit. Of all choices of one candidate per study type, 207
    studies in all, the one that lets most readers' tables add up is taken; of two that are mirror images (normal and
    abnormal exchanged), the one with the sensitivity and specificity that the abstract gives for the model.

    Args:
        table: as `TABLE_2`; another one than the published to see what the check finds.

    Raises:
        ValueError: a cell is not written as in `TABLE_2`.
    """
    printed = {row: [Printed.parse(text) for text in table[row]] for row in (*STUDY_TYPES, OVERALL)}
    fits = {row: [_fitting(cell, _tried(row)) for cell in cells] for row, cells in printed.items()}
    all_types = list(itertools.product(*(_candidates(fits[study_type]) for study_type in STUDY_TYPES)))
    sharing = [types for types in all_types if sum(row.size.num for row in types) == TEST_STUDIES]
    choices = [_Choice.of(types, fits[OVERALL]) for types in sharing or all_types]
    best = max(choices, key=lambda choice: (choice.num_adding_up, choice.has_models_rates))
    cells = tuple(best.cells(printed))
    return PaperResult(
        sums=table_1_sums(),
        sizes={name: row.size for name, row in zip(printed, best.rows, strict=True)},
        possible_sizes={
            row: tuple(size for size, count in _size_counts(found).items() if count == len(READERS))
            for row, found in fits.items()
        },
        num_choices=sum(choice.num_adding_up == len(READERS) for choice in choices),
        cells=cells,
        additions=tuple(itertools.chain.from_iterable(best.additions)),
        comparisons=tuple(_comparisons(cells, best.additions)),
    )


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


@functools.cache
def smallest_mcnemar_p(a: tuple[Contingency, ...], b: tuple[Contingency, ...]) -> float:
    """The smallest two-sided p of McNemar's exact test that two readers of the same studies can have.

    The tables leave open which errors they share. For a given difference p grows with the number of studies that only
    one of them has right, which is smallest if, within each label of each table, one reader's errors contain the
    other's.

    Args:
        a: a table for each study type concerned.
        b: the other reader's for the same types.
    """
    differences = [(x.tp - y.tp, x.tn - y.tn) for x, y in zip(a, b, strict=True)]
    only_a = sum(max(difference, 0) for pair in differences for difference in pair)
    only_one = sum(abs(difference) for pair in differences for difference in pair)
    return float(binomtest(only_a, only_one).pvalue) if only_one else 1.0


class _SizedRow(NamedTuple):
    """A row at one size: the tables that fit each of its cells."""

    size: Size
    tables: tuple[tuple[Contingency, ...], ...]

    @classmethod
    def of(cls, row: Sequence[_Fits], size: Size) -> "_SizedRow":
        return cls(size, tuple(found.get(size, ()) for found in row))


@dataclass(frozen=True, slots=True)
class _Choice:
    """One size for each row, and the additions of each reader that these allow."""

    rows: tuple[_SizedRow, ...]
    additions: tuple[tuple[Addition, ...], ...]

    @classmethod
    def of(cls, types: tuple[_SizedRow, ...], overall: Sequence[_Fits]) -> "_Choice":
        total = Size(sum(row.size.num for row in types), sum(row.size.abnormal for row in types))
        rows = (*types, _SizedRow.of(overall, total))
        columns = zip(*(row.tables for row in rows), strict=True)
        return cls(rows, tuple(_additions(reader, column) for reader, column in zip(READERS, columns, strict=True)))

    @property
    def num_adding_up(self) -> int:
        return sum(map(bool, self.additions))

    @property
    def has_models_rates(self) -> bool:
        return any(
            _rounds_to(total.tp, total.tp + total.fn, MODEL_SENSITIVITY)
            and _rounds_to(total.tn, total.tn + total.fp, MODEL_SPECIFICITY)
            for total in (addition.overall for addition in self.additions[READERS.index(MODEL)])
        )

    def cells(self, printed: Mapping[str, Sequence[Printed]]) -> Iterable[Cell]:
        for i, (row, cells) in enumerate(printed.items()):
            for j, (reader, cell) in enumerate(zip(READERS, cells, strict=True)):
                fitting = self.rows[i].tables[j]
                used = {addition.overall if row == OVERALL else addition.types[i] for addition in self.additions[j]}
                adding_up = tuple(table for table in fitting if table in used)
                yield Cell(row, reader, cell, fitting, adding_up, _fits_with_se(cell, _tried(row)))


@functools.cache
def _additions(reader: str, column: tuple[tuple[Contingency, ...], ...]) -> tuple[Addition, ...]:
    """Every choice of one table per type whose sum is among the overall cell's, the last of the column."""
    *types, overall = column
    if not overall:
        return ()
    sums = ((chosen, Contingency(*map(sum, zip(*chosen, strict=True)))) for chosen in itertools.product(*types))
    return tuple(Addition(reader, chosen, total) for chosen, total in sums if total in overall)


def _size_counts(row: Sequence[_Fits]) -> dict[Size, int]:
    """How many cells of a row fit at each size at which one does, in the order of the sizes."""
    return {size: sum(size in found for found in row) for size in sorted(set().union(*row))}


def _candidates(row: Sequence[_Fits]) -> list[_SizedRow]:
    """The sizes at which most of a row's cells fit; where none fits anywhere, a size without studies."""
    counts = _size_counts(row) or {Size(0, 0): 0}
    most = max(counts.values())
    return [_SizedRow.of(row, size) for size, count in counts.items() if count == most]


def _comparisons(cells: Sequence[Cell], additions: Sequence[Sequence[Addition]]) -> Iterable[Comparison]:
    def ways(cell: Cell) -> list[tuple[Contingency, ...]]:
        if cell.row == OVERALL:
            return [addition.types for addition in additions[READERS.index(cell.reader)]]
        return [(table,) for table in cell.tables]

    for row in (*STUDY_TYPES, OVERALL):
        *radiologists, model = (cell for cell in cells if cell.row == row)
        kappas = [cell.printed.kappa for cell in radiologists]
        for cell in radiologists:
            rank = {min(kappas): "worst", max(kappas): "best"}.get(cell.printed.kappa, "middle")
            p_values = [smallest_mcnemar_p(a, b) for a, b in itertools.product(ways(model), ways(cell))]
            if p_values:
                yield Comparison(
                    row=row,
                    reader=cell.reader,
                    rank=rank,
                    claim=CLAIMS.get(row) if rank == "best" else None,
                    difference=model.printed.kappa - cell.printed.kappa,
                    published_overlap=_overlap(model.printed.interval, cell.printed.interval),
                    right_overlap=_overlap(model.right_interval, cell.right_interval),
                    smallest_p=min(p_values),
                )


def _overlap(a: tuple | None, b: tuple | None) -> bool:
    return a is not None and b is not None and max(a[0], b[0]) <= min(a[1], b[1])


def _tried(row: str) -> range:
    return OVERALL_SIZES if row == OVERALL else TYPE_SIZES


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
def _fitting(cell: Printed, tried: range) -> _Fits:
    """By size, the tables whose kappa and kappa +- 1.96 SE^2 are within half a thousandth of what is printed.

    Times 2000 (n^2 - B)^2, all sides of |kappa +- 1.96 SE^2 - printed| <= 1 / 2000 are whole numbers.
    """
    tables = _AllTables.of(tried).near(cell.kappa)
    centre, margin, unit = 2000 * tables.above_chance * tables.room, 3920 * tables.spread, tables.room**2
    fits = np.ones(len(unit), dtype=bool)
    for value, printed in ((centre, cell.kappa), (centre - margin, cell.low), (centre + margin, cell.high)):
        fits &= abs(value - 2 * _thousandths(printed) * unit) <= unit
    found: dict[Size, tuple[Contingency, ...]] = {}
    for table in sorted(Contingency(*counts) for counts in tables.counts[fits].tolist()):
        found[table.size] = (*found.get(table.size, ()), table)
    return found


@functools.cache
def _fits_with_se(cell: Printed, tried: range) -> bool:
    """Whether kappa and kappa +- 1.96 SE are within half a thousandth of what is printed for any table.

    Times 2000 (n^2 - B) the margin is 3920 sqrt(n A (n - A)): its square is compared with those of whole numbers.
    """
    tables = _AllTables.of(tried).near(cell.kappa)
    centre, squared_margin, unit = 2000 * tables.above_chance, 3920**2 * tables.spread, tables.room
    fits = abs(centre - 2 * _thousandths(cell.kappa) * unit) <= unit
    for printed, sign in ((cell.low, -1), (cell.high, 1)):
        distance = sign * (2 * _thousandths(printed) * unit - centre)
        least, most = np.maximum(distance - unit, 0), distance + unit
        fits &= (most >= 0) & (least**2 <= squared_margin) & (squared_margin <= most**2)
    return bool(fits.any())


def _rounds_to(count: int, total: int, printed: Decimal) -> bool:
    return abs(2000 * count - 2 * _thousandths(printed) * total) <= total


def _thousandths(printed: Decimal) -> int:
    return int(printed.scaleb(3))
