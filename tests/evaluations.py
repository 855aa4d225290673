"""What an evaluation leaves beside an ensemble."""

import pandas as pd

from mura_ray.domain import OVERALL
from mura_ray.render.report import EvaluationResult, write_numbers
from mura_ray.stats.estimates import Estimate
from mura_ray.stats.metrics import Metrics

NOTE = "optimistic numbers: epochs and members are chosen on the split 'valid'"


def write_evaluation(home, split, ensemble_id, data_id="feedfeedfeedfeed"):
    """An evaluation of two studies of wrists, with metrics of no study, beside `home/ensemble`; returns its folder."""
    metrics = Metrics(
        num_studies=10, num_abnormal=5, auroc=Estimate(0.9, 0.8, 1.0), auroc_delong=Estimate(0.9, 0.7, 1.0),
        sensitivity=Estimate(0.8, 0.4, 0.9), specificity=Estimate(0.6, 0.3, 0.8), ppv=Estimate(), npv=Estimate(),
        kappa=Estimate(), kappa_clustered=Estimate(), brier=Estimate(), ece=Estimate(),
    )  # fmt: skip
    result = EvaluationResult(
        ensemble_id=ensemble_id,
        data={"name": "mura", "id": data_id, "split": split, "split_policy": "mura"},
        threshold=0.5,
        notes=(NOTE,),
        metrics={"wrist": metrics, OVERALL: metrics},
        studies=pd.DataFrame({"study": ["a", "b"], "study_type": "wrist", "probability": [0.05, 0.62]}),
        painted=pd.DataFrame({"label": [0]}),
        localisation=None,
    )
    folder = home / f"evaluation-{split}-{data_id}-{ensemble_id}"
    folder.mkdir(parents=True)
    write_numbers(result, str(folder))
    return folder
