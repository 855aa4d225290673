import re

import pytest

from mura_ray.render.paper_text import paper_text
from mura_ray.stats.paper import PaperResult, rederive
from mura_ray.stats.published import READERS, TABLE_2


@pytest.fixture(scope="module")
def result() -> PaperResult:
    return rederive()


def test_the_finding_comes_first(result):
    text = paper_text(result)
    assert re.search(r"^Table 2: +32 of 32 cells are reproduced with kappa \+- 1\.96 SE\^2$", text, re.MULTILINE)
    assert re.search(r"^ +0 of 32 cells are reproduced with kappa \+- 1\.96 SE$", text, re.MULTILINE)
    assert "too narrow" in text[:400]


def test_no_line_is_wider_than_the_other_reports(result):
    assert max(map(len, paper_text(result).splitlines())) <= 116


def test_every_table_found_is_shown(result):
    text = paper_text(result)
    for cell in result.cells:
        for table in cell.fitting:
            assert "/".join(map(str, table)) in text
    for texts in TABLE_2.values():
        for printed in texts:
            assert printed in text
    for reader in READERS:
        assert text.count(f"  {reader} ") >= 8


def test_a_table_that_cannot_be_in_the_sum_is_in_brackets(result):
    text = paper_text(result)
    assert "[70/22/5/110] 86/6/22/93" in text


def test_a_cell_that_fits_nothing_is_said_so():
    changed = {**TABLE_2, "elbow": ("0.851 (0.830, 0.871)", *TABLE_2["elbow"][1:])}
    text = paper_text(rederive(changed))
    assert "30 of 32 cells are reproduced with kappa +- 1.96 SE^2" in text
    assert "0.851 (0.830, 0.871)  none fits" in text
    assert "too narrow" not in text
