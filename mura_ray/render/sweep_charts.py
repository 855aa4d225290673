"""The two charts of a search's page, as inline SVG: validation losses by epoch, and parallel coordinates.

Colours are CSS variables of the page, so that both follow its light or dark scheme.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

WIDTH, CURVES_HEIGHT, PARALLEL_HEIGHT = 1100, 400, 420
LABEL_GAP = 15
FENCE = 3.0
"""Losses above the upper quartile by so many interquartile ranges are drawn at the chart's edge."""


@dataclass(frozen=True)
class Axis:
    """A searched setting and where its values came from: both bounds, or every choice."""

    name: str
    scale: Literal["linear", "log", "choice"]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Line:
    """A trial in a chart.

    Attributes:
        id: of the trial.
        points: (epoch, loss) in the curves.
        place: among those to highlight, 0 the best; None for the others.
        failed: whether it failed.
        title: what a tooltip says.
        values: in the parallel coordinates: one an axis, and last the loss, None where there is none.
    """

    id: str
    points: Sequence[tuple[float, float]]
    place: int | None
    failed: bool
    title: str
    values: Sequence[Any] = field(default_factory=list)


def curves(lines: Sequence[Line], epochs: int) -> str:
    """Validation losses by epoch; those to highlight in colours and with their names at the right."""
    left, right, top, bottom = 58, 150, 16, 42
    low, high, cut = loss_range([loss for line in lines for _, loss in line.points])
    x = _scale(1, max(epochs, 2), left + 8, WIDTH - right)
    y = _scale(low, high, CURVES_HEIGHT - bottom, top)
    parts = []
    for tick in nice_ticks(low, high, 6):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for epoch in [tick for tick in nice_ticks(1, max(epochs, 2), 12) if tick == int(tick)]:
        parts.append(
            f'<text x="{x(epoch):.1f}" y="{CURVES_HEIGHT - bottom + 20}" text-anchor="middle">{epoch:g}</text>'
        )
    parts.append(f'<text x="{(left + WIDTH - right) / 2}" y="{CURVES_HEIGHT - 6}" text-anchor="middle">epoch</text>')
    labels = []
    for line in sorted(lines, key=lambda line: -1 if line.place is None else 100 - line.place):
        spots = [(x(epoch), y(min(loss, high))) for epoch, loss in line.points if math.isfinite(loss)]
        chosen = min(spots, key=lambda spot: -spot[1], default=None) if line.place is not None else None
        parts.append(_trial(line, spots, dots=True, ring=chosen))
        if line.place is not None and spots:
            labels.append((spots[-1], line))
    parts += _labels(labels, WIDTH - right, top, CURVES_HEIGHT - bottom)
    note = f"<p class=legend>Losses above {high:.3g} are drawn at the upper edge.</p>" if cut else ""
    return _svg(CURVES_HEIGHT, "Validation loss of each trial by epoch", parts) + note


def parallel(lines: Sequence[Line], axes: Sequence[Axis]) -> str:
    """A line a trial through its searched settings to its best loss, coloured by that."""
    losses = [line.values[-1] for line in lines if line.values[-1] is not None]
    low, high, cut = loss_range(losses) if losses else (0.0, 1.0, False)
    top, bottom = 66, 24
    span = (PARALLEL_HEIGHT - bottom, top)
    scales: list[Callable[[Any], float]] = [axis_scale(axis, *span) for axis in axes]
    loss_y = _scale(low, high, *span)
    xs = np.linspace(84, WIDTH - 84, len(axes) + 1)
    parts = []
    share = _scale(low, high, 0.0, 100.0)
    # The highest losses first, so that the lowest lie on top.
    for line in sorted(lines, key=lambda line: -(line.values[-1] if line.values[-1] is not None else math.inf)):
        loss = line.values[-1]
        spots = [(float(x), scale(value)) for x, scale, value in zip(xs, scales, line.values, strict=False)]
        colour = "var(--quiet)"
        if loss is not None:
            loss = min(loss, high)
            spots.append((float(xs[-1]), loss_y(loss)))
            colour = f"color-mix(in oklab, var(--high) {share(loss):.0f}%, var(--low))"
        parts.append(_trial(line, spots, colour=colour))
    for axis, scale, x in zip(axes, scales, xs[:-1], strict=True):
        parts += _axis(axis.name, [(scale(tick), _tick_text(tick)) for tick in axis_ticks(axis)], x, *span)
    loss_ticks = [(loss_y(tick), f"{tick:g}") for tick in nice_ticks(low, high, 6)]
    parts += _axis("best validation_loss", loss_ticks, xs[-1], *span)
    legend = f"<div class=legend>{low:.3g}<i></i>{high:.3g}{' and more' if cut else ''}, best validation loss</div>"
    return _svg(PARALLEL_HEIGHT, "Searched settings and best validation loss of each trial", parts) + legend


def loss_range(losses: Sequence[float]) -> tuple[float, float, bool]:
    """The range to draw losses in: lowest, highest, and whether some lie above it (`FENCE`)."""
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    if not len(finite):
        return 0.0, 1.0, False
    lower, upper = np.percentile(finite, [25, 75])
    fence = upper + FENCE * max(upper - lower, 0.01 * abs(upper))
    low, high = float(finite.min()), float(min(finite.max(), fence))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    return max(low - margin, min(low, 0.0)), high + margin, bool(finite.max() > fence)  # no loss is below 0


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within a range, at most so many and one."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def axis_ticks(axis: Axis) -> list[Any]:
    """Values to name on an axis."""
    if axis.scale == "choice":
        return list(axis.values)
    low, high = axis.values
    if axis.scale == "linear":
        return nice_ticks(low, high, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    inside = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
    return inside if len(inside) > 1 else [low, high]


def axis_scale(axis: Axis, start: float, end: float) -> Callable[[Any], float]:
    """From a setting's values to places between two."""
    if axis.scale == "choice":
        place = _scale(-0.5, len(axis.values) - 0.5, start, end)
        return lambda value: place(axis.values.index(value))
    low, high = axis.values
    if axis.scale == "log":
        log_place = _scale(math.log(low), math.log(high), start, end)
        return lambda value: log_place(math.log(value))
    return _scale(low, high, start, end)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _tick_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trial(
    line: Line,
    spots: Sequence[tuple[float, float]],
    *,
    colour: str | None = None,
    dots: bool = False,
    ring: tuple[float, float] | None = None,
) -> str:
    """A trial's line, with a wider invisible one to point at, perhaps a dot at each point and a ring around one."""
    kinds = "".join([" member"] * (line.place is not None) + [" failed"] * line.failed)
    colour = colour or (f"var(--m{line.place % 5})" if line.place is not None else "var(--quiet)")
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in spots) if spots else ""
    radius = 3.5 if line.place is not None else 2
    circles = "".join(f'<circle class="dots{kinds}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in spots)
    if not dots:
        circles = ""
    elif ring:
        circles += f'<circle class="ring" cx="{ring[0]:.1f}" cy="{ring[1]:.1f}" r="7"/>'
    return (
        f'<g data-t="{escape(line.id)}" style="--c:{colour}"><title>{escape(line.title)}</title>'
        f'<path class="trial{kinds}" d="{path}"/><path class="hit" d="{path}"/>{circles}</g>'
    )


def _labels(labels: Sequence[tuple[tuple[float, float], Line]], x: float, top: float, bottom: float) -> list[str]:
    """Names beside the ends of lines, moved apart where they would cover each other."""
    ordered = sorted(labels, key=lambda label: label[0][1])
    places: list[float] = []
    for (_, y), _ in ordered:
        places.append(max(y, places[-1] + LABEL_GAP if places else top))
    overflow = max(0.0, places[-1] - bottom) if places else 0.0
    places = [place - overflow for place in places]
    return [
        f'<g data-t="{escape(line.id)}" style="--c:var(--m{(line.place or 0) % 5})">'
        f'<path class="leader" d="M{end_x + 5:.1f} {end_y:.1f} L{x + 10} {place:.1f}"/>'
        f'<text class="label" x="{x + 14}" y="{place + 4:.1f}">{(line.place or 0) + 1} · {escape(line.id)}</text></g>'
        for ((end_x, end_y), line), place in zip(ordered, places, strict=True)
    ]


def _axis(name: str, ticks: Sequence[tuple[float, str]], x: float, bottom: float, top: float) -> list[str]:
    lines = textwrap.wrap(name.rpartition(".")[2].replace("_", " "), 12, break_long_words=False)
    head = top - 16 - 14 * (len(lines) - 1)
    spans = "".join(f'<tspan x="{x:.1f}" y="{head + 14 * i}">{escape(text)}</tspan>' for i, text in enumerate(lines))
    parts = [
        f'<text class="name" text-anchor="middle"><title>{escape(name)}</title>{spans}</text>',
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>',
    ]
    for y, text in ticks:
        parts.append(f'<line class="axis" x1="{x - 4:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 7:.1f}" y="{y + 4:.1f}" text-anchor="end" class="tick">{escape(text)}</text>')
    return parts


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>'
