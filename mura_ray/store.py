"""Where artefacts lie. Everything that the project reads or writes by URI goes through here.

A URI is a folder path, absolute or relative. Writes are atomic: a reader finds the old content, the new, or nothing.
"""

import os
import uuid
from pathlib import Path


def resolve(uri: str) -> Path:
    """The folder or file that a URI names.

    Raises:
        ValueError: the URI has a scheme that this version does not read.
    """
    if "://" in uri:
        raise ValueError(f"cannot use {uri!r}: only folders can be read and written; pass a folder path")
    return Path(uri).expanduser().resolve()


def absolute(uri: str) -> str:
    """The same place, named independently of the working directory."""
    return str(resolve(uri))


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Whether something lies there."""
    return resolve(uri).exists()


def read_bytes(uri: str) -> bytes:
    """The content of one file.

    Raises:
        ValueError: nothing lies there.
    """
    try:
        return resolve(uri).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"no file at {uri!r}: check the path") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Writes one file atomically and durably, with the folders above it."""
    path = resolve(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(content)


class atomic_path:  # noqa: N801 - a context manager, used as a function
    """Gives a sibling path to write to; renamed onto `path` after an fsync when the block ends well, else removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")

    def __enter__(self) -> Path:
        return self._partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._partial.unlink(missing_ok=True)
            return
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)
