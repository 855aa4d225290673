"""The HTTP interface as a process of its own, for requests that may end it: real decoding, and a network of no weight.

python -m tests.fuzz_target PORT
"""

import sys
from collections.abc import Sequence

import numpy as np
import uvicorn

from mura_ray.config import TrialConfig
from mura_ray.domain import MemberPrediction, StudyPrediction, ViewPrediction
from mura_ray.images import resize_gray
from mura_ray.model.ensemble import EnsembleDescription, MemberDescription
from serve.api import build_api
from serve.limits import Limits

REQUEST_S = 20.0
SIZE = 64


class MeanGray:
    """Scales views as an ensemble does, and takes their mean gray for the probability."""

    max_views = 32
    description = EnsembleDescription(
        id="0123456789abcdef",
        image_size=SIZE,
        threshold=0.5,
        members=(MemberDescription(trial="trial", epoch=1, val_loss=0.1, config=TrialConfig(), sha256="0"),),
        data_id="0123456789abcdef",
        data_manifest_sha256="0",
        git_revision="unknown",
        created="2026-01-02T03:04:05.000006+00:00",
    )

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
            members=(MemberPrediction("trial", probability),),
        )


if __name__ == "__main__":
    api = build_api(MeanGray(), Limits(request_s=REQUEST_S, predictions=64, pictures=64))
    uvicorn.run(api, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
