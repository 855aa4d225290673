"""How many replicas the load asks for. Ray's controller runs it by value: it imports nothing of this repository."""

import logging
import math
from collections.abc import Mapping
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
        """Takes anything: an error here, or later, would stop Ray's controller, which logs what is wrong instead.

        Args:
            options: `target_views`, the views of a replica.
        """
        fault = _fault(options)
        self._target = None if fault else options["target_views"]
        if fault:  # where only the options of replicas that run are changed, no replica looks at them
            logging.getLogger("ray.serve").error("%s; the number of replicas stays as it is", fault)

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """How many replicas there should be, and no state; as many as before while nothing can be said."""
        reported = (context.aggregated_metrics or {}).get(VIEWS_IN_FLIGHT)
        if self._target is None or not reported:  # replicas that start have said nothing yet
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._target, {}


def check_policy(policy: AutoscalingPolicy) -> None:
    """To be called by a replica that starts; policies other than `ViewsInFlight` pass.

    Raises:
        ValueError: `policy_kwargs` is not one number above 0, `target_views`.
    """
    is_ours = str(policy.policy_function).replace(":", ".") == f"{__name__}.{ViewsInFlight.__name__}"
    if is_ours and (fault := _fault(policy.policy_kwargs)):
        raise ValueError(fault)


def _fault(options: Mapping[str, Any]) -> str | None:
    target = options.get("target_views")
    if len(options) == 1 and isinstance(target, int | float) and math.isfinite(target) and target > 0:
        return None
    return f"autoscaling_config.policy: policy_kwargs is {options!r}; give target_views alone, a number above 0"
