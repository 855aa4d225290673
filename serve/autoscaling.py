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
        """Takes anything: an error here, or later, would stop Ray's controller. What is wrong, `check_policy` says.

        Args:
            options: `target_views`, the views of a replica.
        """
        self._options = options

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """How many replicas there should be, and no state; as many as before while nothing can be said."""
        reported = (context.aggregated_metrics or {}).get(VIEWS_IN_FLIGHT)
        target: Any = self._options.get("target_views")
        # Replicas that start have said nothing yet; those that run let a wrong target pass when only it is changed.
        if not reported or not _is_target(target):
            return context.target_num_replicas, {}
        return sum(reported.values()) / target, {}


def _is_target(views: Any) -> bool:
    return isinstance(views, int | float) and math.isfinite(views) and views > 0


def check_policy(policy: AutoscalingPolicy) -> None:
    """To be called by a replica before it reports anything; policies other than `ViewsInFlight` pass.

    Raises:
        ValueError: `policy_kwargs` is not one number above 0, `target_views`.
    """
    if str(policy.policy_function).replace(":", ".") != f"{__name__}.{ViewsInFlight.__name__}":
        return
    options = policy.policy_kwargs
    if not _is_target(options.get("target_views")) or len(options) > 1:
        raise ValueError(
            f"autoscaling_config.policy: policy_kwargs is {options!r}; give target_views alone, a number above 0"
        )
