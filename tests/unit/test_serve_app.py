import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ServeDeploySchema

from mura_ray.model import ensemble as ensemble_module
from serve import app
from serve.app import EnsembleServer, ensemble_uri, precision, refuse_open_address
from serve.limits import Limits
from tests.unit.api_client import LEFT, Broken, Client, MeanGray, post

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


@pytest.fixture(autouse=True)
def _no_locations(monkeypatch):
    for name in ("MURA_ENSEMBLE", "MURA_RUNS"):
        monkeypatch.delenv(name, raising=False)


class TestEnsembleUri:
    def test_the_named_ensemble_comes_first(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MURA_RUNS", str(tmp_path))
        monkeypatch.setenv("MURA_ENSEMBLE", "somewhere/ensemble")
        assert ensemble_uri() == str(Path.cwd() / "somewhere" / "ensemble")

    def test_else_the_newest_of_the_runs(self, monkeypatch, tmp_path):
        for name, day in (("first", "03"), ("second", "04"), ("third", "02")):
            folder = tmp_path / name / "ensemble"
            folder.mkdir(parents=True)
            (folder / "ensemble.json").write_text(f"2026-01-{day}")
        created = {str(path.parent): path.read_text() for path in tmp_path.glob("*/ensemble/ensemble.json")}

        class Description:
            def __init__(self, folder):
                self.created = created[folder]

        monkeypatch.setattr(ensemble_module, "read_description", Description)
        monkeypatch.setenv("MURA_RUNS", str(tmp_path))
        assert ensemble_uri() == str(tmp_path / "second" / "ensemble")

    def test_runs_without_an_ensemble(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MURA_RUNS", str(tmp_path))
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            ensemble_uri()

    def test_neither_says_what_to_set(self):
        with pytest.raises(ValueError, match=r"set MURA_ENSEMBLE .* or MURA_RUNS"):
            ensemble_uri()

    def test_an_empty_variable_counts_as_unset(self, monkeypatch):
        monkeypatch.setenv("MURA_ENSEMBLE", "")
        monkeypatch.setenv("MURA_RUNS", "")
        with pytest.raises(ValueError, match="no ensemble to serve"):
            ensemble_uri()


class TestPrecision:
    @pytest.mark.parametrize("value", ["fp32", "openvino", "graphs", "bf16", "fp16", "auto"])
    def test_is_what_the_variable_says(self, monkeypatch, value):
        monkeypatch.setenv("MURA_INFERENCE", value)
        assert precision() == value

    def test_is_the_fastest_without_it(self, monkeypatch):
        monkeypatch.delenv("MURA_INFERENCE", raising=False)
        assert precision() == "auto"
        monkeypatch.setenv("MURA_INFERENCE", "")
        assert precision() == "auto"

    def test_another_value_is_refused_with_those_that_are_known(self, monkeypatch):
        monkeypatch.setenv("MURA_INFERENCE", "int8")
        with pytest.raises(ValueError, match="MURA_INFERENCE is 'int8'; one of fp32, openvino, graphs, bf16"):
            precision()


class TestRefuseOpenAddress:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", None])
    def test_loopback_passes(self, host):
        refuse_open_address(host, direct_ingress=False, asks_for_tokens=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.4", "hospital.example", "localhost.example", ""])
    def test_anything_else_does_not(self, host):
        with pytest.raises(ValueError, match=re.escape(repr(host)) + r".*127\.0\.0\.1, or .*MURA_TOKENS"):
            refuse_open_address(host, direct_ingress=False, asks_for_tokens=False)

    def test_replicas_that_listen_themselves_do_not(self):
        with pytest.raises(ValueError, match=r"RAY_SERVE_ENABLE_HA_PROXY.* or .*MURA_TOKENS"):
            refuse_open_address("127.0.0.1", direct_ingress=True, asks_for_tokens=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.4", "127.0.0.1"])
    @pytest.mark.parametrize("direct_ingress", [False, True])
    def test_with_tokens_any_address_passes(self, host, direct_ingress):
        refuse_open_address(host, direct_ingress=direct_ingress, asks_for_tokens=True)


@pytest.fixture
def start(monkeypatch):
    """Starts a replica as Ray does, with this `user_config`; gives it and the URIs that it loaded."""

    def started(user_config, predictor=MeanGray, autoscaling=None):
        loaded = []

        def load(uri):
            loaded.append(uri)
            if uri == "/runs/lost":
                raise ValueError(f"no ensemble: {uri}")
            return predictor()

        config = DeploymentConfig(user_config=user_config, autoscaling_config=autoscaling)
        context = SimpleNamespace(_deployment_config=config)
        client = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1"))
        monkeypatch.setattr(app.ray.serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(app, "_get_global_client", lambda: client)
        monkeypatch.setattr(app, "ray_record", lambda: lambda *_: None)
        monkeypatch.setattr(app, "_load", load)
        wrapped: Any = EnsembleServer.func_or_class
        replica = wrapped.__bases__[0]("/runs/lost")
        asyncio.run(replica.reconfigure(user_config))
        return replica, loaded

    return started


class TestReplica:
    def test_starts_with_what_was_rolled_out_though_what_it_was_built_with_is_gone(self, start):
        _, loaded = start({"ensemble": "/runs/b", "shadow": None})
        assert loaded == ["/runs/b"]

    @pytest.mark.parametrize("config", [{}, {"ensemble": "/runs/lost"}])
    def test_does_not_start_without_the_ensemble_that_it_should_have(self, start, config):
        with pytest.raises(ValueError, match="no ensemble: /runs/lost"):
            start(config)

    def test_does_not_start_with_an_autoscaling_target_that_is_none(self, start):
        policy = {"policy_function": "serve.autoscaling:ViewsInFlight", "policy_kwargs": {"target_view": 6}}
        with pytest.raises(ValueError, match=r"policy_kwargs is {'target_view': 6}"):
            start({"ensemble": "/runs/b"}, autoscaling={"policy": policy})

    def test_is_not_healthy_when_no_study_can_be_predicted_any_more(self, start):
        replica, _ = start({"ensemble": "/runs/b"}, Broken)
        client = Client(replica.__serve_build_asgi_app__())
        for _ in range(2):
            assert post(client).status_code == 500
        replica.check_health()
        assert post(client).status_code == 500
        with pytest.raises(RuntimeError, match="the last 3 forward passes failed"):
            replica.check_health()
        assert post(client, ("a.png", LEFT)).status_code == 500


class TestConfig:
    def test_is_what_serve_reads_and_listens_on_loopback_only(self):
        config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
        assert config.http_options.host == "127.0.0.1"
        (application,) = config.applications
        (deployment,) = application.deployments
        assert application.import_path == "serve.app:build"
        assert deployment.name == EnsembleServer.name

    def test_the_application_answers_before_ray_gives_up(self):
        config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
        assert (config.http_options.request_timeout_s or 0) > Limits().request_s + 60  # beside a row of the record

    def test_a_replica_that_goes_may_answer_what_it_has_admitted(self):
        (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
        (deployment,) = application["deployments"]
        assert deployment["graceful_shutdown_timeout_s"] > max(Limits().worklist_s, Limits().request_s)
        autoscaling = deployment["autoscaling_config"]
        assert autoscaling["min_replicas"] >= 1
        assert autoscaling["policy"]["policy_kwargs"]["target_views"] < Limits().predictions

    def test_health_checks_find_a_place_beside_all_studies(self):
        assert EnsembleServer.max_ongoing_requests > Limits().predictions + Limits().pictures
