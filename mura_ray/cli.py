"""What the commands share: how they end, and how they say what was wrong."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from rich.progress import ProgressColumn, Task
from rich.text import Text

from mura_ray import store

INTERRUPTED = 130


def run(body: Callable[[], int | None]) -> int:
    """Runs a command's body and returns its exit code.

    Args:
        body: does the work; returns an exit code, or None for 0.

    Returns:
        1 where the body raised a `ValueError` or an `OSError`, whose text goes to stderr; 130 where it was interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return body() or 0
    except (ValueError, store.StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}: check the path, its permissions and the space left", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def location(value: str | None, name: str) -> str:
    """An absolute location from a command's option or the environment.

    Raises:
        ValueError: it is not given.
    """
    if not value:
        raise ValueError(f"no {name} location: pass --{name} URI or set MURA_{name.upper()}")
    return store.absolute(value)


def assignments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Settings given as NAME=VALUE, values in YAML; names as they are, with dots for nested ones.

    Args:
        texts: the values of the option.
        option: named in errors.

    Raises:
        ValueError: no `=`, or a value that is no YAML.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text!r}: expected NAME=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{option} {text!r}: {value!r} is not YAML") from error
    return values


class SpeedColumn(ProgressColumn):
    """Images a second, in a progress bar."""

    def render(self, task: Task) -> Text:
        """The rate of the last seconds, once there is one."""
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")
