"""Splits hold when subjects are added, and a patient is in one of them."""

import numpy as np

from data_recipes.splits import BUCKETS, bucket_of, split_by_bucket


def test_patients_spread_evenly_over_the_buckets():
    """15 test and 15 val of 100 buckets: of 4000 patients 600 each, with a binomial deviation of 23."""
    splits = split_by_bucket({f"s{k}": bucket_of(f"patient {k}") for k in range(4000)})
    counts = {s: sum(v == s for v in splits.values()) for s in ("train", "val", "test")}
    for split in ("val", "test"):
        assert abs(counts[split] - 600) < 5 * np.sqrt(4000 * 0.15 * 0.85)
    assert {bucket_of(str(k)) for k in range(3000)} == set(range(BUCKETS))


def test_adding_subjects_moves_nobody():
    buckets = {f"s{k}": bucket_of(f"patient {k}") for k in range(200)}
    few = {name: buckets[name] for name in list(buckets)[:60]}
    after = split_by_bucket(buckets)
    assert split_by_bucket(few) == {name: after[name] for name in few}
    assert split_by_bucket(dict(reversed(buckets.items()))) == after


def test_scans_of_a_patient_share_their_split():
    buckets = {f"scan-{k}": bucket_of(f"ID{k // 3}") for k in range(300)}
    splits = split_by_bucket(buckets)
    for k in range(0, 300, 3):
        assert splits[f"scan-{k}"] == splits[f"scan-{k + 1}"] == splits[f"scan-{k + 2}"]
    assert bucket_of(" id4711 ") == bucket_of("ID4711")


def test_no_split_is_empty_from_three_patients_on():
    assert split_by_bucket({"a": 50, "b": 60, "c": 70}) == {"a": "test", "b": "val", "c": "train"}
    assert split_by_bucket({"a": 1, "b": 2, "c": 3}) == {"a": "val", "b": "test", "c": "train"}
    assert split_by_bucket({"a": 20, "b": 21, "c": 22}) == {"a": "test", "b": "val", "c": "train"}
    assert split_by_bucket({"a": 40, "b": 40, "c": 90}) == {"a": "train", "b": "train", "c": "train"}
    assert split_by_bucket({}) == {}
    for seed in range(300):
        drawn = np.random.default_rng(seed).choice(BUCKETS, 3, replace=False)
        assert sorted(split_by_bucket({str(k): int(b) for k, b in enumerate(drawn)}).values()) == ["test", "train", "val"]
