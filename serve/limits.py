"""What a request may cost. Bytes and numbers are bounded before anything is decoded, and all of it in time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import anyio
from starlette._utils import get_route_path  # the router's own, as in serve/access.py
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mura_ray.images import MAX_PIXELS
from serve.problems import ProblemError, problem_response, without_messages

_KIB, _MIB = 2**10, 2**20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of one request and of one replica."""

    request_bytes: int = 128 * _MIB
    view_bytes: int = 64 * _MIB
    """A 16-bit image of the largest detectors (20 million pixels), stored without compression, has 40 MiB."""
    views: int = 16
    """MURA's studies have up to 11."""
    study_pixels: int = 4 * MAX_PIXELS
    """Sum over the views: a file of a hundred kilobytes can decode to `MAX_PIXELS`."""
    study_bytes: int = 256 * _MIB
    """Sum over the views, those of a zip unpacked."""
    predictions: int = 8
    """Studies in one replica, the one that is computed and those that wait for it: further ones are sent away."""
    pictures: int = 4
    """Views in one replica that are turned into pictures for the viewer, those that wait included."""
    retry_after_s: int = 2
    worklist_bytes: int = 512 * _MIB
    worklist_studies: int = 64
    worklist_s: float = 240
    """As `request_s`, for all studies of a worklist."""
    worklist_work_s: float = 230
    """Studies of a worklist that are not answered by then get a problem; the rest of `worklist_s` is for saying so."""
    request_s: float = 120
    """Upload, waiting and prediction together. The proxies' own limits must be longer, or they answer in its place."""
    upload_bytes_per_s: int = 64 * _KIB
    """The pace that a body must keep on average: else a few that trickle in would hold all places."""
    upload_grace_s: float = 10
    """So long a body may be behind its pace."""


class TimeLimit:
    """ASGI middleware: a request is answered within its time, or with a problem at the end of it.

    The application runs in a task of its own. When time is up, or the client gone, the task is cancelled in anyio's
    way, which waits for a thread that it awaits; asyncio's would leave the thread behind, and a study's place in
    `Admission` would be free while its forward pass, which nothing can stop, still takes all cores.
    """

    def __init__(self, app: ASGIApp, limits: Limits, longer: Mapping[str, float]) -> None:
        """Takes `longer`: paths that have a time of their own, in seconds."""
        self._app = app
        self._limits = limits
        self._longer = longer
        self._overdue: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks weakly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and answers it itself when its time is up."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_s = self._longer.get(get_route_path(scope), self._limits.request_s)
        cancel, is_uploaded, is_started, is_over = anyio.CancelScope(), False, False, False

        async def watched_receive() -> Message:
            nonlocal is_uploaded
            message = await receive()
            is_uploaded = is_uploaded or not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            nonlocal is_started
            if not is_over:
                is_started = True
                await send(message)

        async def answer() -> None:
            with cancel:
                await self._app(scope, watched_receive, send_in_time)

        task = asyncio.create_task(answer())
        try:
            await asyncio.wait({task}, timeout=limit_s)
        finally:
            is_over = True
            if not task.done():
                cancel.cancel()
                self._overdue.add(task)
                task.add_done_callback(self._forget)
        if task.done():
            task.result()
        elif not is_started:
            if not is_uploaded:  # nothing is computed yet: the place is free as soon as the client hears of it
                await asyncio.wait({task}, timeout=1)
            slow = _too_slow(f"the request had not arrived after {limit_s:g} s")
            await problem_response(self._too_late(limit_s) if is_uploaded else slow)(scope, receive, send)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._overdue.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _logger.error("a request failed after its time: %s", without_messages(error))

    def _too_late(self, limit_s: float) -> ProblemError:
        retry_after_s = str(self._limits.retry_after_s)
        detail = f"no answer after {limit_s:g} s; send the study again in {retry_after_s} s or later"
        return ProblemError(503, "timeout", "the answer takes too long", detail, headers={"Retry-After": retry_after_s})


def _too_slow(what: str) -> ProblemError:
    detail = f"{what}; send fewer views, or compressed ones"
    return ProblemError(408, "slow-upload", "the upload takes too long", detail, headers={"Connection": "close"})


@dataclass(frozen=True, slots=True)
class Entrance:
    """What a path takes: which of the limits counts its requests, one media type, and so many bytes of it."""

    counted_as: Literal["predictions", "pictures"]
    media_type: str
    request_bytes: int


class Admission:
    """ASGI middleware around paths that cost: one media type, a bound on the body, a bound on concurrent requests.

    The body is counted while it is read too, for a chunked request has no Content-Length; and it must keep a pace.
    """

    def __init__(self, app: ASGIApp, entrances: Mapping[str, Entrance], limits: Limits) -> None:
        self._app = app
        self._entrances = entrances
        self._limits = limits
        self._num_admitted: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request over a limit, and passes on all others."""
        entrance = None
        if scope["type"] == "http" and scope["method"] == "POST":
            entrance = self._entrances.get(get_route_path(scope))
        if entrance is None:
            await self._app(scope, receive, send)
            return
        try:
            self._check(entrance, Headers(scope=scope))
        except ProblemError as error:
            await problem_response(error)(scope, receive, send)
            return
        self._num_admitted[entrance.counted_as] += 1
        try:
            await self._app(scope, _bounded(receive, entrance.request_bytes, self._limits), send)
        finally:
            self._num_admitted[entrance.counted_as] -= 1

    def _check(self, entrance: Entrance, headers: Headers) -> None:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != entrance.media_type:
            detail = f"the body is {media_type or 'of no media type'}; send {entrance.media_type}, as /docs says"
            raise ProblemError(415, "media-type", f"the body is not {entrance.media_type}", detail)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > entrance.request_bytes:
            raise _too_large(entrance.request_bytes)
        limit, num_admitted = getattr(self._limits, entrance.counted_as), self._num_admitted[entrance.counted_as]
        if num_admitted >= limit:
            retry_after_s = str(self._limits.retry_after_s)
            raise ProblemError(
                429,
                "busy",
                "too many requests wait",
                f"{num_admitted} are in work, the limit; send it again in {retry_after_s} s",
                limit=limit,
                headers={"Retry-After": retry_after_s},
            )


def _bounded(receive: Receive, max_bytes: int, limits: Limits) -> Receive:
    """Ends a request whose body is too large, or comes in too slowly; only the time that its sender takes counts."""
    num_bytes, waited_s, is_uploaded = 0, 0.0, False

    async def bounded() -> Message:
        nonlocal num_bytes, waited_s, is_uploaded
        if is_uploaded:  # what comes now is that the client has left
            return await receive()
        begun = monotonic()
        try:
            with anyio.fail_after(limits.upload_grace_s + num_bytes / limits.upload_bytes_per_s - waited_s):
                message = await receive()
        except TimeoutError:
            raise _too_slow(f"the request came in at less than {limits.upload_bytes_per_s:,} bytes/s") from None
        waited_s += monotonic() - begun
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        is_uploaded = not message.get("more_body", False)
        return message

    return bounded


def _too_large(limit: int) -> ProblemError:
    detail = f"the request has more than {limit:,} bytes; send fewer views, or compressed ones"
    return ProblemError(413, "request-too-large", "the request is too large", detail, limit=limit)
