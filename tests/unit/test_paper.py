import itertools
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from mura_ray.domain import OVERALL, STUDY_TYPES
from mura_ray.stats import paper, published
from mura_ray.stats.paper import rederive, smallest_mcnemar_p
from mura_ray.stats.published import READERS, TABLE_2
from mura_ray.stats.two_by_two import Contingency, Size

HALF_UNIT = Decimal("0.0005")

UNNOTICED = {
    (OVERALL, "radiologist 1", "0.730 (0.726, 0.735)"): (85, 7, 21, 94),
    (OVERALL, "radiologist 3", "0.778 (0.774, 0.781)"): (86, 6, 17, 98),
}
"""The changed cells that other tables explain as well, and the overall table that these add up to."""


@pytest.fixture(scope="module")
def result() -> paper.PaperResult:
    return rederive()


def altered(row: str, column: int, text: str) -> dict[str, tuple[str, ...]]:
    cells = TABLE_2[row]
    return {**TABLE_2, row: (*cells[:column], text, *cells[column + 1 :])}


def one_digit_changes(text: str) -> list[str]:
    return [
        text[:position] + digit + text[position + 1 :]
        for position, printed in enumerate(text)
        if printed.isdigit()
        for digit in "0123456789"
        if digit != printed
    ]


def exact_kappa_and_variance(table: tuple[int, ...]) -> tuple[Fraction, Fraction]:
    tp, fn, fp, tn = table
    num = sum(table)
    observed = Fraction(tp + tn, num)
    expected = Fraction((tp + fn) * (tp + fp) + (fp + tn) * (fn + tn), num**2)
    return (observed - expected) / (1 - expected), observed * (1 - observed) / (num * (1 - expected) ** 2)


def tables_by_brute_force(cell: paper.Cell, size: Size) -> list[tuple[int, ...]]:
    found = []
    for tp, fp in itertools.product(range(size.abnormal + 1), range(size.num - size.abnormal + 1)):
        table = (tp, size.abnormal - tp, fp, size.num - size.abnormal - fp)
        kappa, variance = exact_kappa_and_variance(table)
        margin = Fraction(196, 100) * variance
        numbers = zip(
            (kappa, kappa - margin, kappa + margin),
            (cell.printed.kappa, cell.printed.low, cell.printed.high),
            strict=True,
        )
        if all(abs(number - Fraction(printed)) <= Fraction(HALF_UNIT) for number, printed in numbers):
            found.append(table)
    return found


def test_all_cells_are_reproduced_with_the_variance_and_none_with_the_standard_error(result):
    assert len(result.cells) == 32
    assert result.reproduced_with_variance == 32
    assert result.reproduced_with_se == 0


def test_one_size_per_row_and_its_mirror_image_fit_all_four_cells(result):
    sizes = [(28, 11), (30, 11), (30, 16), (30, 11), (30, 15), (30, 13), (29, 15), (207, 92)]
    assert list(result.sizes.values()) == sizes
    for row in STUDY_TYPES:
        num, abnormal = result.sizes[row]
        assert set(result.possible_sizes[row]) == {(num, abnormal), (num, num - abnormal)}
    assert result.num_choices == 2


def test_tables_are_those_of_an_exhaustive_search_in_fractions(result):
    for cell in result.cells:
        if cell.row != OVERALL:
            assert list(cell.fitting) == tables_by_brute_force(cell, result.sizes[cell.row])
    # 93 x 116 tables of fractions take a second each: one overall cell stands for the four.
    cell = next(cell for cell in result.cells if cell.row == OVERALL and cell.reader == READERS[1])
    assert list(cell.fitting) == tables_by_brute_force(cell, result.sizes[OVERALL])


def test_tables_give_the_printed_kappa_by_scikit_learn(result):
    for cell in result.cells:
        assert cell.tables
        for tp, fn, fp, tn in cell.tables:
            gold, reader = [1] * (tp + fn) + [0] * (fp + tn), [1] * tp + [0] * fn + [1] * fp + [0] * tn
            assert cohen_kappa_score(gold, reader) == pytest.approx(float(cell.printed.kappa), abs=0.0005)


def test_seven_tables_of_every_reader_add_up_to_one_that_fits_overall(result):
    assert {addition.reader for addition in result.additions} == set(READERS)
    cells = {(cell.row, cell.reader): cell for cell in result.cells}
    for addition in result.additions:
        for study_type, table in zip(STUDY_TYPES, addition.types, strict=True):
            assert table in cells[study_type, addition.reader].adding_up
        assert addition.overall in cells[OVERALL, addition.reader].adding_up
        assert addition.overall == tuple(sum(counts) for counts in zip(*addition.types, strict=True))
    model = {addition.overall for addition in result.additions if addition.reader == "model"}
    assert model == {(75, 17, 13, 102)}
    assert (round(75 / 92, 3), round(102 / 115, 3)) == (0.815, 0.887)


def test_a_table_with_the_right_intervals_is_recognised_as_such(result):
    right: dict[str, tuple[str, ...]] = {}
    for cell in result.cells:
        kappa, variance = exact_kappa_and_variance(cell.tables[0])
        margin = 1.96 * math.sqrt(variance)
        text = f"{float(kappa):.3f} ({float(kappa) - margin:.3f}, {float(kappa) + margin:.3f})"
        right[cell.row] = (*right.get(cell.row, ()), text)
    recognised = rederive(right)
    assert recognised.reproduced_with_se == 32
    assert recognised.reproduced_with_variance == 0


@pytest.mark.parametrize("row", TABLE_2)
def test_any_changed_digit_is_found_out(row):
    num_tried = 0
    for column, reader in enumerate(READERS):
        for text in one_digit_changes(TABLE_2[row][column]):
            num_tried += 1
            found = rederive(altered(row, column, text))
            assert found.reproduced_with_se == 0
            if (row, reader, text) not in UNNOTICED:
                assert found.reproduced_with_variance < 32, (row, reader, text)
    assert num_tried == 4 * 3 * 4 * 9


@pytest.mark.parametrize("change", UNNOTICED)
def test_the_two_changes_that_keep_every_cell_lead_to_another_overall_table(result, change):
    row, reader, text = change
    found = rederive(altered(row, READERS.index(reader), text))
    assert found.reproduced_with_variance == 32
    assert {addition.overall for addition in found.additions if addition.reader == reader} == {UNNOTICED[change]}
    assert UNNOTICED[change] not in {addition.overall for addition in result.additions}


def test_right_interval_of_the_model(result):
    model = result.cells[-1]
    assert (model.row, model.reader) == (OVERALL, "model")
    assert model.right_interval == pytest.approx((0.608, 0.803), abs=0.0005)


def test_no_published_difference_from_the_model_outlasts_the_right_intervals(result):
    assert len(result.comparisons) == 24
    best = [comparison for comparison in result.comparisons if comparison.rank == "best"]
    assert {c.row for c in best if c.claim == "lower"} == {"elbow", "forearm", "hand", "humerus", "shoulder"}
    assert {c.row for c in best if not c.published_overlap} == {c.row for c in best if c.claim == "lower"} | {OVERALL}
    assert all(comparison.right_overlap for comparison in result.comparisons)


def test_no_difference_in_accuracy_could_be_significant_however_the_errors_were_shared(result):
    smallest = {(comparison.row, comparison.reader): comparison.smallest_p for comparison in result.comparisons}
    assert smallest["humerus", "radiologist 3"] == 2 / 2**5  # right on 24 and on 29 of 30
    assert min(smallest, key=smallest.__getitem__) == ("humerus", "radiologist 3")


def pairings(right_a: int, right_b: int, num: int) -> list[tuple[int, int]]:
    both = range(max(0, right_a + right_b - num), min(right_a, right_b) + 1)
    return [(right_a - shared, right_b - shared) for shared in both]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([(8, 3, 6, 13)], [(9, 2, 7, 12)]),
        ([(10, 5, 1, 14)], [(15, 0, 1, 14)]),
        ([(3, 7, 8, 2)], [(8, 2, 3, 7)]),
        ([(3, 1, 1, 3)], [(3, 1, 1, 3)]),
        ([(8, 3, 6, 13), (3, 2, 4, 5)], [(6, 5, 3, 16), (4, 1, 5, 4)]),
    ],
)
def test_smallest_mcnemar_p_is_that_of_all_pairings(a, b):
    p_values = []
    groups = [
        pairings(right_a, right_b, num)
        for (tp_a, fn, fp, tn_a), (tp_b, _, _, tn_b) in zip(a, b, strict=True)
        for right_a, right_b, num in ((tp_a, tp_b, tp_a + fn), (tn_a, tn_b, fp + tn_a))
    ]
    for pairing in itertools.product(*groups):
        only_a, only_b = (sum(only) for only in zip(*pairing, strict=True))
        p_values.append(binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0)
    assert len(p_values) > 1
    found = smallest_mcnemar_p(tuple(Contingency(*table) for table in a), tuple(Contingency(*table) for table in b))
    assert found == pytest.approx(min(p_values), abs=1e-12)


def test_every_sum_of_table_1_adds_up(result):
    assert len(result.sums) == 19
    assert [item for item in result.sums if not item.adds_up] == []
    assert published.untold_test_labels() == (104, 103)


@pytest.mark.parametrize("row", STUDY_TYPES)
@pytest.mark.parametrize("column", range(5))
def test_a_changed_number_of_table_1_breaks_a_row_and_a_column(monkeypatch, row, column):
    counts = list(published.TABLE_1[row])
    counts[column] += 1
    monkeypatch.setitem(published.TABLE_1, row, tuple(counts))
    wrong = {item.name for item in published.table_1_sums() if not item.adds_up}
    assert len(wrong) == 2
    assert f"studies, {row}" in wrong


def test_a_table_of_nothing_that_fits_reproduces_nothing():
    impossible = dict.fromkeys(TABLE_2, ("0.500 (0.100, 0.200)",) * 4)
    found = rederive(impossible)
    assert (found.reproduced_with_variance, found.reproduced_with_se, found.num_choices) == (0, 0, 0)
    assert {cell.right_interval for cell in found.cells} == {None}
    assert found.comparisons == ()


@pytest.mark.parametrize("text", ["0.85 (0.830, 0.871)", "0.850 0.830 0.871", "kappa (0.830, 0.871)"])
def test_a_cell_written_otherwise_is_refused_with_the_form_it_needs(text):
    with pytest.raises(ValueError, match=r"write kappa and its bounds as '0\.850 \(0\.830, 0\.871\)'"):
        rederive(altered("elbow", 0, text))
