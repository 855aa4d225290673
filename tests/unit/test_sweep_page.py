import math
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from mura_ray.render.sweep_charts import Axis, axis_scale, axis_ticks, loss_range
from mura_ray.render.sweep_page import Status, Sweep, Trial, sweep_page

AXES = [Axis("learning_rate", "log", (1e-5, 1e-3)), Axis("precision", "choice", ("fp32", "bf16"))]

LOG = "loss <nan>\nsample ids: [7]\n\nframe 1\nframe 2"


def trial(name: str, losses: list[float], status: Status = "finished", **fields: Any) -> Trial:
    epochs = [
        {"epoch": epoch, "val_loss": loss, "train_loss": 1.0, "epoch_s": 1800.0, "workers": 2}
        for epoch, loss in enumerate(losses, start=1)
    ]
    return Trial(name, {"learning_rate": 1e-4, "precision": "bf16"}, epochs, status, **fields)


SWEEP = Sweep(
    name="search", data="MURA", data_id="d1", num_trials=5, epochs=3, ensemble_size=1, axes=AXES,
    trials=[
        trial("a", [0.5, 0.3, 0.4], gpus_per_worker=0.5),
        trial("b", [0.6, 0.7], "stopped early", gpus_per_worker=0.5),
        trial("c", [0.2], "failed", gpus_per_worker=0.5, error=LOG, log="runs/c/error.txt"),
        trial("d", [], "running", gpus_per_worker=0.5),
    ],
)  # fmt: skip


def row(page: str, name: str) -> list[str]:
    (found,) = re.findall(rf'<tr[^>]*data-t="{name}"[^>]*>(.*?)</tr>', page)
    return re.findall(r"<td[^>]*>(.*?)</td>", found)


def test_the_table_says_of_each_trial_what_it_reached_and_why_it_was_chosen_or_not() -> None:
    page = sweep_page(replace(SWEEP, members=["a"], ensemble_id="e1"), "now")
    assert row(page, "a")[1:7] == ["member 1", "0.3000", "2 of 3", "finished", "1 h 30 min", "1.50"]
    assert row(page, "b")[1:7] == [
        "no: rank 2 of 2",
        "0.6000",
        "1 of 2",
        "stopped early at epoch 2",
        "1 h 00 min",
        "1.00",
    ]
    assert row(page, "c")[1:5] == ["no: failed", "0.2000", "1 of 1", "failed in epoch 2"]
    assert row(page, "d")[1] == "no: no epoch done yet"
    assert "3.00 GPU-hours" in page
    assert "ensemble e1" in page
    assert "1 finished, 1 stopped early, 1 failed, 1 running, 1 waiting" in page


def test_a_failed_trial_is_shown_with_its_reason_its_log_and_the_place_of_that() -> None:
    page = sweep_page(SWEEP, "now")
    assert "loss &lt;nan&gt;\nsample ids: [7]</p>" in page
    assert "<code>runs/c/error.txt</code>" in page
    assert "<pre>frame 1\nframe 2</pre>" in page


def test_nothing_that_a_search_is_called_becomes_markup() -> None:
    evil = '"><script>alert(1)</script>'
    sweep = replace(SWEEP, name=evil, data=evil, trials=[replace(SWEEP.trials[2], id=evil, error=evil, log=evil)])
    assert "<script>alert" not in sweep_page(sweep, "now")


def test_the_page_fetches_nothing_and_its_charts_are_sound_xml() -> None:
    page = sweep_page(SWEEP, "now")
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        ElementTree.fromstring(chart)


def test_the_page_reloads_itself_only_while_trials_run() -> None:
    assert 'http-equiv="refresh"' in sweep_page(SWEEP, "now")
    assert 'http-equiv="refresh"' not in sweep_page(replace(SWEEP, ensemble_id="e1", members=["a"]), "now")


def test_a_search_without_any_epoch_has_a_page() -> None:
    assert "No epoch is done yet" in sweep_page(replace(SWEEP, trials=[]), "now")


def test_cost_is_cpu_hours_where_there_are_no_gpus() -> None:
    sweep = replace(SWEEP, trials=[trial("a", [0.5], cpus_per_worker=4)])
    assert "4.00 CPU-hours" in sweep_page(sweep, "now")


def test_a_log_axis_has_equal_ratios_at_equal_distances() -> None:
    place = axis_scale(AXES[0], 0.0, 100.0)
    assert [round(place(value), 9) for value in (1e-5, 1e-4, 1e-3)] == [0.0, 50.0, 100.0]
    assert {1e-5, 1e-4, 1e-3} <= {float(f"{tick:g}") for tick in axis_ticks(AXES[0])}


def test_one_exploded_loss_does_not_flatten_the_others() -> None:
    low, high, cut = loss_range([0.3, 0.31, 0.32, 0.33, 0.35, 1e6, math.nan])
    assert low < 0.3
    assert high < 1
    assert cut


def test_no_axis_of_losses_goes_below_zero() -> None:
    low, high, cut = loss_range([0.4, 5300.0])
    assert (low, cut) == (0.0, False)
    assert high > 5300
