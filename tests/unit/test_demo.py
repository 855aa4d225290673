from collections import Counter

from mura_ray.data.collection import Collection
from mura_ray.data.phantom import plan_studies
from mura_ray.demo import shuffle_labels


def test_shuffled_labels_keep_the_shares_and_say_nothing_of_the_truth() -> None:
    plan = plan_studies((400, 100), seed=3)
    collection = Collection("phantom", "/", {**plan, "test": plan["valid"]}, "patient", ())
    shuffled = shuffle_labels(collection)
    assert shuffled.splits["test"] == collection.splits["test"]
    for split in ("train", "valid"):
        before, after = collection.splits[split], shuffled.splits[split]
        assert [study.views for study in after] == [study.views for study in before]
        table = Counter((old.label, new.label) for old, new in zip(before, after, strict=True))
        share_if_normal = table[0, 1] / (table[0, 0] + table[0, 1])
        share_if_abnormal = table[1, 1] / (table[1, 0] + table[1, 1])
        assert abs(share_if_normal - share_if_abnormal) < 0.07
        assert abs(sum(study.label for study in after) - sum(study.label for study in before)) <= 7
    assert shuffle_labels(collection).splits == shuffled.splits
