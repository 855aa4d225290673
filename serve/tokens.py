"""`python -m serve.tokens`: makes, lists and revokes the tokens that a server asks for (`serve/access.py`)."""

import argparse
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from mura_ray import cli
from mura_ray.config import explain
from serve.access import Token, TokenList, parse_tokens, sha256

EPILOG = """example:
  python -m serve.tokens add pacs --file tokens.json       prints the token: once, it is kept nowhere
  python -m serve.tokens add trial --days 30 --file tokens.json
  python -m serve.tokens list --file tokens.json
  python -m serve.tokens revoke pacs --file tokens.json    a running server refuses it from its next request on
  MURA_TOKENS=$PWD/tokens.json serve run --address local serve/config.yaml

A caller sends its token as `Authorization: Bearer TOKEN`. The audit record knows callers by these names; a name is
given once, so a new token for the same caller is pacs-2, say. The file belongs to the server's user, and holds hashes
only."""

MAX_DAYS = 36_500


def main(argv: list[str] | None = None) -> int:
    """Parses, changes the file, reports."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.tokens",
        description="Makes, lists and revokes the tokens that a server asks for.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a token and print it")
    revoke = commands.add_parser("revoke", help="let a token's holder in no longer")
    listing = commands.add_parser("list", help="print names and states; there is no way back to the tokens")
    add.add_argument("--days", type=int, metavar="N", help="it expires after so many (default: never)")
    for command in (add, revoke):
        command.add_argument("name", metavar="NAME", help="the caller's name: letters, digits, dots, dashes")
    for command in (add, revoke, listing):
        command.add_argument("--file", metavar="PATH", help="the token file (default: MURA_TOKENS)")
    return cli.run(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    file = arguments.file or os.environ.get("MURA_TOKENS")
    if not file:
        raise ValueError("no token file: pass --file PATH or set MURA_TOKENS")
    path = Path(file).expanduser()
    if arguments.command == "add":
        print(add_token(path, arguments.name, arguments.days))
    elif arguments.command == "revoke":
        revoke_token(path, arguments.name)
    else:
        for token in parse_tokens(path, path.read_bytes()).tokens:
            print(f"{token.name:24} {_state(token)}")


def add_token(path: Path, name: str, days: int | None = None) -> str:
    """Makes a token, and the file where there is none.

    Returns:
        The token. The file holds only its hash.

    Raises:
        ValueError: the name is taken or unfit, the days are none, or the file is malformed.
    """
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise ValueError(f"--days {days}: pass 1 to {MAX_DAYS:,}")
    secret = f"mura_{secrets.token_urlsafe(32)}"
    now = datetime.now(UTC)

    def added(tokens: TokenList) -> TokenList:
        if name in (token.name for token in tokens.tokens):
            raise ValueError(f"{name!r} is in {path} already, revoked or not: take another, such as {name}-2")
        token = {"name": name, "sha256": sha256(secret.encode()), "created": now}
        expiry = {} if days is None else {"expires": now + timedelta(days=days)}
        try:
            return TokenList(tokens=(*tokens.tokens, Token.model_validate(token | expiry)))
        except ValidationError as error:
            raise ValueError(f"{name!r} is no name for a token: {explain(error)}") from None

    _change(path, added)
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Marks a token as revoked, from now on.

    Raises:
        ValueError: there is none of this name, or the file is malformed.
    """

    def revoked(tokens: TokenList) -> TokenList:
        if name not in (token.name for token in tokens.tokens):
            raise ValueError(f"no token {name!r} in {path}: `python -m serve.tokens list` names those there are")
        now = datetime.now(UTC)
        return TokenList(
            tokens=tuple(
                token.model_copy(update={"revoked": token.revoked or now}) if token.name == name else token
                for token in tokens.tokens
            )
        )

    _change(path, revoked)


def _change(path: Path, change: Callable[[TokenList], TokenList]) -> None:
    """Replaces the file by one that its owner alone can read; a server finds the old content or the new."""
    path = path.resolve()
    with _locked(path.with_name(f".{path.name}.lock")):
        before = parse_tokens(path, path.read_bytes()) if path.exists() else TokenList(tokens=())
        content = change(before).model_dump_json(indent=2, exclude_none=True).encode() + b"\n"
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                if path.exists():
                    os.fchown(descriptor, path.stat().st_uid, path.stat().st_gid)  # root changes the server's file
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # a revocation must not come back with the power
        os.close(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one command at a time change the file: two at once would lose a revocation."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _state(token: Token) -> str:
    if token.revoked:
        return f"revoked {token.revoked:%Y-%m-%d %H:%M} UTC"
    if not token.is_live(datetime.now(UTC)):
        return f"expired {token.expires:%Y-%m-%d %H:%M} UTC"
    expiry = f", expires {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else ""
    return f"valid since {token.created:%Y-%m-%d %H:%M} UTC{expiry}"


if __name__ == "__main__":
    raise SystemExit(main())
