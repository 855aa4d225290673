"""Who may ask: bearer tokens from a file that is read again whenever it changes. `serve/tokens.py` writes it."""

import hashlib
import hmac
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator
from starlette._utils import get_route_path  # the router's own: what is open here is what it will call
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mura_ray.config import Settings, explain
from serve.exchange import LOOPBACK, STRANGER, exchange_of
from serve.problems import ProblemError, problem_response

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_FOLDER = "/viewer/"
"""What needs no token: pages, the interface's description and probes. They tell nothing of a study."""

_logger = logging.getLogger(__name__)


class Token(Settings):
    """One caller's token. A plain hash is enough: nobody finds 256 random bits by trying, as one finds a password."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether it lets its caller in."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class TokenList(Settings):
    """The content of a token file. Revoked tokens stay in it: their names are in the record."""

    tokens: tuple[Token, ...]

    @model_validator(mode="after")
    def _names_tell_callers_apart(self) -> Self:
        names = [token.name for token in self.tokens]
        if len(names) != len(set(names)) or {LOOPBACK, STRANGER} & set(names):
            raise ValueError(f"each name may occur once, and none may be {LOOPBACK!r} or {STRANGER!r}")
        return self

    def find(self, secret: bytes) -> Token | None:
        """The entry of a token. All entries are compared, each in constant time, wherever the token is found."""
        digest = sha256(secret)
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found


def sha256(secret: bytes) -> str:
    """What is kept of a token."""
    return hashlib.sha256(secret).hexdigest()


def parse_tokens(path: Path, content: bytes) -> TokenList:
    """The tokens of a file.

    Raises:
        ValueError: the content is not what `serve.tokens` writes.
    """
    try:
        return TokenList.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{path} is no token file: {explain(error)}; see `python -m serve.tokens --help`") from None


class TokenFile:
    """The tokens in force: those that the file holds at this moment.

    Its bytes are read for each request, for they are few and a changed time stamp can be missed; they are parsed when
    they differ.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads the file.

        Raises:
            ValueError: it cannot be read, others can change it, or it holds no token.
        """
        self._path = Path(path).expanduser().absolute()
        self._content: bytes | None = None
        self._tokens = TokenList(tokens=())
        self._fault: str | None = None
        if not self.read().tokens:
            raise ValueError(
                f"{self._path} holds no token: make one with `python -m serve.tokens add NAME --file {self._path}`"
            )

    def read(self) -> TokenList:
        """What the file holds now.

        Raises:
            ValueError: it cannot be read, others can change it, or it is malformed.
        """
        try:
            with self._path.open("rb") as file:
                _refuse_foreign_hands(self._path, os.fstat(file.fileno()))
                content = file.read()
        except OSError as error:
            raise ValueError(f"cannot read the token file {self._path}: {error.strerror}") from None
        if content != self._content:
            self._tokens = parse_tokens(self._path, content)
            self._content = content
        return self._tokens

    def caller(self, headers: Headers) -> str:
        """The name of the token that a request carries.

        Raises:
            ProblemError: 401, there is none or it lets nobody in; 503, the file does not say who may come in.
        """
        try:
            tokens = self.read()
        except ValueError as error:
            self._log_once(str(error))
            detail = "the server cannot check credentials, and lets nobody in; its log says why"
            raise ProblemError(503, "tokens-unreadable", "credentials cannot be checked", detail) from None
        self._fault = None
        secret = _bearer(headers)
        if secret is None:
            detail = "send the header Authorization: Bearer TOKEN, with a token that this server's operator gave you"
            raise ProblemError(401, "no-token", "a token is needed", detail, headers={"WWW-Authenticate": "Bearer"})
        token = tokens.find(secret)
        if token is None or not token.is_live(datetime.now(UTC)):
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            detail = "the token is unknown, revoked or expired; ask this server's operator for another"
            raise ProblemError(401, "invalid-token", "the token is not valid", detail, headers=challenge)
        return token.name

    def _log_once(self, fault: str) -> None:
        if fault != self._fault:
            _logger.error("nobody is let in: %s", fault)
        self._fault = fault


def _refuse_foreign_hands(path: Path, status: os.stat_result) -> None:
    """Others may read the file, for its hashes let nobody in; who can write it can let in anybody."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"the token file {path} is no regular file")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"others than its owner can change the token file {path}: `chmod 600 {path}`")
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(
            f"the token file {path} belongs to the user with id {status.st_uid}, who could change it: `chown` it to "
            f"root or to the server's user, id {os.geteuid()}"
        )


def _bearer(headers: Headers) -> bytes | None:
    """The request's token; it is looked for in the header only, for addresses end up in logs."""
    scheme, _, secret = headers.get("Authorization", "").partition(" ")
    return secret.strip().encode("latin-1") if scheme.lower() == "bearer" and secret.strip() else None


class RequireToken:
    """ASGI middleware: lets in who carries a token, and everybody to what is open."""

    def __init__(self, app: ASGIApp, tokens: TokenFile) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its caller's name, or answers 401."""
        if scope["type"] != "lifespan":
            exchange = exchange_of(scope)
            exchange.caller = STRANGER
            if not _is_open(get_route_path(scope)):
                try:
                    exchange.caller = self._tokens.caller(Headers(scope=scope))
                except ProblemError as error:
                    await problem_response(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
