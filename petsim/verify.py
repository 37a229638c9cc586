"""Is a dataset what it says it is?"""

import fcntl
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError
from petsim.cache.live import listed, volume_problem
from petsim.cache.schema import VERSION
from petsim.cache.store import (
    INDEX,
    SubjectFile,
    array_sha256,
    build_index,
    read_index,
    sha256_of,
    subject_files,
    write_index,
)
from petsim.forward_store import forward_problem

SIGMAS = 6.0
"""Counts further than this many standard deviations from their expectation are a problem."""


def verify(folder: Path, repair: bool = False) -> dict[str, Any]:
    """Check schema, hashes, finite values, count statistics, corrections and the index of a dataset.

    Parameters
    ----------
    folder : Path
    repair : bool
        Put damaged files aside as `<name>.damaged`, remove what interrupted runs left behind, and rebuild the index, before
        all is checked. What was put aside, make-dataset makes again.

    Returns
    -------
    dict
        subjects (number), counts (name -> DRF -> prompts of realization 0), problems and repairs (lists of one-line texts).

    Raises
    ------
    DataError
        Not a dataset at all.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder")
    repairs = _repair(folder) if repair else []
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
    return {"subjects": len(counts), "counts": counts, "problems": problems, "repairs": repairs}


def _repair(folder: Path) -> list[str]:
    if not (folder / INDEX).exists() and not subject_files(folder):
        raise DataError(f"{folder.name}: holds no subject; this is not a dataset, or nothing of it is left")
    repairs = []
    for left in sorted(folder.glob("*.tmp")):
        if _is_written(left):
            continue
        left.unlink()
        repairs.append(f"{left.name}: removed, an interrupted run had left it")
    for path in subject_files(folder):
        if not os.access(path, os.R_OK) or _version(path) not in (None, VERSION):
            continue
        try:
            with SubjectFile(path) as f:
                damage = _check_bytes(f)
        except (DataError, KeyError, ValueError, OSError) as error:
            damage = [str(error).splitlines()[0]]
        if damage:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            repairs.append(f"{path.name}: put aside as {path.name}.damaged ({damage[0]}); make-dataset makes it again")
    try:
        known = read_index(folder)
    except DataError:
        known = None
    if known != build_index(folder):
        write_index(folder)
        repairs.append(f"{INDEX}: rebuilt")
    return repairs


def _is_written(path: Path) -> bool:
    """Whether a process has a file open for writing: HDF5 locks it then."""
    with path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _version(path: Path) -> Any:
    """Schema version of a file; None for one that cannot be read, or says none."""
    try:
        with h5py.File(path, "r") as f:
            return f.attrs.get("schema_version")
    except OSError:
        return None


def verify_cache(root: Path, repair: bool = False) -> dict[str, Any]:
    """Check keys, hashes and finite values of all volumes and forward models of a live cache, which may be in use.

    Parameters
    ----------
    root : Path
    repair : bool
        Remove what is damaged; it is made again when it is asked for.

    Returns
    -------
    dict
        volumes (number), problems and repairs (lists of one-line texts).
    """
    paths = [path for folder in sorted(p for p in root.iterdir() if p.is_dir()) for _, _, path in listed(folder)]
    found = [(path, volume_problem(path)) for path in paths]
    found += [(path, forward_problem(path)) for path in sorted((root / "forward").glob("*.h5"))]
    left = [path for path in sorted((root / "forward").glob("*.tmp")) if not _is_written(path)]
    found += [(path, "left by an interrupted run") for path in left]
    wrong = {path: f"{path.parent.name}/{path.name}: {problem}" for path, problem in found if problem is not None}
    if not repair:
        return {"volumes": len(paths), "problems": list(wrong.values()), "repairs": []}
    for path in wrong:
        path.unlink(missing_ok=True)
    return {"volumes": len(paths), "problems": [], "repairs": [f"{text}; removed" for text in wrong.values()]}


def _check_subject(f: SubjectFile) -> list[str]:
    problems = _check_bytes(f)
    if any("lacks " in p for p in problems):
        return problems
    return problems + _check_counts(f) + _check_corrections(f)


def _check_bytes(f: SubjectFile) -> list[str]:
    """What a damaged or changed file shows, whatever its numbers mean."""
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
    return problems


def _check_counts(f: SubjectFile) -> list[str]:
    problems = []
    drfs, table = f.drfs, f.doses()
    prompts = table["prompts"]
    if drfs[0] != 1 or drfs != sorted(drfs):
        problems.append(f"DRFs are {drfs}, they must start at 1 and ascend")
    mode = str(f.h5["doses"].attrs["mode"])
    problems += _check_thinned(drfs, prompts) if mode == "thin" else _check_nested(drfs, prompts, _regained(f))
    if f.json("provenance").get("realizations") == "independent":
        problems += _check_level(drfs, table)
    for where, k, r in _places(drfs, prompts):
        parts = [int(table[name][k, r]) for name in ("trues", "scatter", "randoms")]
        if sum(parts) != prompts[k, r]:
            problems.append(f"{where}: trues {parts[0]} + scatter {parts[1]} + randoms {parts[2]} are {sum(parts)}, "
                            f"not the {prompts[k, r]} prompts")  # fmt: skip
        # NEC comes from expected counts, prompts are drawn.
        nec = float(table["nec"][k, r])
        if nec > prompts[k, r] + SIGMAS * math.sqrt(nec) + 0.5:
            problems.append(f"{where}: NEC {nec:.0f} is more than the {prompts[k, r]} prompts")
    if "sinogram" in f.h5:
        stored = f.dataset("sinogram")
        for k in range(stored.shape[0]):
            for r in range(stored.shape[1]):
                total = sum(int(stored[k, r, v].sum(dtype=np.int64)) for v in range(stored.shape[2]))
                if total != prompts[k, r]:
                    problems.append(f"/sinogram sums to {total} at DRF {drfs[k]:g}, the table says {prompts[k, r]}")
    return problems


def _places(drfs: list[float], prompts: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Every dose and realization: how a problem names it, and its indices."""
    for k, d in enumerate(drfs):
        for r in range(prompts.shape[1]):
            yield f"DRF {d:g}, realization {r}", k, r


def _check_thinned(drfs: list[float], prompts: np.ndarray) -> list[str]:
    """Thinned counts are binomial: mean n/d, variance n (1/d)(1 - 1/d)."""
    problems = []
    for where, k, r in _places(drfs, prompts):
        full, d = float(prompts[0, r]), drfs[k]
        spread = math.sqrt(max(full / d * (1 - 1 / d), 0))
        if abs(prompts[k, r] - full / d) > SIGMAS * spread + 0.5:
            problems.append(f"{where}: {prompts[k, r]} counts, expected {full / d:.0f} +- {spread:.0f}")
    return problems


def _regained(f: SubjectFile) -> list[float]:
    """Counts at every dose over those at the dose before it, where live time regains more than the dose takes; else 1."""
    drfs = f.drfs
    if str(f.h5["doses"].attrs["mode"]) != "dose":
        return [1.0] * len(drfs)
    live = [float(rate["mean_live_fraction"]) for rate in f.json("provenance")["rates"]]
    return [1.0] + [max(1.0, drfs[k - 1] / drfs[k] * (live[k] / live[k - 1]) ** 2) for k in range(1, len(drfs))]


def _check_nested(drfs: list[float], prompts: np.ndarray, regained: list[float]) -> list[str]:
    """What a dose records is part of what the dose before it records, but for what regained live time adds."""
    problems = []
    for where, k, r in _places(drfs, prompts):
        if k == 0:
            continue
        before = float(prompts[k - 1, r])
        limit = before * regained[k]
        if regained[k] > 1:
            limit += SIGMAS * math.sqrt(limit)
        if prompts[k, r] > limit:
            problems.append(f"{where}: {prompts[k, r]} counts, more than the {before:.0f} of DRF {drfs[k - 1]:g}")
    return problems


def _check_level(drfs: list[float], table: dict[str, np.ndarray]) -> list[str]:
    """Prompts are Poisson about their expectation, whose trues follow from NEC = T^2 / (T + S + R)."""
    problems = []
    for where, k, r in _places(drfs, table["prompts"]):
        nec, prompts = float(table["nec"][k, r]), int(table["prompts"][k, r])
        others = float(table["scatter"][k, r] + table["randoms"][k, r])
        expected = (nec + math.sqrt(nec**2 + 4 * nec * others)) / 2 + others
        # Scatter and randoms are rounded, each by half a count at most.
        if not abs(prompts - expected) <= SIGMAS * math.sqrt(expected) + 2:
            problems.append(f"{where}: {prompts} counts, but NEC, scatter and randoms are those of {expected:.0f}")
    return problems


def _check_corrections(f: SubjectFile) -> list[str]:
    """Corrections that are said to be estimated differ from the true ones in everything that was to be estimated."""
    provenance = f.json("provenance")
    settings = f.json("configuration") | provenance.get("vary", {}).get("drawn", {})
    recon = provenance.get("reconstruction", {})
    estimated = "estimated" in (settings.get("corrections"), recon.get("corrections"))
    # Of recorded data nobody knows the true corrections.
    if not estimated or provenance.get("full_dose") == "recorded":
        return []
    found = recon.get("by_realization", [])
    if len(found) != f.dataset("recon").shape[1]:
        return ["corrections are called estimated, but how they were found is not recorded"]
    true = _equal_to_oracle(settings, found, len(f.drfs), bool(f.dataset("truth/mu")[()].any()))
    if not true:
        return []
    return [f"corrections are called estimated, but {' and '.join(true)} equal the true ones (oracle)"]


def _equal_to_oracle(settings: dict[str, Any], found: list[dict[str, Any]], doses: int, attenuates: bool) -> list[str]:
    """Names of corrections that were to be estimated and are the true ones in any realization and dose."""
    differences = [realization["estimated_minus_true"] for realization in found]
    equal = {
        "randoms": settings.get("randoms", "none") != "none"
        and any(singles == 0 for d in differences for singles in d["singles"][:doses]),
        "scatter": settings.get("scatter", "none") != "none"
        and any(len(realization["scatter_scales"]) < doses for realization in found),
        "normalization": settings.get("drift", 0) > 0 and any(d["normalization"] == 0 for d in differences),
        "the mu-map": settings.get("mu_shift", 0) > 0 and attenuates and any(d["mu_per_cm"] == 0 for d in differences),
    }
    return [name for name, is_equal in equal.items() if is_equal]


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
