from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.special import expit

from mura_ray.config import TrialConfig
from mura_ray.model import inference
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.ensemble import Ensemble, EnsembleDescription, MemberDescription
from mura_ray.model.inference import Engine, Exact, Output, make_engine
from tests.trained_like import SIZE, radiographs, trained_like


@pytest.fixture(scope="module")
def networks() -> list[AbnormalityNet]:
    return [trained_like(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(radiographs(11, 99))


@pytest.fixture(scope="module")
def exact(networks: Sequence[AbnormalityNet]) -> Engine:
    return make_engine(networks, SIZE, "cpu", "fp32")


@pytest.fixture(scope="module")
def fast(networks: Sequence[AbnormalityNet]) -> Engine:
    return make_engine(networks, SIZE, "cpu", "auto")


@pytest.fixture
def ensemble(exact: Engine) -> Ensemble:
    return with_engine(exact)


def with_engine(engine: Engine) -> Ensemble:
    members = tuple(
        MemberDescription(trial=f"trial-{place}", epoch=1, val_loss=0.1, config=TrialConfig(), sha256="0")
        for place in range(2)
    )
    description = EnsembleDescription(
        id="0", image_size=SIZE, threshold=0.5, members=members, data_id="0", data_manifest_sha256="0",
        git_revision="0", created="0",
    )  # fmt: skip
    ensemble = Ensemble(description, [], "cpu")
    ensemble._engine, ensemble.max_views = engine, engine.max_views
    return ensemble


def test_a_warm_engine_has_met_every_size_of_a_pass(fast: Engine):
    met: list[int] = []

    class Recorded:
        max_views, compiled_for = fast.max_views, fast.compiled_for

        def __call__(self, pixels: torch.Tensor) -> Output:
            met.append(len(pixels))
            return fast(pixels)

    ensemble = with_engine(Recorded())
    ensemble.warm_up()
    assert met == list(range(1, fast.max_views + 1))
    del met[:]
    studies = [[np.zeros((SIZE, SIZE), np.uint8)] * number for number in (3, 4, 2)]
    ensemble.predict_studies(studies)
    assert set(met) <= set(fast.compiled_for)
    assert sum(met) == 9


def test_the_folded_graph_gives_what_the_networks_give(exact: Engine, fast: Engine, pixels: torch.Tensor):
    assert type(fast) is not type(exact)
    logits, maps = exact(pixels)
    assert np.ptp(logits, axis=1).min() > 2, "equal logits would show nothing"
    fast_logits, fast_maps = fast(pixels)
    assert fast_logits.dtype == fast_maps.dtype == np.float32
    np.testing.assert_allclose(fast_logits, logits, atol=1e-3)
    np.testing.assert_allclose(fast_maps, maps, atol=2e-3)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_batch_of_any_size_gives_what_its_views_give(fast: Engine, pixels: torch.Tensor, number: int):
    logits, maps = fast(pixels)
    some_logits, some_maps = fast(pixels[-number:])
    np.testing.assert_allclose(some_logits, logits[:, -number:], atol=1e-4)
    np.testing.assert_allclose(some_maps, maps[-number:], atol=1e-4)


def test_a_maps_mean_and_the_bias_are_the_logit(networks: Sequence[AbnormalityNet], fast: Engine, pixels: torch.Tensor):
    logits, maps = fast(pixels)
    bias = np.mean([network.classifier.bias.item() for network in networks])
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + bias, logits.mean(axis=0), atol=1e-3)


def test_auto_moves_no_probability_by_more_than_serving_allows(exact: Engine, fast: Engine, pixels: torch.Tensor):
    expected, found = expit(exact(pixels)[0]), expit(fast(pixels)[0])
    assert np.ptp(expected, axis=1).min() > 0.3
    assert np.abs(found - expected).max() < 2e-3


def test_bf16_is_near_and_no_more(
    networks: Sequence[AbnormalityNet], exact: Engine, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inference, "has_bf16", lambda: True)  # emulated elsewhere
    logits, maps = make_engine(networks, SIZE, "cpu", "bf16")(pixels)
    expected_logits, expected_maps = exact(pixels)
    assert np.abs(expit(logits) - expit(expected_logits)).max() < 1e-1
    assert np.corrcoef(maps.ravel(), expected_maps.ravel())[0, 1] > 0.95


def test_several_threads_get_their_own_answers(fast: Engine, pixels: torch.Tensor):
    expected = fast(pixels)[0]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: fast(pixels[place : place + 1])[0][:, 0], range(len(pixels))))
    np.testing.assert_allclose(np.transpose(found), expected, atol=1e-4)


@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_studies_together_are_answered_as_each_alone(request: pytest.FixtureRequest, engine: str, pixels: torch.Tensor):
    ensemble = with_engine(request.getfixturevalue(engine))
    ensemble.max_views = 4  # passes end inside studies
    views = [np.repeat(view[0], 1 + place % 2, axis=0) for place, view in enumerate(pixels.numpy())]
    studies = [views[:1], views[1:6], views[6:8], views[8:]]
    for study, found in zip(studies, ensemble.predict_studies(studies), strict=True):
        alone = ensemble.predict_study(study)
        assert found.probability == pytest.approx(alone.probability, abs=1e-5)
        assert (found.abnormal, found.threshold) == (alone.abnormal, alone.threshold)
        assert [(view.width, view.height) for view in found.views] == [(v.shape[1], v.shape[0]) for v in study]
        assert [v.probability for v in found.views] == pytest.approx([v.probability for v in alone.views], abs=1e-5)
        assert [m.probability for m in found.members] == pytest.approx([m.probability for m in alone.members], abs=1e-5)
        for one, other in zip(found.views, alone.views, strict=True):
            np.testing.assert_allclose(one.cam, other.cam, atol=1e-3)


def test_the_mean_of_the_members_maps_are_the_maps(ensemble: Ensemble, pixels: torch.Tensor):
    ensemble.max_views = 4
    logits, member_maps = ensemble.predict_member_maps(pixels)
    expected_logits, maps = ensemble.predict_pixels(pixels)
    assert member_maps.dtype == np.float32
    assert member_maps.shape == (2, *maps.shape)
    np.testing.assert_array_equal(logits, expected_logits)
    np.testing.assert_allclose(member_maps.mean(axis=0), maps, atol=1e-5)
    assert np.abs(member_maps[0] - member_maps[1]).max() > 0.1, "equal members would show nothing"


def test_a_members_map_and_its_bias_are_its_logit(
    networks: Sequence[AbnormalityNet], ensemble: Ensemble, pixels: torch.Tensor
):
    logits, member_maps = ensemble.predict_member_maps(pixels)
    bias = np.array([network.classifier.bias.item() for network in networks])
    np.testing.assert_allclose(member_maps.mean(axis=(2, 3)) + bias[:, None], logits, atol=1e-3)


def test_members_maps_are_refused_by_what_keeps_their_mean_alone(fast: Engine, pixels: torch.Tensor):
    with pytest.raises(ValueError, match="precision 'fp32' alone"):
        with_engine(fast).predict_member_maps(pixels)


def test_studies_one_of_which_has_no_views_are_refused(ensemble: Ensemble, pixels: torch.Tensor):
    with pytest.raises(ValueError, match="at least one view"):
        ensemble.predict_studies([[pixels[0, 0].numpy()], []])


def test_exact_is_the_default(networks: Sequence[AbnormalityNet]):
    assert type(Ensemble(with_engine(Exact(networks, "cpu")).description, networks, "cpu")._engine) is Exact


def test_an_unknown_precision_is_refused_with_the_known_ones(networks: Sequence[AbnormalityNet]):
    with pytest.raises(ValueError, match="'int8' is unknown; one of fp32, openvino, graphs, bf16, fp16, auto"):
        make_engine(networks, SIZE, "cpu", "int8")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("precision", ["graphs", "fp16"])
def test_what_is_for_a_gpu_is_refused(networks: Sequence[AbnormalityNet], precision: inference.Precision):
    with pytest.raises(ValueError, match="is for a GPU; on a CPU choose fp32, bf16 or auto"):
        make_engine(networks, SIZE, "cpu", precision)


def test_bf16_is_refused_where_it_would_be_emulated(
    networks: Sequence[AbnormalityNet], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inference, "has_bf16", lambda: False)
    with pytest.raises(ValueError, match="no AVX512_BF16 or AMX; choose auto"):
        make_engine(networks, SIZE, "cpu", "bf16")
