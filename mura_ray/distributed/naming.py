"""Names of runs and searches: each a folder under the runs' storage, which keeps what was asked for under that name."""

import re

from mura_ray import store
from mura_ray.config import Settings

RUN_FILE, SWEEP_FILE = "run.json", "sweep.json"
RESERVED = ("weights",)
"""Folders under the runs' storage that are no run's."""


def check_name(name: str) -> str:
    """A name that can be a folder's.

    Raises:
        ValueError: it cannot, or the folder has another use.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in RESERVED:
        raise ValueError(f"--name {name!r}: use letters, digits, dots, dashes and underscores, and not {RESERVED[0]!r}")
    return name


def check_claim(home: str, file: str, asked: Settings, same: tuple[str, ...]) -> None:
    """Checks that nothing else goes by a name: its folder is new, or was made for the same.

    Args:
        home: URI of the folder.
        file: `RUN_FILE` or `SWEEP_FILE`.
        asked: what goes by the name now.
        same: its fields that have to be what they were.

    Raises:
        ValueError: the name is taken.
    """
    for other in {RUN_FILE, SWEEP_FILE} - {file}:
        if store.exists(store.join(home, other)):
            raise ValueError(f"{home!r} is something else (see its {other}): pass another --name")
    uri = store.join(home, file)
    if not store.exists(uri):
        return
    before = type(asked).model_validate_json(store.read_bytes(uri))
    if changed := [name for name in same if getattr(before, name) != getattr(asked, name)]:
        raise ValueError(f"{home!r} has another {' and '.join(changed)} (see its {file}): pass another --name")


def claim(home: str, file: str, asked: Settings) -> None:
    """Writes what goes by a name into its folder."""
    store.write_bytes(store.join(home, file), asked.model_dump_json(indent=2).encode() + b"\n")
