"""The HTTP interface as a process of its own, for requests that may end it: real decoding, and a network of no weight.

python -m tests.fuzz_target PORT
"""

import sys
from collections.abc import Sequence

import numpy as np
import uvicorn

from mura_ray.domain import MemberPrediction, StudyPrediction, ViewPrediction
from mura_ray.images import resize_gray
from serve.api import build_api
from serve.limits import Limits
from tests.unit.api_client import DESCRIPTION

REQUEST_S = 20.0
SIZE = 64


class MeanGray:
    """Scales views as an ensemble does, and takes their mean gray for the probability."""

    max_views = 32
    description = DESCRIPTION

    def predict_studies(self, studies: Sequence[Sequence[np.ndarray]]) -> list[StudyPrediction]:
        return [self._predict(views) for views in studies]

    def _predict(self, views: Sequence[np.ndarray]) -> StudyPrediction:
        small = [resize_gray(view, SIZE) for view in views]
        means = [float(view.mean()) / 255 for view in small]
        probability = float(np.mean(means))
        return StudyPrediction(
            probability=probability,
            abnormal=probability > self.description.threshold,
            threshold=self.description.threshold,
            views=tuple(
                ViewPrediction(view.shape[1], view.shape[0], mean, (one[::32, ::32] / 32 - 4).astype(np.float32))
                for view, one, mean in zip(views, small, means, strict=True)
            ),
            members=(*(MemberPrediction(member.trial, probability) for member in DESCRIPTION.members),),
        )


if __name__ == "__main__":
    api = build_api(MeanGray(), Limits(request_s=REQUEST_S, predictions=64, pictures=64))
    uvicorn.run(api, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
