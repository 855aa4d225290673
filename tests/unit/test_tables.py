"""Tables of a report: what a person reads, and what a program does."""

import io
import math

import pandas as pd
import pytest

from mura_ray.render.tables import NOT_ESTIMABLE, Table, as_csv, as_html, as_latex, as_text, cell_text
from mura_ray.stats.estimates import Estimate

TABLE = Table(
    "results",
    "Results at 50 %",
    pd.DataFrame({
        "reader": ["A & B", "<model>"],
        "n": [1200, 7],
        "kappa": [Estimate(0.7049, 0.6, 0.81), Estimate()],
        "share": [0.5, None],
    }),
)  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Estimate(0.70549, 0.6, 0.81), "0.705 [0.600, 0.810]"),
        (Estimate(0.7), f"0.700 [{NOT_ESTIMABLE}]"),
        (Estimate(), NOT_ESTIMABLE),
        (None, NOT_ESTIMABLE),
        (math.nan, NOT_ESTIMABLE),
        (0.12345, "0.123"),
        (1e-9, "< 0.001"),
        (0.0, "0.000"),
        (12345, "12,345"),
        ("hand", "hand"),
    ],
)
def test_a_cell_reads(cell, text):
    assert cell_text(cell) == text


def test_csv_holds_numbers_in_full_and_leaves_empty_what_is_not_estimable():
    read = pd.read_csv(io.BytesIO(as_csv(TABLE)))
    assert list(read.columns) == ["reader", "n", "kappa", "kappa_low", "kappa_high", "share"]
    first, second = read.to_dict(orient="records")
    assert [first[name] for name in ("kappa", "kappa_low", "kappa_high")] == [0.7049, 0.6, 0.81]
    assert all(math.isnan(second[name]) for name in ("kappa", "kappa_low", "kappa_high", "share"))
    assert (first["reader"], second["reader"]) == ("A & B", "<model>")


def test_html_escapes_and_aligns_numbers():
    html = as_html(TABLE)
    assert "&lt;model&gt;" in html
    assert "<td>A &amp; B</td>" in html
    assert '<td class="number">1,200</td>' in html
    assert "<model>" not in html


def test_latex_is_a_table_with_escaped_cells():
    lines = as_latex(TABLE).decode().splitlines()
    assert r"\caption{Results at 50 \%}" in lines
    assert r"A \& B & 1,200 & 0.705 [0.600, 0.810] & 0.500 \\" in lines
    assert rf"<model> & 7 & {NOT_ESTIMABLE} & {NOT_ESTIMABLE} \\" in lines
    assert lines[0] == r"\begin{table}"
    assert lines[-1] == r"\end{table}"


def test_text_has_a_line_for_each_row():
    assert len(as_text(TABLE).splitlines()) == 1 + len(TABLE.frame)
