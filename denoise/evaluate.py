"""Figures of merit of trained runs and of simple filters on a dataset's subjects."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.phantoms.whole_body import FIRST_LESION_LABEL
from denoise.baselines import gaussian_baseline, non_local_means
from denoise.conventions import CONVENTIONS
from denoise.data import Ladder, read_ladder
from denoise.denoiser import Denoiser
from denoise.metrics import (
    bias_and_variance,
    equivalent_counts,
    fraction_of_ceiling,
    nmae,
    nrmse,
    own_range_peak,
    psnr_db,
    ssim,
)
from denoise.regions import contrast_recovery, hot_blobs, missed_lesions, organ_means, suv_max
from denoise.statistics import FEWEST_PATIENTS, bootstrap_interval, correct_lines, paired_wilcoxon
from denoise.texture import edge_sharpness, local_sd
from petsim.cache.store import SubjectFile, read_index
from petsim.noise import NO_FIGURE, body_mask, coefficient_of_variation, liver_sphere, sphere
from petsim.noise_spectrum import (
    NoisePowerSpectrum,
    mean_frequency,
    mean_spectrum,
    noise_power_spectrum,
    residual_autocorrelation,
)

PEAK_SUV = 20.0
"""Peak of the PSNR with a fixed range."""

FALSE_ABOVE_SUV, FALSE_ML = 1.0, 0.5
"""A region that exceeds the noise-free image by so many SUV over so many mL is a false hot blob."""

SPECTRUM_MM = 48.0
"""Edge of the square in the liver's slices in which the noise power spectrum is measured."""

NEIGHBORS = ((1, 0, 0), (0, 1, 0))
"""Shifts at which the autocorrelation of the residual is measured."""

FWHM_MM = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 18.0, 22.0, 26.0, 32.0)
NLM_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
TUNED_ON = 2
"""Filters are tuned on at most so many validation subjects, for each dose apart."""

Estimate = Callable[[Ladder, int, int], np.ndarray]
"""(subject, dose, realization) -> denoised image in SUV."""


@dataclass(frozen=True)
class Evaluation:
    """Result.

    Parameters
    ----------
    rows : list of dict
        One for each subject, dose and method.
    organs : list of dict
        SUVmean over that of the noise-free image by organ.
    summary : list of dict
        Means over subjects by dose and method, with intervals.
    tuned : dict
        What the filters were tuned to, by DRF.
    split, tuned_on, target_kind : str
        Subjects evaluated, and those that the filters were tuned on; "independent" or "nested" full dose as the noisy
        reference.
    pictures : dict
        By method: a coronal slice (x, z) of the first subject at the lowest dose, float32 SUV; the reference is the last.
    slice_mm : tuple of float
        Voxel edges of the slices.
    spectra : dict
        By method: noise power spectrum in and around the liver at the lowest dose, mean over subjects; empty without labels
        or a second noise realization.
    left_out : tuple of str
        Subjects that serve no figure, since their body is cut off at the sides of the image.
    """

    rows: list[dict[str, Any]]
    organs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    tuned: dict[str, dict[str, float]]
    split: str
    tuned_on: str
    target_kind: str
    pictures: dict[str, np.ndarray]
    slice_mm: tuple[float, float]
    spectra: dict[str, NoisePowerSpectrum]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class SubjectEvaluation:
    """Figures of one subject; fields as of `Evaluation`."""

    rows: list[dict[str, Any]]
    organs: list[dict[str, Any]]
    target_kind: str
    pictures: dict[str, np.ndarray]
    slice_mm: tuple[float, float]
    spectra: dict[str, NoisePowerSpectrum]


def evaluate(
    runs: Sequence[Path],
    data: Path,
    split: str = "test",
    device: str = "auto",
    seed: int = 0,
    conventions: Sequence[str] = (),
    progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Evaluation:
    """Evaluate runs beside the identity, a tuned Gaussian and tuned non-local means.

    Parameters
    ----------
    runs : sequence of Path
    data : Path
        Dataset of simulated subjects.
    split : str
        "test", "val", "train", or "all".
    device : str
    seed : int
        Of bootstrap intervals.
    conventions : sequence of str
        Keys of `denoise.conventions.CONVENTIONS`, whose figures are added.
    progress : callable

    Raises
    ------
    DataError, UsageError
    """
    if seed < 0:
        raise UsageError(f"--seed: must be 0 or more, got {seed}")
    entries = [s for s in read_index(data)["subjects"] if split in (s["split"], "all")]
    if not entries:
        raise DataError(f"{data.name}: no subject in the split '{split}'")
    left_out = tuple(e["name"] for e in entries if _is_truncated(data / e["file"]))
    entries = [e for e in entries if e["name"] not in left_out]
    if not entries:
        raise DataError(f"{data.name}: {_TRUNCATED} in every subject of the split '{split}'; give whole images")
    tuned = tune_filters(data, split)
    methods = all_methods(runs, tuned, device)
    found = []
    for k, entry in enumerate(entries):
        progress(entry["name"], k / len(entries))
        one = evaluate_subject(data / entry["file"], methods, conventions)
        found.append(one if not found else replace(one, pictures={}))
    rows, organs = [row for one in found for row in one.rows], [row for one in found for row in one.organs]
    first = found[0]
    spectra = {
        name: mean_spectrum([one.spectra[name] for one in found if name in one.spectra])
        for name in dict.fromkeys(name for one in found for name in one.spectra)
    }
    return Evaluation(
        rows,
        organs,
        summarize(rows, seed),
        tuned,
        split,
        _tuning_split(data, split),
        first.target_kind,
        first.pictures,
        first.slice_mm,
        spectra,
        left_out,
    )


_TRUNCATED = f"{NO_FIGURE} or contest,"


def _is_truncated(path: Path) -> bool:
    with SubjectFile(path) as f:
        return f.is_truncated


def all_methods(runs: Sequence[Path], tuned: dict[str, dict[str, float]], device: str) -> dict[str, Estimate]:
    """The identity, filters with what they were tuned to, and runs, by name.

    Raises
    ------
    DataError, UsageError
        For a run that cannot be read, or two of one name.
    """
    if len({run.name for run in runs}) < len(runs):
        raise UsageError("two runs have one name; rename one of their folders")
    denoisers = {run.name: Denoiser.load(run, device) for run in runs}

    def gaussian(ladder: Ladder, dose: int, realization: int) -> np.ndarray:
        fwhm = tuned["gaussian"][f"{ladder.drfs[dose]:g}"]
        return gaussian_baseline(ladder.image(dose, realization), fwhm, ladder.spacing_mm)

    def means(ladder: Ladder, dose: int, realization: int) -> np.ndarray:
        strength = tuned["non-local means"][f"{ladder.drfs[dose]:g}"]
        return _non_local_means(ladder, dose, realization, strength)

    methods: dict[str, Estimate] = {
        "identity": lambda ladder, dose, realization: ladder.image(dose, realization),
        "gaussian": gaussian,
        "non-local means": means,
    }
    for name, denoiser in denoisers.items():

        def network(ladder: Ladder, dose: int, realization: int, denoiser: Denoiser = denoiser) -> np.ndarray:
            return denoiser(
                ladder.image(dose, realization), ladder.spacing_mm, ladder.drfs[dose],
                float(ladder.log_nec_per_m[dose, realization]),
            ).image  # fmt: skip

        methods[name] = network
    return methods


def _non_local_means(ladder: Ladder, dose: int, realization: int, strength: float) -> np.ndarray:
    return non_local_means(ladder.image(dose, realization), ladder.levels[dose][realization].sd, strength, 1, 3)


def _tuning_split(data: Path, split: str) -> str:
    splits = {s["split"] for s in read_index(data)["subjects"]}
    where = "val" if "val" in splits and split != "val" else "train"
    return where if where in splits else split


def tune_filters(data: Path, split: str) -> dict[str, dict[str, float]]:
    """Width and strength of least mean squared error to the noise-free image on validation subjects, by DRF.

    Where no subject is for validation, or those are what is evaluated (`split`), on training subjects.
    """
    chosen = _tuning_split(data, split)
    files = [data / s["file"] for s in read_index(data)["subjects"] if chosen in (s["split"], "all")]
    ladders = [read_ladder(path) for path in islice((p for p in files if not _is_truncated(p)), TUNED_ON)]
    if not ladders:
        raise DataError(f"{data.name}: {_TRUNCATED} in every subject of the split '{chosen}'; give whole images")
    clean = [ladder.reference() for ladder in ladders]
    tuned: dict[str, dict[str, float]] = {"gaussian": {}, "non-local means": {}}
    bodies = [body_mask(image) for image in clean]
    for dose, drf in enumerate(ladders[0].drfs):

        def error(make: Callable[[Ladder], np.ndarray]) -> float:
            return sum(nrmse(make(x), target, body) for x, target, body in zip(ladders, clean, bodies, strict=True))

        def smoothed(fwhm: float, dose: int = dose) -> float:
            return error(lambda x: gaussian_baseline(x.image(dose), fwhm, x.spacing_mm))

        def averaged(strength: float, dose: int = dose) -> float:
            return error(lambda x: _non_local_means(x, dose, 0, strength))

        tuned["gaussian"][f"{drf:g}"] = min(FWHM_MM, key=smoothed)
        tuned["non-local means"][f"{drf:g}"] = min(NLM_STRENGTHS, key=averaged)
    return tuned


def evaluate_subject(
    path: Path, methods: dict[str, Estimate], conventions: Sequence[str] = (), drfs: Sequence[float] | None = None
) -> SubjectEvaluation:
    """Figures of one subject of a dataset, at some of its doses (None: all), with all methods, also as `conventions` define
    them.

    Raises
    ------
    DataError
        A file that cannot be read, or a body that is cut off at the sides of the image.
    """
    ladder = read_ladder(path)
    if ladder.truncated:
        raise DataError(f"{ladder.name}: {_TRUNCATED} so leave the subject out")
    with SubjectFile(path) as f:
        labels = f.array("truth/labels")
        names = f.label_names
    clean = ladder.reference()
    body = body_mask(clean)
    lesions = None if labels is None else np.where(labels >= FIRST_LESION_LABEL, labels, 0).astype(np.int32)
    measured = ladder.noise_free is None
    realizations = ladder.realizations
    # A measured full dose is noisy truth, and serves neither bias nor ceiling.
    independent = realizations > 1 and not measured
    full = ladder.image(0, realizations - 1) if independent else ladder.image(0)
    peak = own_range_peak(clean, body)

    @cache
    def mean_error(dose: int) -> float:
        return float(np.mean([_mse(ladder.image(dose, r), clean, body) for r in range(realizations)]))

    plain = [_mse(ladder.image(d), clean, body) for d in range(len(ladder.drfs))]
    grid = Grid(ladder.shape, ladder.spacing_mm, (0.0, 0.0, 0.0))
    liver = next((k for k, v in names.items() if v == "liver"), None)
    box = None if labels is None or liver is None else liver_sphere(labels, liver, grid)
    organ_names = {label: name for label, name in names.items() if label < FIRST_LESION_LABEL}
    true_organ_means = {} if labels is None else organ_means(clean, labels, organ_names)
    true_suv_max = {} if lesions is None else suv_max(clean, lesions)
    middle = None if box is None else _around(box, grid)
    rows, organs, pictures, spectra = [], [], {}, {}
    for dose, drf in enumerate(ladder.drfs):
        if drfs is not None and drf not in drfs:
            continue
        against_full = _mse(ladder.image(dose), full, body)
        for name, make in methods.items():
            several = [make(ladder, dose, r) for r in range(realizations)]
            image = several[0]
            row: dict[str, Any] = {"subject": ladder.name, "scanner": ladder.scanner, "drf": drf, "method": name}
            row["reference"] = "full dose" if measured else "noise-free"
            row["psnr_db"] = psnr_db(image, clean, PEAK_SUV, body)
            row["psnr_own_range_db"] = psnr_db(image, clean, peak, body)
            row["psnr_volume_db"] = psnr_db(image, clean, PEAK_SUV, None)
            row["ssim"] = ssim(image, clean, peak, body)
            row["nmae"], row["nrmse"] = nmae(image, clean, body), nrmse(image, clean, body)
            if drf > 1:
                row["gain_db"] = 10 * math.log10(against_full / _mse(image, full, body))
            # Thinned counts and a shorter window have the variance of their counts, a lower injection fewer randoms too.
            ratio = mean_error(dose) / mean_error(0) if ladder.mode == "dose" else drf
            if drf > 1 and ratio > 1 and not measured:
                row["fraction_of_ceiling"] = fraction_of_ceiling(row["gain_db"], ratio, independent)
            if not measured:
                row["equivalent_counts"] = _equivalent(ladder.drfs, plain, _mse(image, clean, body))
            taken = several[0] - (ladder.image(dose) if name != "identity" else clean)
            row["residual_correlation"] = float(np.mean([residual_autocorrelation(taken, body, s) for s in NEIGHBORS]))
            for convention in conventions:
                row |= {f"{convention}_{k}": v for k, v in CONVENTIONS[convention](image, full).items()}
            if independent:
                row["squared_bias"], row["variance"] = bias_and_variance(np.stack(several), clean, body)
            row["total_activity"] = float(image.sum(dtype=np.float64) / clean.sum(dtype=np.float64))
            if box is not None:
                row["liver_cov"] = coefficient_of_variation(image, box, grid)
                row["liver_local_sd"] = local_sd(image, box, grid)
            blobs = hot_blobs(image, clean, body, FALSE_ABOVE_SUV, FALSE_ML, math.prod(ladder.spacing_mm) / 1000)
            row["false_blobs"], row["false_ml"] = blobs.count, blobs.volume_ml
            if lesions is not None and lesions.any():
                contrast = [
                    c for c in contrast_recovery(image, clean, lesions, ladder.spacing_mm).values() if np.isfinite(c)
                ]
                row["lesion_contrast"] = float(np.mean(contrast)) if contrast else math.nan
                largest = suv_max(image, lesions)
                row["lesion_suv_max"] = float(np.mean([largest[k] / true for k, true in true_suv_max.items()]))
                row["lesion_sharpness"] = edge_sharpness(image, clean, lesions, ladder.spacing_mm)
                row["missed_lesions"] = len(missed_lesions(image, clean, lesions, ladder.spacing_mm))
            rows.append(row)
            if labels is not None:
                own = organ_means(image, labels, organ_names)
                organs += [
                    {"subject": ladder.name, "drf": drf, "method": name, "organ": organ, "suv_mean_ratio": own[organ] / mean}
                    for organ, mean in true_organ_means.items()
                    if mean > 0
                ]
            # A difference of two realizations is noise alone, of twice the variance.
            noise = (several[0] - several[1]) / np.float32(math.sqrt(2)) if realizations > 1 else None
            if noise is not None and box is not None:
                row["liver_noise_sd"] = float(noise[box][sphere(grid)].std(dtype=np.float64))
            if noise is not None and middle is not None:
                spectrum = noise_power_spectrum(noise, ladder.spacing_mm, middle)
                row["noise_per_mm"] = mean_frequency(spectrum)
                if dose == len(ladder.drfs) - 1:
                    spectra[name] = spectrum
            if dose == len(ladder.drfs) - 1:
                pictures[name] = image[:, ladder.shape[1] // 2]
    pictures["full dose" if measured else "noise-free"] = clean[:, ladder.shape[1] // 2]
    across, _, along = ladder.spacing_mm
    kind = "independent" if independent else "nested"
    return SubjectEvaluation(rows, organs, kind, pictures, (across, along), spectra)


def _around(box: tuple[slice, slice, slice], grid: Grid) -> tuple[slice, slice, slice] | None:
    """Box of `SPECTRUM_MM` across with the same middle, as many voxels in every subject; None at the border."""
    wide = []
    for part, spacing, voxels in zip(box[:2], grid.spacing_mm[:2], grid.shape[:2], strict=True):
        middle, half = (part.start + part.stop) // 2, round(SPECTRUM_MM / spacing / 2)
        if middle < half or middle + half > voxels:
            return None
        wide.append(slice(middle - half, middle + half))
    return wide[0], wide[1], box[2]


def _mse(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    difference = (image - reference)[mask]
    return float(np.mean(difference.astype(np.float64) ** 2))


def _equivalent(drfs: tuple[float, ...], plain: list[float], mse: float) -> float:
    """NaN where the errors of the plain images do not fall with dose."""
    try:
        return equivalent_counts(drfs, plain, mse)
    except DataError:
        return math.nan


def summarize(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Means over subjects by dose and method; 95 % bootstrap intervals; p against the Gaussian, corrected after Holm.

    The unit is the patient. Below `FEWEST_PATIENTS` no p is given.
    """
    figures = [
        k
        for k in dict.fromkeys(k for row in rows for k in row)
        if k not in ("subject", "scanner", "reference", "drf", "method")
    ]
    keys = list(dict.fromkeys((row["drf"], row["method"]) for row in rows))
    out = []
    for drf, method in keys:
        mine = {row["subject"]: row for row in rows if (row["drf"], row["method"]) == (drf, method)}
        line: dict[str, Any] = {"drf": drf, "method": method, "subjects": len(mine)}
        for figure in figures:
            known = [row[figure] for row in mine.values() if not math.isnan(row.get(figure, math.nan))]
            values = [v for v in known if math.isfinite(v)]
            line[figure] = float(np.mean(values)) if values else None
            if figure == "equivalent_counts" and known:
                # Infinite beyond the full dose, where nothing is measured: a median has a meaning, a mean has none.
                line[figure] = min(1.0, float(np.median(known)))
            if figure in ("gain_db", "fraction_of_ceiling", "nrmse") and len(values) > 1:
                line[f"{figure}_low"], line[f"{figure}_high"] = bootstrap_interval(values, seed)
        plain = {r["subject"]: r["nrmse"] for r in rows if (r["drf"], r["method"]) == (drf, "gaussian")}
        if method not in ("gaussian", "identity") and len(mine) >= FEWEST_PATIENTS:
            line["p_against_gaussian"] = paired_wilcoxon([mine[s]["nrmse"] for s in mine], [plain[s] for s in mine])
        out.append(line)
    correct_lines(out, "p_against_gaussian")
    return out
