"""One request and its answer: the id that both carry, who asks, and what was refused."""

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = "loopback"
"""The caller where no token is asked for: whoever can use this machine."""

STRANGER = "stranger"
"""The caller where a token is asked for and none that is valid was shown."""

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = re.compile(r"[0-9a-fA-F-]{16,64}")
"""A UUID or a random number, as proxies make them. Free text is not taken: it would carry names into the record."""


@dataclass(slots=True)
class Exchange:
    """What the layers around the interface tell each other about one request."""

    request_id: str
    caller: str = LOOPBACK
    problem: str | None = None
    """The type of the problem that is the answer."""
    started: float = field(default_factory=time.monotonic)

    @property
    def duration_ms(self) -> float:
        """Since the request came in."""
        return (time.monotonic() - self.started) * 1000


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a request belongs to; one of its own where `Exchanges` is not around the application."""
    return scope.setdefault("state", {}).setdefault("exchange", Exchange(str(uuid.uuid4())))


class Exchanges:
    """ASGI middleware: begins an exchange for each request, and names it in the answer."""

    def __init__(self, app: ASGIApp, *, named_in_front: bool) -> None:
        """Takes `named_in_front`: whether a proxy in front gives each request its id, and adds it to the answer."""
        self._app = app
        self._named_in_front = named_in_front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and completes the answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        scope.setdefault("state", {})["exchange"] = Exchange(request_id)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and not (self._named_in_front and request_id == given):
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, named)
