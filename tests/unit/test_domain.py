import math

import numpy as np
import pytest

from mura_ray.domain import STUDY_TYPES, Study, View, class_weights, image_count_weights, weights_matrix


def study(study_type: str, label: int, num_views: int, patient: str = "patient00001") -> Study:
    return Study(study_type, patient, "study1", label, tuple(View(f"{i}.png") for i in range(num_views)))


def test_study_types_are_the_papers_in_their_fixed_order():
    assert STUDY_TYPES == ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")


def test_key_tells_studies_of_a_patient_apart():
    assert study("hand", 0, 1).key == "hand/patient00001/study1"
    assert study("hand", 0, 1).key != study("wrist", 0, 1).key


def test_class_weights_count_images_not_studies():
    # hand: |N| = 1 image of 1 study, |A| = 2 + 5 images of 2 studies.
    weights = class_weights([study("hand", 0, 1), study("hand", 1, 2), study("hand", 1, 5), study("elbow", 0, 4)])
    assert weights == {"elbow": (0.0, 1.0), "hand": (7 / 8, 1 / 8)}


def test_class_weights_of_the_published_training_set():
    # Elbow: 2925 normal and 2006 abnormal images, 4931 in all.
    weights = image_count_weights({("elbow", 0): 2925, ("elbow", 1): 2006})
    assert weights["elbow"] == pytest.approx((0.406814, 0.593186), abs=1e-6)


def test_no_images_no_weights():
    assert class_weights([]) == {}
    assert class_weights([study("hand", 0, 0)]) == {}


@pytest.mark.parametrize("unknown", [("foot", 0), ("hand", 2), ("Hand", 1)])
def test_weights_of_unknown_classes(unknown: tuple[str, int]):
    with pytest.raises(ValueError, match="known are elbow"):
        image_count_weights({("hand", 1): 1, unknown: 3})


def test_weights_matrix_is_indexed_by_type_and_label():
    matrix = weights_matrix({"hand": (0.75, 0.25)})
    assert matrix.shape == (7, 2)
    assert matrix.dtype == np.float32
    assert matrix[3].tolist() == [0.75, 0.25]
    assert all(math.isnan(value) for value in np.delete(matrix, 3, axis=0).ravel())
