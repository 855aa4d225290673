"""The members on a GPU: a stream each, recorded as CUDA graphs. Nothing stands in for it on a CPU."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from mura_ray.model.inference import make_engine
from tests.trained_like import SIZE, radiographs, trained_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, this machine has none"),
]


# These networks enlarge rounding: on a CPU fp16 autocast moves their logits by 0.15 too.
@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 1e-4), ("fp16", 5e-2)])
def test_recorded_graphs_give_what_the_networks_give_for_any_number_of_views(precision, tolerance):
    pixels = torch.from_numpy(radiographs(11, 99))
    logits, maps = make_engine([trained_like(seed) for seed in range(2)], SIZE, "cpu", "fp32")(pixels)
    engine = make_engine([trained_like(seed) for seed in range(2)], SIZE, "cuda", precision)
    for number in (1, 3, 11, 2, 3):  # the second 3 replays what the first recorded, after other sizes
        fast_logits, fast_maps = engine(pixels[:number])
        assert np.abs(expit(fast_logits) - expit(logits[:, :number])).max() < tolerance
        np.testing.assert_allclose(fast_maps, maps[:number], rtol=tolerance, atol=20 * tolerance)


def test_fp32_is_fp32_and_not_tf32():
    pixels = torch.from_numpy(radiographs(5, 99))
    expected, _ = make_engine([trained_like(0)], SIZE, "cpu", "fp32")(pixels)
    logits, _ = make_engine([trained_like(0)], SIZE, "cuda", "fp32")(pixels)
    np.testing.assert_allclose(logits, expected, atol=2e-4)


@pytest.mark.parametrize("precision", ["openvino", "bf16"])
def test_what_is_for_a_cpu_is_refused(precision):
    with pytest.raises(ValueError, match="is for a CPU; on cuda choose fp32, fp16 or auto"):
        make_engine([trained_like(0)], SIZE, "cuda", precision)
