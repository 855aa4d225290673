"""What the server measures of itself, for Prometheus; `grafana.json` shows exactly this. Knows no Ray.

Nothing in it tells one study, patient or file from another.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from starlette._utils import get_route_path  # the router's own, as in serve/access.py
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mura_ray.domain import PROBABILITY_EDGES, STUDY_TYPES, StudyPrediction
from serve.problems import MEDIA_TYPE

Stage = Literal["decode", "wait", "forward", "encode", "total"]
"""decode: files to pixels. wait: for the pass before. forward: a pass over the views of a batch. encode: maps and PNG.
total: an answered study, from its request's first byte to the answer's last; one of a worklist, from its turn on."""

Record = Callable[[str, float, dict[str, str]], None]
"""Takes an instrument's name, a value and the tags."""

PREFIX = "ray_"
"""Ray puts this before every name that it exports."""


@dataclass(frozen=True)
class Instrument:
    """A histogram where it has boundaries; else a counter, or a gauge, which is set and not added to."""

    name: str
    description: str
    tags: tuple[str, ...] = ()
    boundaries: Sequence[float] | None = None
    is_gauge: bool = False

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of its series in Prometheus."""
        if self.is_gauge:
            return (f"{PREFIX}{self.name}",)
        suffixes = ("_total",) if self.boundaries is None else ("_bucket", "_sum", "_count")
        return tuple(f"{PREFIX}{self.name}{suffix}" for suffix in suffixes)


_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)

STAGE_SECONDS = Instrument("mura_stage_seconds", "time of one stage of a prediction", ("stage",), _SECONDS)
BATCH_VIEWS = Instrument("mura_batch_views", "views in one forward pass", (), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64))
PROBABILITY = Instrument("mura_probability", "study probabilities", ("study_type",), PROBABILITY_EDGES)
PROBABILITY_REFERENCE = Instrument(
    "mura_probability_reference",
    "share of the reference's studies whose probability is at most `le`",
    ("study_type", "le"),
    is_gauge=True,
)
PROBLEMS = Instrument("mura_problems", "requests and studies answered with a problem", ("kind", "status"))
VIEWS = Instrument("mura_views", "views predicted", ("format",))
SHADOW_DIFFERENCE = Instrument(
    "mura_shadow_difference",
    "how far a candidate's study probability is from the answered one",
    ("decision",),
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
INSTRUMENTS = (STAGE_SECONDS, BATCH_VIEWS, PROBABILITY, PROBABILITY_REFERENCE, PROBLEMS, VIEWS, SHADOW_DIFFERENCE)


def ignore(_name: str, _value: float, _tags: dict[str, str], /) -> None:
    """Records nothing: for applications without Ray."""


class Metrics:
    """What happened, in the server's words."""

    def __init__(self, record: Record = ignore) -> None:
        self._record = record

    def stage(self, stage: Stage, seconds: float) -> None:
        """A stage of a prediction took so long."""
        self._record(STAGE_SECONDS.name, seconds, {"stage": stage})

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """The block is a stage; one that fails does not count."""
        started = perf_counter()
        yield
        self.stage(stage, perf_counter() - started)

    def forward_pass(self, num_views: int, seconds: float) -> None:
        """A pass over so many views took so long."""
        self.stage("forward", seconds)
        self._record(BATCH_VIEWS.name, num_views, {})

    def prediction(self, prediction: StudyPrediction, study_type: str | None, views: Sequence[bytes]) -> None:
        """A study was predicted from these files."""
        self._record(PROBABILITY.name, prediction.probability, {"study_type": study_type or "unknown"})
        for content in views:
            self._record(VIEWS.name, 1, {"format": view_format(content)})

    def reference(self, counts: Mapping[str, Sequence[int]]) -> None:
        """What the probabilities are to be compared with, as `serve.model_card.drift_reference` gives it.

        A study type that the reference lacks is set to NaN: nothing is compared with what an earlier ensemble had.
        """
        for study_type in STUDY_TYPES:
            of_type = counts.get(study_type) or [0] * len(PROBABILITY_EDGES)
            for edge, count in zip(PROBABILITY_EDGES, of_type, strict=True):
                share = count / of_type[-1] if of_type[-1] else math.nan
                self._record(PROBABILITY_REFERENCE.name, share, {"study_type": study_type, "le": str(edge)})

    def shadow(self, difference: float, changed: bool) -> None:
        """A candidate differs so much from the answer, and changed its decision or not."""
        self._record(SHADOW_DIFFERENCE.name, abs(difference), {"decision": "changed" if changed else "same"})

    def problem(self, problem_type: str, status: int) -> None:
        """A request, or a study of a worklist, was answered with a problem of this type (see `Problem`)."""
        kind = problem_type.rpartition(":")[2]
        kind = f"status-{status}" if kind in ("", "blank") else kind
        self._record(PROBLEMS.name, 1, {"kind": kind, "status": str(status)})


def view_format(content: bytes) -> str:
    """A file's format by its first bytes: png, jpeg, dicom or other."""
    if content.startswith(b"\x89PNG"):
        return "png"
    if content.startswith(b"\xff\xd8"):
        return "jpeg"
    return "dicom" if content[128:132] == b"DICM" else "other"


class MeasuredAnswers:
    """ASGI middleware, the outermost: counts every problem by its kind, and times the answered predictions."""

    def __init__(self, app: ASGIApp, predict_paths: tuple[str, ...], metrics: Metrics) -> None:
        """Takes the paths that answer one study; others count their studies themselves."""
        self._app = app
        self._predict_paths = predict_paths
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and looks at the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, is_problem = perf_counter(), 0, False
        is_study = get_route_path(scope) in self._predict_paths

        async def measured(message: Message) -> None:
            nonlocal status, is_problem
            if message["type"] == "http.response.start":
                status = message["status"]
                is_problem = Headers(raw=message["headers"]).get("content-type") == MEDIA_TYPE
            elif is_problem:  # a problem's body is one message
                self._metrics.problem(json.loads(message["body"])["type"], status)
                is_problem = False
            await send(message)

        try:
            await self._app(scope, receive, measured)
        except Exception:  # the framework answers it outside of all middleware
            self._metrics.problem("", 500)
            raise
        if status == 200 and is_study:
            self._metrics.stage("total", perf_counter() - started)
