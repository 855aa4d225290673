"""How many replicas the load asks for. Ray's controller runs it by value: it imports nothing of this repository."""

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

VIEWS_IN_FLIGHT = "mura_views_in_flight"
"""What a replica reports: views that are predicted, and those that wait for it."""


class ViewsInFlight:
    """Ray Serve's autoscaling policy: as many replicas as keep each at so many views in flight.

    A request tells little of the work in it: a study has one view or sixteen, a worklist sixty-four studies, and a
    picture for the viewer or a health check needs no forward pass. Ray applies the bounds and delays of
    `autoscaling_config` to what this returns, and takes means over its `look_back_period_s`.
    """

    def __init__(self, target_views: float) -> None:
        """Takes the views of a replica. `check_target` looks at them: an error here would stop Ray's controller."""
        self._target_views = target_views

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """How many replicas there should be, and no state."""
        reported = (context.aggregated_metrics or {}).get(VIEWS_IN_FLIGHT)
        if not reported:  # replicas that start have said nothing yet
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._target_views, {}


def check_target(policy_kwargs: Mapping[str, Any]) -> None:
    """To be called by a replica before it reports anything.

    Raises:
        ValueError: `target_views` is no number above 0.
    """
    target = policy_kwargs.get("target_views", 1)
    if not isinstance(target, int | float) or not (math.isfinite(target) and target > 0):
        raise ValueError(f"autoscaling_config.policy: target_views is {target!r}; pass a number above 0")
