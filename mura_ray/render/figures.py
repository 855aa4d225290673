"""The figures of an evaluation, as SVG for pages and PNG for slides: ROC with readers, reliability, radiographs.

The first is in the form of the paper's Figure 3, the last in that of its Figure 4. Knows no files and no statistics.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mura_ray.render.overlay import overlay

PNG_DPI = 200

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "mura_ray",
}
_MODEL, _SECOND, _MUTED = "#1b6ca8", "#c05621", "#777777"
_READERS = ("#c05621", "#2f855a", "#6b46c1", "#b7791f", "#97266d", "#2c7a7b")


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve: false and true positive rates, [k] each, from (0, 0) to (1, 1)."""

    name: str
    false_positive_rates: np.ndarray
    true_positive_rates: np.ndarray


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where somebody who decides stands in the plane of a ROC curve."""

    name: str
    false_positive_rate: float
    true_positive_rate: float
    is_reader: bool


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Studies of similar probability: their mean probability, the share that is abnormal and its interval, and n.

    NaN for share and interval where there are too few studies for one.
    """

    predicted: float
    observed: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A view to show: its pixels, uint8 [S, S], its raw map, [h, w], its sides' ratio width / height, and its title."""

    title: str
    gray: np.ndarray
    cam: np.ndarray
    aspect: float


def roc_figure(curves: Sequence[Curve], points: Sequence[OperatingPoint]) -> Figure:
    """ROC curves with the operating points of the model and of readers (paper, Figure 3)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square()
        for curve, color in zip(curves, (_MODEL, _SECOND), strict=False):
            axes.plot(curve.false_positive_rates, curve.true_positive_rates, color=color, label=curve.name, lw=1.6)
        axes.plot([0, 1], [0, 1], color=_MUTED, lw=0.8, ls=":")
        readers = [point for point in points if point.is_reader]
        for point in points:
            place = (point.false_positive_rate, point.true_positive_rate)
            if point.is_reader:
                color = _READERS[readers.index(point) % len(_READERS)]
                axes.plot(*place, marker="x", ls="", color=color, ms=7, mew=1.8, label=point.name)
            else:
                axes.plot(*place, marker="o", ls="", color=_MODEL, ms=6, label=point.name)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if curves or points:
            axes.legend(loc="lower right")
        return figure


def reliability_figure(series: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> Figure:
    """Share of abnormal studies by predicted probability, and how many studies each bin has; a series a colour."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 5.4), layout="constrained")
        axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=_MUTED, lw=0.8, ls=":", label="perfectly calibrated")
        for place, (name, bins) in enumerate(series):
            color = (_MODEL, _SECOND)[place % 2]
            x = np.array([one.predicted for one in bins])
            y = np.array([one.observed for one in bins])
            margins = np.array([[one.observed - one.low for one in bins], [one.high - one.observed for one in bins]])
            axes.errorbar(x, y, yerr=np.fmax(margins, 0), color=color, marker="o", ms=4, lw=1.2, capsize=2, label=name)
            shift = (place - (len(series) - 1) / 2) * 0.03
            counts.bar(x + shift, [one.num for one in bins], width=0.028, color=color)
        axes.set(ylabel="share abnormal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(loc="upper left")
        counts.set(xlabel="predicted probability", ylabel="studies")
        return figure


def forest_figure(rows: Sequence[tuple[str, float, float | None, float | None]], label: str) -> Figure:
    """A number and its interval, a row a stratum; strata whose number is not estimable are left out beforehand."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 0.34 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        for place, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=_MODEL, lw=1.6, solid_capstyle="butt")
            axes.plot(value, place, marker="s", color=_MODEL, ms=5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=label)
        return figure


def gallery_figure(rows: Sequence[tuple[str, Sequence[Example]]]) -> Figure:
    """Radiographs with their maps painted over them, a row a kind (paper, Figure 4)."""
    columns = max((len(examples) for _, examples in rows), default=1) or 1
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.9 * columns + 0.4, 2.35 * max(len(rows), 1)), layout="constrained")
        grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for (name, examples), line in zip(rows, grid, strict=False):
            line[0].text(
                -0.08, 0.5, name, rotation=90, ha="right", va="center", transform=line[0].transAxes, fontsize=9
            )
            for example, axes in zip(examples, line, strict=False):
                rows_of_pixels, columns_of_pixels = example.gray.shape
                axes.imshow(
                    overlay(example.gray, example.cam),
                    aspect=columns_of_pixels / rows_of_pixels / example.aspect,
                    interpolation="bilinear",
                )
                axes.set_title(example.title, fontsize=7)
        return figure


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure, its text as outlines."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def as_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI)
    return file.getvalue()


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_aspect("equal")
    return figure, axes
