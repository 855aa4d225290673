"""Which five: the choice of an ensemble's members among the trials of a search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A trial's best epoch: the lowest validation loss that it reached, and the checkpoint that reached it."""

    trial: str
    epoch: int
    val_loss: float
    checkpoint: str


def choose_members(candidates: Sequence[Candidate], size: int) -> list[Candidate]:
    """The trials with the lowest validation losses (paper, section 3.1), lowest first.

    Args:
        candidates: the best epoch of every eligible trial: those that did not fail and were validated at least once.
        size: members of the ensemble.

    Raises:
        ValueError: fewer eligible trials than members.
    """
    finite = [candidate for candidate in candidates if math.isfinite(candidate.val_loss)]
    if len(finite) < size:
        raise ValueError(
            f"an ensemble of {size} needs {size} trials with a validated checkpoint; there are {len(finite)}: "
            "search more trials, or see why the others failed"
        )
    return sorted(finite, key=lambda candidate: (candidate.val_loss, candidate.trial))[:size]
