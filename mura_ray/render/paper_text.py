"""What arithmetic finds in the paper's tables, as pages of text for a statistician."""

import math
import textwrap
from collections.abc import Iterable

import pandas as pd

from mura_ray.domain import OVERALL, STUDY_TYPES
from mura_ray.stats.paper import TYPE_SIZES, Cell, Comparison, PaperResult
from mura_ray.stats.published import (
    ABNORMAL_STUDIES,
    MODEL_SENSITIVITY,
    MODEL_SPECIFICITY,
    NORMAL_STUDIES,
    TEST_STUDIES,
    untold_test_labels,
)
from mura_ray.stats.two_by_two import Contingency

_WIDTH = 116

_METHOD = (
    "SE^2 = po (1 - po) / (n (1 - pe)^2) is kappa's variance, SE its standard error (McHugh 2012); a 95 % interval "
    "is kappa +- 1.96 SE. Compared in whole numbers, at half a unit of the last printed digit. Tables are TP/FN/FP/TN "
    "against the gold standard; one in [brackets] fits its cell, but not the sum of the seven types. The interval with "
    "SE is cut to 1, and the widest where several tables remain."
)
_COMPARED = (
    "Apart: the two intervals have no number in common. Readers of the same studies are paired, so neither is a test: "
    "paired readers can differ although their intervals overlap. Smallest p: of McNemar's exact test, two-sided, over "
    "every way in which the two could share their errors. It compares accuracy, not kappa. Nor does a large p show "
    "that two readers are equally good: some 30 studies of a type are too few for either claim."
)


def paper_text(result: PaperResult) -> str:
    """Table 2's finding first, then what it rests on, then Table 1; at most 116 columns wide."""
    return "\n\n".join(
        [
            "The paper's tables checked by arithmetic (Rajpurkar et al. 2018, arXiv 1712.06957)",
            _finding(result),
            _filled(_METHOD),
            _cells_text(result),
            _sizes_text(result),
            _additions_text(result),
            _comparisons_text(result),
            _filled(_COMPARED),
            _table_1_text(result),
        ]
    )


def _finding(result: PaperResult) -> str:
    total = len(result.cells)
    lines = [
        f"Table 2: {result.reproduced_with_variance} of {total} cells are reproduced with kappa +- 1.96 SE^2",
        f"         {result.reproduced_with_se} of {total} cells are reproduced with kappa +- 1.96 SE",
    ]
    if result.reproduced_with_variance == total and not result.reproduced_with_se:
        lines.append("The published intervals add the variance where the standard error belongs: they are too narrow.")
    return "\n".join(lines)


def _cells_text(result: PaperResult) -> str:
    lines = [f"  {'':13}  {'published':20}  {'with SE':14}  tables"]
    for row, size in result.sizes.items():
        lines.append(f"{row}: {size.num} studies, {size.abnormal} abnormal")
        for cell in result.cells:
            if cell.row == row:
                lines += _cell_lines(cell)
    return "\n".join(lines)


def _cell_lines(cell: Cell) -> list[str]:
    interval = cell.right_interval
    shown = "none fits" if interval is None else "{:.3f}, {:.3f}".format(*interval)
    head = f"  {cell.reader:13}  {cell.printed!s:20}  {shown:14}  "
    tables = " ".join(_counts(table) if table in cell.tables else f"[{_counts(table)}]" for table in cell.fitting)
    return textwrap.wrap(head + tables, _WIDTH, subsequent_indent=" " * len(head), drop_whitespace=True)


def _sizes_text(result: PaperResult) -> str:
    tried = sum(num + 1 for num in TYPE_SIZES)
    lines = [
        _filled(
            "Sizes (studies, abnormal) at which all four cells of a row have a table. Tried: every number of abnormal "
            f"ones among {TYPE_SIZES[0]} to {TYPE_SIZES[-1]} studies of a type, {tried:,} sizes; overall, among "
            f"{TEST_STUDIES} studies."
        )
    ]
    for row in STUDY_TYPES:
        lines.append(f"  {row:8}  {', '.join(f'({num}, {abnormal})' for num, abnormal in result.possible_sizes[row])}")
    abnormal = ", ".join(str(size.abnormal) for size in result.possible_sizes[OVERALL])
    lines.append(_filled(f"{OVERALL:8}  ({TEST_STUDIES}, any of {abnormal})", indent="  "))
    choices = math.prod(len(result.possible_sizes[row]) for row in STUDY_TYPES)
    lines.append(
        _filled(
            f"Of the {choices} choices of one size per type, {result.num_choices} let the tables of all four readers "
            "add up: a choice and its mirror image, with normal and abnormal exchanged, which gives the same kappas. "
            f"The abstract's sensitivity {MODEL_SENSITIVITY} and specificity {MODEL_SPECIFICITY} of the model tell "
            "the two apart."
        )
    )
    return "\n".join(lines)


def _additions_text(result: PaperResult) -> str:
    rows = [
        [addition.reader, *map(_counts, addition.types), _counts(addition.overall)] for addition in result.additions
    ]
    head = "Every way in which seven tables of a reader add up to one that fits the overall cell"
    return head + "\n" + _table(rows, ["", *STUDY_TYPES, OVERALL])


def _comparisons_text(result: PaperResult) -> str:
    compared = result.comparisons
    apart = [c for c in compared if not c.published_overlap]
    lower = [c for c in compared if c.claim == "lower"]
    small = [c for c in compared if c.smallest_p < 0.05]
    text = (
        f"The model beside the radiologists: {len(apart)} of {len(compared)} pairs of published intervals are apart, "
        f"{sum(not c.right_overlap for c in apart)} with SE. The abstract calls the model lower than the best on "
        f"{len({c.row for c in lower})} types; with SE the intervals are apart on "
        f"{len({c.row for c in lower if not c.right_overlap})} of them. McNemar's test could give p < 0.05 in "
        f"{len(small)} of the {len(compared)}{''.join(f' ({c.row}, {c.reader})' for c in small)}."
    )
    columns = ["", "", "", "kappa less", "abstract", "apart, published", "apart, with SE", "smallest p"]
    return _filled(text) + "\n" + _table(map(_comparison_row, compared), columns)


def _comparison_row(comparison: Comparison) -> list[str]:
    return [
        comparison.row,
        comparison.reader,
        comparison.rank,
        f"{comparison.difference:+}",
        comparison.claim or "",
        "no" if comparison.published_overlap else "yes",
        "no" if comparison.right_overlap else "yes",
        f"{comparison.smallest_p:.3f}",
    ]


def _table_1_text(result: PaperResult) -> str:
    wrong = [item for item in result.sums if not item.adds_up]
    lines = [f"Table 1 and section 2: {len(result.sums) - len(wrong)} of {len(result.sums)} sums add up"]
    for item in result.sums:
        parts = " + ".join(f"{part:,}" for part in item.parts)
        verdict = "" if item.adds_up else f"  WRONG: it is {sum(item.parts):,}"
        lines.append(f"  {item.name:43}  {parts} = {item.total:,}{verdict}")
    normal, abnormal = untold_test_labels()
    gold = result.sizes[OVERALL]
    lines.append(
        _filled(
            f"The text has {NORMAL_STUDIES:,} normal and {ABNORMAL_STUDIES:,} abnormal studies, which leaves {normal} "
            f"and {abnormal} to the {TEST_STUDIES} of the test set, presumably by the labels of the clinical reading. "
            f"The gold standard behind Table 2 has {gold.num - gold.abnormal} and {gold.abnormal}: if so, the two "
            f"differ on {abs(abnormal - gold.abnormal)} studies at least."
        )
    )
    return "\n".join(lines)


def _table(rows: Iterable[list[str]], columns: list[str]) -> str:
    return pd.DataFrame(rows, columns=columns).to_string(index=False, line_width=10_000)


def _counts(table: Contingency) -> str:
    return "/".join(map(str, table))


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
