import asyncio
import logging
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve.autoscaling import VIEWS_IN_FLIGHT, ViewsInFlight, check_policy
from serve.decoding import Upload
from serve.limits import Limits
from serve.metrics import Metrics
from serve.prediction import Answers
from tests.serving import CONFIG
from tests.unit.api_client import LEFT, Blocked, Broken

OTHER_KEYS = [{}, {"target_view": 6}, {"target_views": 6, "replicas": 2}]


def context(metrics: dict[str, dict[str, float]], target: int = 1) -> Any:
    return cast(Any, SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target))


def desired(*views: float, target_views: float = 12) -> float:
    replicas = {f"replica-{place}": number for place, number in enumerate(views)}
    return ViewsInFlight(target_views=target_views)(context({VIEWS_IN_FLIGHT: replicas}))[0]


def test_as_many_replicas_as_the_views_in_flight_ask_for():
    assert desired(0) == 0
    assert desired(12) == 1
    assert desired(24, 24) == 4
    assert desired(30, 0, 0) == 2.5
    assert desired(24, 24, target_views=16) == 3


def test_it_changes_nothing_before_a_replica_has_reported():
    assert ViewsInFlight(target_views=12)(context({}, target=3)) == (3, {})
    assert ViewsInFlight(target_views=12)(context({"other": {"a": 1.0}}, target=2)) == (2, {})


@pytest.mark.parametrize(
    "options", [{"target_views": value} for value in (0, -1, float("nan"), float("inf"), "six", None)] + OTHER_KEYS
)
@pytest.mark.parametrize("policy", ["serve.autoscaling:ViewsInFlight", "serve.autoscaling.ViewsInFlight"])
def test_options_that_are_no_positive_target_are_refused_by_the_replica(policy: str, options: dict[str, Any]):
    with pytest.raises(ValueError, match=re.escape(f"policy_kwargs is {options!r}; give target_views alone")):
        check_policy(AutoscalingPolicy(policy_function=policy, policy_kwargs=options))


@pytest.mark.parametrize("options", [{"target_views": 0}, {"target_views": "six"}, {"target_view": 6}, {}])
def test_rays_controller_logs_wrong_options_and_goes_on(options: dict[str, Any], caplog: pytest.LogCaptureFixture):
    serve_log = logging.getLogger("ray.serve")  # Ray keeps its records from the root logger
    serve_log.addHandler(caplog.handler)
    try:
        assert ViewsInFlight(**options)(context({VIEWS_IN_FLIGHT: {"a": 18.0}}, target=2)) == (2, {})
    finally:
        serve_log.removeHandler(caplog.handler)
    assert f"policy_kwargs is {options!r}; give target_views alone" in caplog.text


def test_other_policies_have_options_of_their_own():
    check_policy(AutoscalingPolicy())
    check_policy(
        AutoscalingPolicy(
            policy_function="ray.serve.autoscaling_policy:default_autoscaling_policy", policy_kwargs={"a": 1}
        )
    )


def test_the_products_configuration_names_this_policy():
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    config = AutoscalingConfig(**application["deployments"][0]["autoscaling_config"])
    check_policy(config.policy)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)  # as Ray's controller gets it, by value
    assert policy(context({VIEWS_IN_FLIGHT: {"a": 18.0}})) == (3, {})


def test_a_replica_counts_views_that_are_predicted_and_those_that_wait():
    predictor = Blocked()
    answers = Answers(predictor, Limits(), Metrics())

    async def scenario() -> list[int]:
        seen = [answers.views_in_flight]
        studies = [asyncio.create_task(answers.predict([Upload("a.png", LEFT)] * number, None)) for number in (3, 2)]
        while answers.views_in_flight < 5:
            await asyncio.sleep(0.01)
        seen.append(answers.views_in_flight)
        studies[1].cancel()
        predictor.go.set()
        await asyncio.gather(*studies, return_exceptions=True)
        return [*seen, answers.views_in_flight]

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == [0, 5, 0]


def test_views_of_a_study_that_failed_are_in_flight_no_more():
    answers = Answers(Broken(), Limits(), Metrics())
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(answers.predict([Upload("a.png", LEFT)], None))
    assert answers.views_in_flight == 0
