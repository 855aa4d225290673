"""The page of a search: its trials, their curves, the settings they tried, the members and why, and what it cost.

One HTML file without scripts, fonts or pictures from elsewhere. Knows no Ray and no storage: rows in, text out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from mura_ray.domain import NOTICE
from mura_ray.render import sweep_charts
from mura_ray.render.sweep_charts import Axis, Line

TAIL_LINES = 40
"""Of a failed trial's log on the page; the log itself is complete."""

COST = (
    "Cost is workers × GPUs (or CPUs) of a worker × the time of the epochs that trials logged, training and "
    "validation. It leaves out epochs that were never finished, the start of workers, copies of the data set and work "
    "done again after faults."
)

Status = Literal["running", "interrupted", "finished", "stopped early", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        id: its name.
        settings: the searched ones, by dotted name.
        epochs: what it logged, a row an epoch: epoch, val_loss, train_loss, epoch_s, workers.
        status: where it stands.
        cpus_per_worker: CPUs that each of its workers held.
        gpus_per_worker: GPUs.
        error: where it failed, its log.
        log: place of that log.
    """

    id: str
    settings: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    status: Status
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    error: str | None = None
    log: str = ""

    @property
    def best(self) -> tuple[float, int] | None:
        """Its lowest validation loss and the epoch of that; None before the first epoch."""
        finite = [row for row in self.epochs if math.isfinite(row["val_loss"])]
        return min(((row["val_loss"], row["epoch"]) for row in finite), default=None)

    @property
    def seconds(self) -> float:
        """Of its epochs."""
        return sum(row["epoch_s"] for row in self.epochs)

    def hours(self, kind: Literal["CPU", "GPU"]) -> float:
        """CPU-hours or GPU-hours of its epochs."""
        each = self.gpus_per_worker if kind == "GPU" else self.cpus_per_worker
        return sum(row["epoch_s"] * row["workers"] for row in self.epochs) * each / 3600


@dataclass(frozen=True)
class Sweep:
    """A search as it stands.

    Attributes:
        name: of the search.
        data: name of its data set.
        data_id: id of that.
        num_trials: trials of the whole search.
        epochs: epochs of a trial that is not stopped early.
        ensemble_size: trials that become the ensemble.
        axes: the searched settings.
        trials: those that began.
        members: ids of the ensemble's, lowest validation loss first; empty before there is one.
        ensemble_id: of the ensemble; None before there is one.
    """

    name: str
    data: str
    data_id: str
    num_trials: int
    epochs: int
    ensemble_size: int
    axes: Sequence[Axis]
    trials: Sequence[Trial]
    members: Sequence[str] = ()
    ensemble_id: str | None = None


def ranked(sweep: Sweep) -> list[Trial]:
    """The trials that may become members, those that did not fail and were validated, lowest loss first."""
    eligible = [trial for trial in sweep.trials if trial.status != "failed" and trial.best]
    return sorted(eligible, key=lambda trial: (trial.best, trial.id) if trial.best else ())


def leaders(sweep: Sweep) -> list[str]:
    """The members, or before there is an ensemble those that would be it now."""
    return list(sweep.members) or [trial.id for trial in ranked(sweep)[: sweep.ensemble_size]]


def sweep_page(sweep: Sweep, updated: str) -> str:
    """The page.

    Args:
        sweep: what it shows.
        updated: when it was made, as text.
    """
    is_over = sweep.ensemble_id is not None or not any(trial.status == "running" for trial in sweep.trials)
    sections = [
        _headline(sweep, updated, is_over),
        _section("Validation loss", _curves(sweep), _CURVES_HINT),
        _section("Settings", _parallel(sweep), _PARALLEL_HINT),
        _section("Trials", _table(sweep), _why(sweep)),
        _failures(sweep),
    ]
    return _PAGE.format(
        title=escape(sweep.name),
        reload="" if is_over else '<meta http-equiv="refresh" content="60">\n',
        style=_STYLE,
        body="\n".join(sections),
        disclaimer=NOTICE,
        cost=COST,
        script=_SCRIPT,
    )


_CURVES_HINT = (
    "Each epoch is a point. In colour: the ensemble, or the lowest so far, with a ring around the epoch that counts. "
    "Point at a trial to follow it; a click keeps it."
)
_PARALLEL_HINT = (
    "Each trial is a line through the settings that it drew, to its lowest validation loss. Those in colour above "
    "are thicker, failed ones dashed."
)


def _headline(sweep: Sweep, updated: str, is_over: bool) -> str:
    counts = {
        name: sum(trial.status == name for trial in sweep.trials)
        for name in ("finished", "stopped early", "failed", "interrupted", "running")
    }
    counts["waiting"] = sweep.num_trials - sum(counts.values())
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    state = f"ensemble {sweep.ensemble_id}" if sweep.ensemble_id else "no ensemble yet"
    facts = {
        "trials": f"{sweep.num_trials}: {', '.join(parts)}",
        "data set": f"{sweep.data} ({sweep.data_id})",
        "result": state,
        "cost": _total_cost(sweep),
        "as of": f"{updated}{'' if is_over else ', goes on; this page reloads itself'}",
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<header><h1>{escape(sweep.name)}</h1>\n<dl>{items}</dl></header>"


def _section(title: str, content: str, hint: str) -> str:
    return f"<section><h2>{title}</h2>\n<p>{hint}</p>\n{content}</section>"


def _curves(sweep: Sweep) -> str:
    best = leaders(sweep)
    lines = [
        Line(
            id=trial.id,
            points=[(float(row["epoch"]), float(row["val_loss"])) for row in trial.epochs],
            place=best.index(trial.id) if trial.id in best else None,
            failed=trial.status == "failed",
            title=_title(trial),
        )
        for trial in sweep.trials
        if trial.epochs
    ]
    return sweep_charts.curves(lines, sweep.epochs) if lines else "<p>No epoch is done yet.</p>"


def _parallel(sweep: Sweep) -> str:
    best = leaders(sweep)
    rows = [
        Line(
            id=trial.id,
            points=[],
            place=best.index(trial.id) if trial.id in best else None,
            failed=trial.status == "failed",
            title=_title(trial),
            values=[*(trial.settings[axis.name] for axis in sweep.axes), trial.best[0] if trial.best else None],
        )
        for trial in sweep.trials
    ]
    return sweep_charts.parallel(rows, sweep.axes) if rows else "<p>No trial began yet.</p>"


def _title(trial: Trial) -> str:
    settings = ", ".join(f"{name.rpartition('.')[2]} {short(value)}" for name, value in trial.settings.items())
    best = f"{trial.best[0]:.4f} at epoch {trial.best[1]}" if trial.best else "no epoch done"
    return f"{trial.id}: {best}; {settings}"


def _why(sweep: Sweep) -> str:
    verb = "became" if sweep.ensemble_id else "become"
    return (
        f"The {sweep.ensemble_size} lowest validation losses {verb} the ensemble, each trial with its best epoch. Of "
        f"{len(sweep.trials)} trials that began, {len(ranked(sweep))} are eligible: those that did not fail and "
        "finished an epoch, whether or not they were stopped early."
    )


def _table(sweep: Sweep) -> str:
    order = {trial.id: place for place, trial in enumerate(ranked(sweep), start=1)}
    best = leaders(sweep)
    kind = _cost_kind(sweep)
    names = [axis.name for axis in sweep.axes]
    head = ["trial", "ensemble", "best loss", "epoch", "status", "time", f"{kind}-h"]
    numeric = {"best loss", "epoch", "time", f"{kind}-h", *names}
    cells = [
        f"<th{' class=n' if name in numeric else ''} title='{escape(name)}'>{_breakable(name)}</th>"
        for name in [*head, *names]
    ]
    rows = []
    for trial in sorted(sweep.trials, key=lambda trial: (order.get(trial.id, math.inf), trial.id)):
        place = order.get(trial.id)
        values = [
            f"<td>{escape(trial.id)}</td>",
            f"<td>{escape(_choice(sweep, trial, place, best))}</td>",
            f"<td class=n>{f'{trial.best[0]:.4f}' if trial.best else ''}</td>",
            f"<td class=n>{f'{trial.best[1]} of {len(trial.epochs)}' if trial.best else ''}</td>",
            f"<td>{escape(_status(sweep, trial))}</td>",
            f"<td class=n>{duration(trial.seconds)}</td>",
            f"<td class=n>{_hours(trial.hours(kind))}</td>",
            *(f"<td class=n>{escape(short(trial.settings[name]))}</td>" for name in names),
        ]
        kinds = " ".join(["member"] * (trial.id in best) + ["failed"] * (trial.status == "failed"))
        mark = f' style="--c:var(--m{best.index(trial.id) % 5})"' if trial.id in best else ""
        rows.append(f'<tr class="{kinds}" data-t="{escape(trial.id)}"{mark}>{"".join(values)}</tr>')
    body = "\n".join(rows)
    return f"<div class=scroll><table><thead><tr>{''.join(cells)}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _breakable(name: str) -> str:
    return escape(name.rpartition(".")[2]).replace("_", "_<wbr>")


def _choice(sweep: Sweep, trial: Trial, place: int | None, best: Sequence[str]) -> str:
    """Why a trial is a member or not."""
    num_eligible = len(ranked(sweep))
    if trial.id in best:
        return f"member {best.index(trial.id) + 1}" if sweep.ensemble_id else f"among the {len(best)} lowest so far"
    if trial.status == "failed":
        return "no: failed"
    return f"no: rank {place} of {num_eligible}" if place else "no: no epoch done yet"


def _status(sweep: Sweep, trial: Trial) -> str:
    done = trial.epochs[-1]["epoch"] if trial.epochs else 0
    return {
        "stopped early": f"stopped early at epoch {done}",
        "failed": f"failed in epoch {done + 1}" if done < sweep.epochs else "failed",
        "running": f"running, {done} of {sweep.epochs} epochs",
        "interrupted": f"interrupted after epoch {done}",
    }.get(trial.status, trial.status)


def _failures(sweep: Sweep) -> str:
    failed = [trial for trial in sweep.trials if trial.status == "failed"]
    if not failed:
        return ""
    parts = []
    for trial in failed:
        why, _, details = (trial.error or "its log is not written yet").partition("\n\n")
        lines = details.rstrip().splitlines()
        tail = "\n".join(lines[-TAIL_LINES:])
        left_out = f" (its last {TAIL_LINES} lines of {len(lines)})" if len(lines) > TAIL_LINES else ""
        parts.append(
            f'<article data-t="{escape(trial.id)}"><h3>{escape(trial.id)}</h3>'
            f"<p class=why>{escape(why)}</p>"
            f"<details><summary>log{left_out}: <code>{escape(trial.log)}</code></summary>"
            f"<pre>{escape(tail)}</pre></details></article>"
        )
    return _section(
        "Failed trials",
        "\n".join(parts),
        "Each was tried again as often as the space file's recovery says, where that can help.",
    )


def _cost_kind(sweep: Sweep) -> Literal["CPU", "GPU"]:
    return "GPU" if any(trial.gpus_per_worker for trial in sweep.trials) else "CPU"


def _total_cost(sweep: Sweep) -> str:
    kind = _cost_kind(sweep)
    total = sum(trial.hours(kind) for trial in sweep.trials)
    return f"{_hours(total)} {kind}-hours{'' if kind == 'GPU' else ' (no GPUs)'}"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


def short(value: Any) -> str:
    """A setting, as short as it can be told."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time in the units that suit it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --raised: #fff; --line: #d5d9dd; --text: #1d2125; --faint: #5c656d;
  --accent: #0b62a8; --alarm: #b3261e; --low: #0072c6; --high: #d98200; --quiet: #9aa3ab;
  --m0: #0b62a8; --m1: #b8500f; --m2: #14804a; --m3: #8a3fa8; --m4: #b01657; }
@media (prefers-color-scheme: dark) { :root { --ground: #101214; --raised: #1b1f23; --line: #3a4249; --text: #e8eaed;
  --faint: #a8b0b8; --accent: #7cc4ff; --alarm: #ff8a80; --low: #4db4ff; --high: #ffb44d; --quiet: #6d767e;
  --m0: #7cc4ff; --m1: #f2c94c; --m2: #7ee0a5; --m3: #d8a6f0; --m4: #ff9cc2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 0 1rem 2rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
.notice { margin: 0 -1rem; padding: .4rem 1rem; background: #4a3200; color: #ffe0a3; }
h1 { margin: 1rem 0 .3rem; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 1.8rem 0 0; font-size: 1.2rem; }
h3 { margin: .8rem 0 0; font-size: 1rem; }
section > p, footer { margin: .1rem 0 .6rem; color: var(--faint); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--raised); }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
svg text.name { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--faint); stroke-width: 1; }
.trial { fill: none; stroke: var(--c, var(--quiet)); stroke-width: 1.2; opacity: .6; }
.trial.member { stroke-width: 2.4; opacity: 1; }
.trial.failed { stroke: var(--alarm); stroke-dasharray: 5 4; opacity: .8; }
.dots { fill: var(--c, var(--quiet)); stroke: none; }
.dots.failed { fill: var(--alarm); }
svg text.label { fill: var(--c); font-weight: 600; }
.ring { fill: none; stroke: var(--c); stroke-width: 1.5; }
svg text.tick { paint-order: stroke; stroke: var(--raised); stroke-width: 4px; stroke-linejoin: round; }
.leader { stroke: var(--c); stroke-width: .7; opacity: .7; fill: none; }
.hit { fill: none; stroke: transparent; stroke-width: 9; pointer-events: stroke; }
svg.on g[data-t]:not(.hot) { opacity: .15; }
g.hot .trial { stroke-width: 3.2; opacity: 1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; white-space: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { padding-left: .6rem; }
tr.member td:first-child { box-shadow: inset 4px 0 var(--c); font-weight: 600; }
tr.failed td { color: var(--alarm); }
tbody tr.hot td { background: color-mix(in srgb, var(--accent) 16%, transparent); }
.why { margin: 0; white-space: pre-line; color: var(--alarm); overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--raised);
  white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
summary { cursor: pointer; overflow-wrap: anywhere; }
footer { margin-top: 2rem; }
.legend { display: flex; gap: .6rem; align-items: center; font-size: .85rem; color: var(--faint); margin-top: .3rem; }
.legend i { width: 10rem; height: .6rem; border-radius: .3rem;
  background: linear-gradient(in oklab to right, var(--low), var(--high)); }
@media print { .notice { color: inherit; background: none; } }
"""

_SCRIPT = """
let kept = null;
function show(id) {
  for (const e of document.querySelectorAll("[data-t]")) e.classList.toggle("hot", e.dataset.t === id);
  for (const e of document.querySelectorAll("svg")) e.classList.toggle("on", id !== null);
}
for (const e of document.querySelectorAll("g[data-t], tr[data-t]")) {
  e.addEventListener("mouseenter", () => show(e.dataset.t));
  e.addEventListener("mouseleave", () => show(kept));
  e.addEventListener("click", () => { kept = kept === e.dataset.t ? null : e.dataset.t; show(kept); });
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
{reload}<title>{title}: search</title>
<style>{style}</style>
</head>
<body>
<div class="notice">{disclaimer}</div>
{body}
<footer><p>{cost}</p><p>{disclaimer}</p></footer>
<script>{script}</script>
</body>
</html>
"""
