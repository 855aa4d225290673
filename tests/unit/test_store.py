from pathlib import Path

import pytest

from mura_ray import store


def test_written_bytes_are_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    uri = store.join(str(tmp_path), "a", "b.bin")
    store.write_bytes(uri, b"one")
    store.write_bytes(uri, b"two")
    assert store.read_bytes(uri) == b"two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_a_failed_write_leaves_the_old_content_and_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with store.atomic_path(path) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_there_or_not_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file at"):
        store.read_bytes(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no file at"):
        store.read_bytes(str(tmp_path))
    with pytest.raises(ValueError, match="pass a folder path or s3"):
        store.read_bytes("gs://bucket/key")


def test_join_and_absolute() -> None:
    assert store.join("/a/", "b", "c") == "/a/b/c"
    assert store.join("/", "b") == "/b"
    assert store.absolute("x") == str(Path.cwd() / "x")
