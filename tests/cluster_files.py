"""The files of cluster/, as they are and as a user fills them in."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
BUCKET, RANGE = "hospital", "203.0.113.0/28"

Config = dict[str, Any]


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def filled() -> Config:
    """cluster/gpu.yaml as a user fills it in."""
    text = (CLUSTER / "gpu.yaml").read_text()
    return yaml.safe_load(text.replace("FILL-IN-BUCKET", BUCKET).replace("FILL-IN-RANGE", RANGE))


def docker_variables(config: Config) -> dict[str, str]:
    options = config["docker"]["run_options"]
    return dict(option.removeprefix("--env=").split("=", 1) for option in options if option.startswith("--env="))


def as_list(value: Any) -> list[Any]:
    """What a policy may give alone or as a list."""
    return value if isinstance(value, list) else [value]
