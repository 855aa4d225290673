"""Sensitivity by what makes a study abnormal (paper, section 2.3)."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mura_ray.stats.agreement import binary_labels
from mura_ray.stats.estimates import Estimate, rate


@dataclass(frozen=True, slots=True)
class FindingSensitivity:
    """How many of the abnormal studies with a finding are called abnormal.

    Attributes:
        num_studies: abnormal studies with the finding.
        num_called: of them, called abnormal.
        num_normal: studies with the finding that are labelled normal; they are left out.
        sensitivity: with Wilson's interval, which takes the studies as independent.
    """

    num_studies: int
    num_called: int
    num_normal: int
    sensitivity: Estimate


def sensitivity_by_finding(
    findings: pd.DataFrame, labels: ArrayLike, called: ArrayLike
) -> dict[str, FindingSensitivity]:
    """Sensitivity for each finding; a study may have several, and counts for each of them.

    Args:
        findings: a row a study, a column a finding (the paper's: fracture, hardware, degenerative, other), 0 or 1.
        labels: 0 normal, 1 abnormal, [n].
        called: what the studies are called, 0 or 1, [n].

    Raises:
        ValueError: lengths differ, or a value is neither 0 nor 1.
    """
    labels, called = binary_labels(labels), binary_labels(called)
    if not len(findings) == len(labels) == len(called):
        raise ValueError(
            f"{len(findings)} rows of findings, {len(labels)} labels, {len(called)} decisions: one a study"
        )
    found = {}
    for name, column in findings.items():
        has = _has(str(name), column)
        abnormal = has & (labels == 1)
        num, hits = int(abnormal.sum()), int(called[abnormal].sum())
        found[str(name)] = FindingSensitivity(num, hits, int(has.sum()) - num, rate(hits, num))
    return found


def _has(name: str, column: pd.Series) -> np.ndarray:
    try:
        return binary_labels(column) == 1
    except ValueError as error:
        raise ValueError(f"finding {name!r}: {error}") from error
