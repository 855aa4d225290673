"""Where artefacts lie. Everything that the project reads or writes by URI goes through here.

A URI is a folder path, absolute or relative, or `s3://bucket/key`. Writes are atomic: a reader finds the old content,
the new, or nothing.
"""

import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from mura_ray import s3
from mura_ray.s3 import FileStat, StorageError

__all__ = ["StorageError"]

T = TypeVar("T")

READ_AHEAD = 16
"""Files that `read_many` reads at a time, and holds beside the one in use."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder under a name: a folder, a file, or (a broken link, say) neither."""

    name: str
    is_folder: bool
    is_file: bool


class Tree(Protocol):
    """Folders and files below a URI."""

    def entries(self, path: str = "") -> list[Entry]:
        """What lies directly in a folder, by name; nothing where there is no such folder.

        Args:
            path: of the folder, relative to the tree's URI, with forward slashes.
        """
        ...


def is_s3(uri: str) -> bool:
    """Whether the URI names something in S3; else it is a path of this machine."""
    return uri.startswith(s3.SCHEME)


def resolve(uri: str) -> Path:
    """The folder or file of this machine that a URI names.

    Raises:
        ValueError: the URI has a scheme.
    """
    if "://" in uri:
        raise ValueError(f"cannot use {uri!r}: pass a folder path or s3://bucket/key")
    return Path(uri).expanduser().resolve()


def absolute(uri: str) -> str:
    """The same place, named independently of the working directory, without a slash at its end.

    Raises:
        ValueError: the URI has a scheme other than s3, or names no bucket.
    """
    if not is_s3(uri):
        return str(resolve(uri))
    s3.split_uri(uri)
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *parts])


def parent(uri: str) -> str:
    """The URI of the folder that something lies in."""
    return uri.rpartition("/")[0] if is_s3(uri) else str(Path(uri).parent)


def name(uri: str) -> str:
    """The last part of a URI."""
    return PurePosixPath(uri).name


def exists(uri: str) -> bool:
    """Whether something lies there: a file, or a folder (in S3: any object below it)."""
    if is_s3(uri):
        return s3.stat(uri) is not None or s3.has_below(uri)
    return resolve(uri).exists()


def is_file(uri: str) -> bool:
    """Whether a file lies there."""
    return s3.stat(uri) is not None if is_s3(uri) else resolve(uri).is_file()


def is_folder(uri: str) -> bool:
    """Whether a folder lies there (in S3: any object below it)."""
    return s3.has_below(uri) if is_s3(uri) else resolve(uri).is_dir()


def read_bytes(uri: str) -> bytes:
    """The content of one file.

    Raises:
        ValueError: nothing lies there.
        StorageError: it cannot be read.
    """
    with _missing_told(uri):
        return s3.read(uri) if is_s3(uri) else resolve(uri).read_bytes()


def read_start(uri: str, num_bytes: int) -> bytes:
    """The first bytes of one file, fewer if it is smaller; errors as of `read_bytes`."""
    with _missing_told(uri):
        if is_s3(uri):
            return s3.read_start(uri, num_bytes)
        with resolve(uri).open("rb") as file:
            return file.read(num_bytes)


@contextmanager
def _missing_told(uri: str) -> Iterator[None]:
    try:
        yield
    except (s3.MissingObjectError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"no file at {uri!r}: check the path") from error


def read_many(uris: Iterable[str], read: Callable[[str], T] = read_bytes) -> Iterator[T]:
    """What is read of many files, in their order and some ahead; what `read` raises, in the file's turn."""
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as pool:
        reading: list[Future[T]] = []
        try:
            for uri in uris:
                reading.append(pool.submit(read, uri))
                if len(reading) > READ_AHEAD:
                    yield reading.pop(0).result()
            while reading:
                yield reading.pop(0).result()
        finally:
            for future in reading:
                future.cancel()


def write_bytes(uri: str, content: bytes) -> None:
    """Writes one file atomically and durably, with the folders above it."""
    if is_s3(uri):
        s3.write(uri, content)
        return
    path = resolve(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_file(uri: str, path: Path) -> None:
    """Writes a copy of a file of this machine, as `write_bytes` writes bytes, without reading it into memory whole."""
    if is_s3(uri):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            s3.write(uri, content)
        return
    dest = resolve(uri)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(dest) as partial:
        shutil.copyfile(path, partial)


def remove_folder(uri: str) -> None:
    """Removes a folder with all that lies in it; nothing to do where there is none."""
    if is_s3(uri):
        s3.remove([join(uri, key) for key, _ in s3.list_objects(uri)])
    else:
        shutil.rmtree(resolve(uri), ignore_errors=True)


def remove_files(uris: Sequence[str]) -> None:
    """Removes files; one that is not there counts as removed."""
    s3.remove([uri for uri in uris if is_s3(uri)])
    for uri in uris:
        if not is_s3(uri):
            resolve(uri).unlink(missing_ok=True)


def tree(uri: str) -> Tree:
    """The folders and files below a URI: a folder is looked at when asked for, S3 is listed once, here."""
    return _ListedTree(uri) if is_s3(uri) else _FolderTree(resolve(uri))


def list_files(uri: str) -> list[str]:
    """All files below a URI, relative to it, with forward slashes; links to folders are not followed."""
    if is_s3(uri):
        return [key for key, _ in s3.list_objects(uri) if not key.endswith("/")]
    root = resolve(uri)
    return [Path(folder, file).relative_to(root).as_posix() for folder, _, files in os.walk(root) for file in files]


def find_file(uri: str) -> str | None:
    """URI of some file: the one there, or one below it, found without listing all; None where there is none."""
    if is_file(uri):
        return uri
    if is_s3(uri):
        return next((join(uri, key) for key, _ in s3.list_objects(uri) if not key.endswith("/")), None)
    return next((str(Path(folder, min(files))) for folder, _, files in os.walk(resolve(uri)) if files), None)


def stat_files(root: str, paths: Sequence[str]) -> dict[str, FileStat]:
    """Size and version of files below a URI.

    Args:
        root: the URI.
        paths: of the files, relative to it.

    Returns:
        By path; what is no file there is left out.
    """
    if not is_s3(root):
        return {path: found for path in paths if (found := _stat(Path(root, path))) is not None}
    if not paths:
        return {}
    common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 - keys, not paths
    listed = s3.list_objects(join(root, common) if common else root)
    found = {str(PurePosixPath(common, key)): stat for key, stat in listed}
    return {path: found[path] for path in paths if path in found}


def _stat(path: Path) -> FileStat | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return FileStat(status.st_size, str(status.st_mtime_ns)) if path.is_file() else None


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self, path: str = "") -> list[Entry]:
        try:
            with os.scandir(self._root / path) as entries:
                found = [Entry(entry.name, entry.is_dir(), entry.is_file()) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda entry: entry.name)


class _ListedTree:
    def __init__(self, uri: str) -> None:
        self._folders: dict[str, dict[str, bool]] = {"": {}}
        for key, _ in s3.list_objects(uri):
            *folders, last = key.split("/")  # an object that ends in a slash is how some tools keep an empty folder
            for depth, folder in enumerate(folders):
                above = "/".join(folders[:depth])
                self._folders[above][folder] = True
                self._folders.setdefault("/".join(folders[: depth + 1]), {})
            if last:
                self._folders["/".join(folders)].setdefault(last, False)

    def entries(self, path: str = "") -> list[Entry]:
        found = sorted(self._folders.get(path.strip("/"), {}).items())
        return [Entry(name, is_folder, not is_folder) for name, is_folder in found]


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
