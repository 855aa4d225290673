"""The results of the benchmark of loaders as tables, as goals met or missed, and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness import Memory, Spread, markdown_table
from benchmarks.loader.contenders import LIMIT, OURS, Contender
from benchmarks.loader.measure import FirstEpoch, Round

GOAL_IMAGES_PER_S, GOAL_OF_LIMIT, GOAL_OPENING_S = 50_000, 0.6, 3.0
GOAL_TIMES = {"png_pil": 100, "png_cv2": 100, "webdataset_raw": 10, "streaming_raw": 10}


@dataclass
class Result:
    """Everything measured of one contender.

    Attributes:
        contender: who.
        trials: images/s by number of workers, short; empty where there was no choice.
        workers: the number chosen.
        openings: seconds to the first batch, each in a fresh process.
        memory: peaks while it reads.
        disk_bytes: of its files.
        rounds: those of all contenders correspond.
    """

    contender: Contender
    workers: int
    trials: dict[int, float] = field(default_factory=dict)
    openings: list[float] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    disk_bytes: int = 0
    rounds: list[Round] = field(default_factory=list)

    @property
    def images_per_s(self) -> Spread:
        """Throughput over the rounds."""
        return Spread.of([one.images_per_s for one in self.rounds])

    def ratio(self, other: "Result") -> Spread:
        """Its throughput by another's, round by round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return Spread.of([mine.images_per_s / theirs.images_per_s for mine, theirs in pairs])


@dataclass
class RemoteResult:
    """The first epochs of one contender from S3."""

    contender: Contender
    workers: int
    megabytes: float
    epochs: list[FirstEpoch]

    def spread(self, measure: Callable[[FirstEpoch], float]) -> Spread:
        """Of a measure over the runs."""
        return Spread.of([measure(one) for one in self.epochs])


def loader_table(results: Sequence[Result], num_images: int) -> str:
    """A row for each contender."""
    head = [
        "loader", "workers", "images/s (least - most)", "of the limit", "ours is faster by", "CPU ms/image",
        "KB/image on disk", "first batch s", "RSS MB", "own MB",
    ]  # fmt: skip
    by_name = {result.contender.name: result for result in results}
    limit, ours = by_name.get(LIMIT), by_name.get(OURS)
    rows = []
    for result in results:
        cpu_s = Spread.of([one.cpu_seconds / one.images for one in result.rounds])
        rows.append([
            result.contender.title,
            str(result.workers) if result.trials else "",
            result.images_per_s.text(),
            f"{100 * result.ratio(limit).median:.3g} %" if limit else "",
            f"{ours.ratio(result).median:,.3g} x" if ours else "",
            f"{1000 * cpu_s.median:.3g}",
            f"{result.disk_bytes / num_images / 1000:.0f}",
            Spread.of(result.openings).text(2),
            f"{result.memory.rss / 1e6:,.0f}",
            f"{result.memory.own / 1e6:,.0f}",
        ])  # fmt: skip
    return markdown_table(head, rows)


def remote_table(results: Sequence[RemoteResult], bytes_per_s: float) -> str:
    """A row for each contender that reads from S3."""
    head = ["loader", "workers", "MB an epoch", "at least s", "first batch s", "first epoch s", "second epoch s"]
    rows = []
    for result in results:
        rows.append([
            result.contender.title,
            str(result.workers or ""),
            f"{result.megabytes:,.0f}",
            f"{result.megabytes * 1e6 / bytes_per_s:.2f}",
            result.spread(lambda one: one.first_batch_s).text(2),
            result.spread(lambda one: one.epoch_s).text(2),
            result.spread(lambda one: one.second_epoch_s).text(2),
        ])  # fmt: skip
    return markdown_table(head, rows)


def goals(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The goals whose contenders took part: what, the aim, what was measured, and whether that is enough."""
    by_name = {result.contender.name: result for result in results}
    ours = by_name.get(OURS)
    if ours is None:
        return []
    found = [_goal("images/s before augmentation", GOAL_IMAGES_PER_S, ours.images_per_s)]
    if LIMIT in by_name:
        found.append(_goal("of the memmap limit", GOAL_OF_LIMIT, ours.ratio(by_name[LIMIT])))
    for name, times in GOAL_TIMES.items():
        if name in by_name:
            found.append(_goal(f"times as fast as {by_name[name].contender.title}", times, ours.ratio(by_name[name])))
    opening = Spread.of(ours.openings)
    found.append({
        "goal": "seconds from opening a verified cache to the first batch, at most", "aim": GOAL_OPENING_S,
        "measured": asdict(opening), "met": opening.median <= GOAL_OPENING_S,
    })  # fmt: skip
    return found


def goal_line(goal: dict[str, Any]) -> str:
    """A goal in words."""
    measured = Spread(**goal["measured"])
    verdict = "pass" if goal["met"] else "FAIL"
    return f"{verdict}  {goal['goal']}: {measured.text(0 if measured.median > 1000 else 2)}; goal {goal['aim']:,}"


def as_json(result: Result, num_images: int) -> dict[str, Any]:
    """A contender's figures."""
    return {
        "name": result.contender.name,
        "title": result.contender.title,
        "workers": result.workers,
        "images_per_s_by_workers": result.trials,
        "images_per_s": asdict(result.images_per_s),
        "first_batch_s": result.openings,
        "bytes_per_image": result.disk_bytes / num_images,
        "peak_rss_bytes": result.memory.rss,
        "peak_own_bytes": result.memory.own,
        "rounds": [asdict(one) for one in result.rounds],
    }


def _goal(what: str, aim: float, measured: Spread) -> dict[str, Any]:
    return {"goal": what, "aim": aim, "measured": asdict(measured), "met": measured.median >= aim}
