"""Splits by patient that hold when subjects are added."""

import hashlib
from collections.abc import Mapping

BUCKETS = 100
TEST_BELOW, VAL_BELOW = 15, 30


def bucket_of(patient: str) -> int:
    """A number from 0 to 99 for a patient, the same for all of that patient's scans.

    So coarse that it tells nobody: one in a hundred patients has the same one.

    Parameters
    ----------
    patient : str
        What a source calls the patient. Case and blanks around do not count.
    """
    return int(hashlib.sha256(f"patient {patient.strip().lower()}".encode()).hexdigest(), 16) % BUCKETS


def split_by_bucket(buckets: Mapping[str, int]) -> dict[str, str]:
    """Split of every subject, by its patient's bucket alone: below 15 test, below 30 val, else train.

    Subjects of a patient share a bucket, so that no patient is in two splits, and others do not matter, so that adding
    subjects moves nobody. Only where a split would be empty it gets the subjects of the lowest bucket that can be spared
    (train: the highest), from three buckets on; they go back when the split has subjects of its own.

    Parameters
    ----------
    buckets : mapping
        Name of a subject to its `bucket_of`.
    """
    usual = {b: "test" if b < TEST_BELOW else "val" if b < VAL_BELOW else "train" for b in set(buckets.values())}
    for wanted in ("train", "test", "val") if len(usual) >= 3 else ():
        held = list(usual.values())
        if wanted not in held:
            # No other split loses its only bucket.
            free = sorted(b for b in usual if held.count(usual[b]) > 1)
            usual[free[-1] if wanted == "train" else free[0]] = wanted
    return {name: usual[bucket] for name, bucket in buckets.items()}
