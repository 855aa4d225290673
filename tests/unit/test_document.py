"""The report's document: one HTML file that needs nothing else, the same as PDF, and its figures."""

import io
import re

import numpy as np
import pandas as pd
from PIL import Image, ImageFile

from mura_ray.render.document import Code, Picture, Section, Text, document_html, document_pdf
from mura_ray.render.figures import (
    Curve,
    Example,
    OperatingPoint,
    ReliabilityBin,
    as_png,
    as_svg,
    forest_figure,
    gallery_figure,
    reliability_figure,
    roc_figure,
)
from mura_ray.render.tables import Table


def roc():
    rates = np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.9, 1.0])
    points = [OperatingPoint("reader 1", 0.1, 0.7, True), OperatingPoint("ensemble at 0.5", 0.2, 0.9, False)]
    return roc_figure([Curve("ensemble", *rates)], points)


def html():
    return document_html(
        "A <title>",
        "made now",
        [
            Section("First & last", [Text("1 < 2", "notice"), Code("python -m x"), Picture("roc", roc(), "The curve")]),
            Section("Numbers", [Table("numbers", "Counts", pd.DataFrame({"n": [3]}), "of studies")]),
        ],
    )


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_is_given():
    page = html()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert "<script" not in page
    assert "A &lt;title&gt;" in page
    assert '<p class="notice">1 &lt; 2</p>' in page


def test_each_chapter_is_linked():
    page = html()
    assert re.findall(r'<a href="#(s\d)">([^<]*)</a>', page) == [("s0", "First &amp; last"), ("s1", "Numbers")]
    assert [page.count(f'id="s{place}"') for place in range(2)] == [1, 1]


def test_the_pdf_has_pages_of_text():
    pdf = document_pdf(html())
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 5000  # a figure and the fonts of its text


def test_a_damaged_radiograph_is_still_one_after_a_pdf():
    document_pdf(html())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_figures_are_the_same_bytes_for_the_same_numbers():
    assert as_svg(roc()) == as_svg(roc())
    image = Image.open(io.BytesIO(as_png(roc())))
    assert image.format == "PNG"
    assert min(image.size) > 500


def test_every_figure_draws_also_with_little_to_show():
    bins = [ReliabilityBin(0.1, 0.2, 0.05, 0.4, 9), ReliabilityBin(0.9, 1.0, 0.7, 1.0, 8)]
    example = Example("hand", np.zeros((32, 32), np.uint8), np.ones((4, 4), np.float32), 0.5)
    for figure in (
        roc_figure([], []),
        reliability_figure([("ensemble", bins), ("calibrated", bins[:1])]),
        forest_figure([("hand", 0.9, 0.8, 0.95), ("wrist", 0.7, None, None)], "AUROC"),
        gallery_figure([("true positives", [example, example]), ("false negatives", [example])]),
        gallery_figure([]),
    ):
        assert as_svg(figure).startswith(b"<?xml")


def test_a_radiograph_keeps_the_proportions_of_its_view():
    tall = Example("", np.full((40, 40), 200, np.uint8), np.zeros((4, 4), np.float32), 0.5)
    axes = gallery_figure([("kind", [tall])]).axes[0]
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    assert width / height / axes.get_aspect() == 0.5
