"""What a request may cost. Bytes and numbers are bounded before anything is decoded."""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mura_ray.images import MAX_PIXELS
from serve.problems import ProblemError, problem_response

_MIB = 2**20


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
    retry_after_s: int = 2


class PredictionLimits:
    """ASGI middleware around what predicts: one media type, a bound on the body, a bound on concurrent requests.

    The body is counted while it is read too: a chunked request has no Content-Length.
    """

    def __init__(self, app: ASGIApp, paths: tuple[str, ...], limits: Limits) -> None:
        self._app = app
        self._paths = paths
        self._limits = limits
        self._num_admitted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request over a limit, and passes on all others."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(self._paths):
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
        except ProblemError as error:
            await problem_response(error)(scope, receive, send)
            return
        self._num_admitted += 1
        try:
            await self._app(scope, self._counted(receive), send)
        finally:
            self._num_admitted -= 1

    def _check(self, headers: Headers) -> None:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "multipart/form-data":
            detail = f"the body is {media_type or 'of no media type'}; send multipart/form-data with parts named views"
            raise ProblemError(415, "media-type", "the body is not multipart/form-data", detail)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.request_bytes:
            raise self._too_large()
        if self._num_admitted >= self._limits.predictions:
            retry_after_s = str(self._limits.retry_after_s)
            raise ProblemError(
                429,
                "busy",
                "too many studies wait",
                f"{self._num_admitted} studies are in work, the limit; send the study again in {retry_after_s} s",
                limit=self._limits.predictions,
                headers={"Retry-After": retry_after_s},
            )

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.request_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ProblemError:
        limit = self._limits.request_bytes
        detail = f"the request has more than {limit:,} bytes; send fewer views, or compressed ones"
        return ProblemError(413, "request-too-large", "the request is too large", detail, limit=limit)
