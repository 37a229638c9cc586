"""Is a dataset what it says it is?"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim.cache.store import SubjectFile, array_sha256, build_index, read_index, sha256_of, subject_files

SIGMAS = 6.0
"""Counts further than this many binomial standard deviations from their expectation are a problem."""


def verify(folder: Path) -> dict[str, Any]:
    """Check schema, hashes, finite values, count statistics and the index of a dataset.

    Returns
    -------
    dict
        subjects (number), counts (name -> DRF -> prompts of realization 0), problems (list of one-line texts).

    Raises
    ------
    DataError
        Not a dataset at all.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder")
    index = read_index(folder)
    problems: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    for path in subject_files(folder):
        try:
            with SubjectFile(path) as f:
                problems += [f"{path.name}: {p}" for p in _check_subject(f)]
                prompts = f.doses()["prompts"][:, 0]
                counts[f.name] = {f"{d:g}": int(n) for d, n in zip(f.drfs, prompts, strict=True)}
        except DataError as error:
            problems.append(str(error))
        except (KeyError, ValueError, OSError) as error:
            problems.append(f"{path.name}: damaged: {str(error).splitlines()[0]}")
    problems += _check_index(folder, index)
    return {"subjects": len(counts), "counts": counts, "problems": problems}


def _check_subject(f: SubjectFile) -> list[str]:
    problems = []
    datasets: list[str] = []
    f.h5.visititems(lambda name, item: datasets.append(name) if hasattr(item, "shape") else None)
    for name in datasets:
        values = f.dataset(name)[()]
        if f.dataset(name).attrs.get("sha256") != array_sha256(values):
            problems.append(f"/{name} differs from its hash; it was changed or damaged")
        if values.dtype.kind == "f" and not name.startswith("doses/") and not np.isfinite(values).all():
            problems.append(f"/{name} has NaN or infinite values")
    wanted = {"recon", "truth/activity", "truth/mu", "doses/drf", "doses/prompts", "doses/trues"}
    missing = wanted - set(datasets)
    if missing:
        return [*problems, f"lacks {', '.join(sorted(missing))}"]
    if sha256_of(f.json("configuration")) != f.attribute("configuration_sha256"):
        problems.append("the configuration differs from its hash")
    noisy = f.json("provenance")["truth_is_noisy"]
    if not noisy and "reference/noise_free" not in datasets:
        problems.append("lacks reference/noise_free although its subject is simulated")
    shape = f.shape
    if f.dataset("recon").shape[2:] != shape or f.dataset("recon").shape[0] != len(f.drfs):
        problems.append(f"/recon has shape {f.dataset('recon').shape}, expected ({len(f.drfs)}, n, {shape})")
    return problems + _check_counts(f)


def _check_counts(f: SubjectFile) -> list[str]:
    """Thinned counts are binomial: mean n/d, variance n (1/d)(1 - 1/d)."""
    problems = []
    drfs, table = f.drfs, f.doses()
    prompts = table["prompts"].astype(float)
    if drfs[0] != 1 or drfs != sorted(drfs):
        problems.append(f"DRFs are {drfs}, they must start at 1 and ascend")
    for k, d in enumerate(drfs):
        for r, full in enumerate(prompts[0]):
            spread = math.sqrt(max(full / d * (1 - 1 / d), 0))
            if abs(prompts[k, r] - full / d) > SIGMAS * spread + 0.5:
                problems.append(
                    f"DRF {d:g}, realization {r}: {prompts[k, r]:.0f} counts, expected {full / d:.0f} +- {spread:.0f}"
                )
    if "sinogram" in f.h5:
        stored = f.dataset("sinogram")
        for k in range(stored.shape[0]):
            for r in range(stored.shape[1]):
                total = sum(int(stored[k, r, v].sum(dtype=np.int64)) for v in range(stored.shape[2]))
                if total != prompts[k, r]:
                    problems.append(f"/sinogram sums to {total} at DRF {drfs[k]:g}, the table says {prompts[k, r]:.0f}")
    return problems


def _check_index(folder: Path, index: dict[str, Any]) -> list[str]:
    problems = []
    listed = {s["file"]: s for s in index["subjects"]}
    for path in subject_files(folder):
        if path.name not in listed:
            problems.append(f"{path.name}: not in the index; run make-dataset again, which rebuilds it")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != listed[path.name]["sha256"]:
            problems.append(f"{path.name}: differs from the hash in the index")
    present = {p.name for p in subject_files(folder)}
    problems += [f"{name}: in the index but not there" for name in sorted(set(listed) - present)]
    if not problems and build_index(folder) != index:
        problems.append("dataset.json differs from what its files say; run make-dataset again, which rebuilds it")
    return problems
