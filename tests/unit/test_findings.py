import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from mura_ray.stats.estimates import Estimate
from mura_ray.stats.findings import sensitivity_by_finding


def test_a_study_counts_for_each_of_its_findings():
    labels = [1] * 8 + [0] * 2
    called = [1, 1, 1, 0, 1, 0, 0, 1, 1, 0]
    findings = pd.DataFrame(
        {
            "fracture": [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
            "hardware": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
            "other": [0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        }
    )
    found = sensitivity_by_finding(findings, labels, called)
    assert list(found) == ["fracture", "hardware", "other"]
    fracture, hardware, other = found.values()
    assert (fracture.num_studies, fracture.num_called, fracture.num_normal) == (6, 4, 0)
    assert (hardware.num_studies, hardware.num_called, hardware.num_normal) == (5, 2, 2)
    assert hardware.sensitivity.value == 2 / 5
    expected = proportion_confint(4, 6, method="wilson")
    assert (fracture.sensitivity.low, fracture.sensitivity.high) == pytest.approx(expected, abs=1e-9)
    assert (other.num_studies, other.sensitivity) == (1, Estimate())


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="1 rows of findings, 2 labels, 2 decisions"):
        sensitivity_by_finding(pd.DataFrame({"fracture": [1]}), [0, 1], [0, 1])
    with pytest.raises(ValueError, match="finding 'fracture': label nan at position 1"):
        sensitivity_by_finding(pd.DataFrame({"fracture": [1, np.nan]}), [0, 1], [0, 1])
