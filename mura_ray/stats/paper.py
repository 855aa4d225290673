"""The paper's Table 2 re-derived (Rajpurkar et al. 2018, arXiv 1712.06957).

It prints Cohen's kappa with a 95 % interval for three radiologists and the model, by study type and overall, but
neither how many test studies a type has, nor how many of them are abnormal, nor the 2 x 2 tables. All of it is found
here by trying every table: the printed intervals turn out as kappa +- 1.96 SE^2, where kappa +- 1.96 SE is the 95 %
interval.

What this does not know: which studies two readers were both wrong about, so it cannot test one against another.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from scipy.stats import binomtest

from mura_ray.domain import OVERALL, STUDY_TYPES
from mura_ray.stats.published import (
    CLAIMS,
    MODEL,
    MODEL_SENSITIVITY,
    MODEL_SPECIFICITY,
    READERS,
    TABLE_2,
    TEST_STUDIES,
    Printed,
    Sum,
    table_1_sums,
)
from mura_ray.stats.two_by_two import Contingency, Fits, Size, fits_with_se, fitting, rounds_to

TYPE_SIZES = range(1, 61)
"""How many test studies of a type are tried; seven types share 207."""
OVERALL_SIZES = range(TEST_STUDIES, TEST_STUDIES + 1)


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
    fits = {row: [fitting(cell, _tried(row)) for cell in cells] for row, cells in printed.items()}
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
    def of(cls, row: Sequence[Fits], size: Size) -> "_SizedRow":
        return cls(size, tuple(found.get(size, ()) for found in row))


@dataclass(frozen=True, slots=True)
class _Choice:
    """One size for each row, and the additions of each reader that these allow."""

    rows: tuple[_SizedRow, ...]
    additions: tuple[tuple[Addition, ...], ...]

    @classmethod
    def of(cls, types: tuple[_SizedRow, ...], overall: Sequence[Fits]) -> "_Choice":
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
            rounds_to(total.tp, total.tp + total.fn, MODEL_SENSITIVITY)
            and rounds_to(total.tn, total.tn + total.fp, MODEL_SPECIFICITY)
            for total in (addition.overall for addition in self.additions[READERS.index(MODEL)])
        )

    def cells(self, printed: Mapping[str, Sequence[Printed]]) -> Iterable[Cell]:
        for i, (row, cells) in enumerate(printed.items()):
            for j, (reader, cell) in enumerate(zip(READERS, cells, strict=True)):
                fitting = self.rows[i].tables[j]
                used = {addition.overall if row == OVERALL else addition.types[i] for addition in self.additions[j]}
                adding_up = tuple(table for table in fitting if table in used)
                yield Cell(row, reader, cell, fitting, adding_up, fits_with_se(cell, _tried(row)))


@functools.cache
def _additions(reader: str, column: tuple[tuple[Contingency, ...], ...]) -> tuple[Addition, ...]:
    """Every choice of one table per type whose sum is among the overall cell's, the last of the column."""
    *types, overall = column
    if not overall:
        return ()
    sums = ((chosen, Contingency(*map(sum, zip(*chosen, strict=True)))) for chosen in itertools.product(*types))
    return tuple(Addition(reader, chosen, total) for chosen, total in sums if total in overall)


def _size_counts(row: Sequence[Fits]) -> dict[Size, int]:
    """How many cells of a row fit at each size at which one does, in the order of the sizes."""
    return {size: sum(size in found for found in row) for size in sorted(set().union(*row))}


def _candidates(row: Sequence[Fits]) -> list[_SizedRow]:
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
