from contextlib import suppress

import pytest

from serve.health import Passes
from tests.unit.api_client import DESCRIPTION, MeanGray


class Failing(MeanGray):
    def __init__(self, errors):
        self._errors = iter(errors)

    def predict_studies(self, studies):
        if error := next(self._errors):
            raise error
        return []


FAULT, USERS, NONE = MemoryError(), ValueError("no views"), None


@pytest.mark.parametrize(
    ("errors", "healthy"),
    [
        ([], True),
        ([FAULT, FAULT], True),
        ([FAULT, FAULT, FAULT], False),
        ([FAULT, FAULT, NONE, FAULT], True),
        ([USERS, USERS, USERS, USERS], True),
        ([FAULT, USERS, FAULT, FAULT], False),
    ],
)
def test_three_faults_in_a_row_are_too_many(errors, healthy):
    passes = Passes()
    predictor = passes.watched(Failing(errors))
    for _ in errors:
        with suppress(MemoryError, ValueError):
            predictor.predict_studies([])
    if healthy:
        passes.check()
    else:
        with pytest.raises(RuntimeError, match="the last 3 forward passes failed"):
            passes.check()


def test_another_ensemble_begins_without_the_failures_of_the_one_before():
    passes = Passes()
    passes.num_failed = 3
    passes.watched(MeanGray())
    passes.check()


def test_a_watched_predictor_is_what_it_was():
    predictor = Passes().watched(MeanGray())
    assert (predictor.description, predictor.max_views) == (DESCRIPTION, MeanGray.max_views)
