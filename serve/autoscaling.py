"""How many replicas the load asks for. Ray's controller runs it by value: it imports nothing of this repository."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext, AutoscalingPolicy

VIEWS_IN_FLIGHT = "mura_views_in_flight"
"""What a replica reports: views that are predicted, and those that wait for it."""


class ViewsInFlight:
    """Ray Serve's autoscaling policy: as many replicas as keep each at so many views in flight.

    A request tells little of the work in it: a study has one view or sixteen, a worklist sixty-four studies, and a
    picture for the viewer or a health check needs no forward pass. Ray applies the bounds and delays of
    `autoscaling_config` to what this returns, and takes means over its `look_back_period_s`.
    """

    def __init__(self, **options: Any) -> None:
        """Takes anything, for an error here would stop Ray's controller; a replica calls `check_policy`.

        Args:
            options: `target_views`, the views of a replica.
        """
        self._options = options

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """How many replicas there should be, and no state."""
        reported = (context.aggregated_metrics or {}).get(VIEWS_IN_FLIGHT)
        if not reported:  # replicas that start have said nothing yet
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._options["target_views"], {}


def check_policy(policy: AutoscalingPolicy) -> None:
    """To be called by a replica before it reports anything; policies other than `ViewsInFlight` pass.

    Raises:
        ValueError: `policy_kwargs` is not one number above 0, `target_views`.
    """
    if policy.policy_function != f"{__name__}:{ViewsInFlight.__name__}":
        return
    options = policy.policy_kwargs
    target = options.get("target_views")
    is_number = isinstance(target, int | float) and math.isfinite(target) and target > 0
    if not is_number or len(options) > 1:
        raise ValueError(
            f"autoscaling_config.policy: policy_kwargs is {options!r}; give target_views alone, a number above 0"
        )
