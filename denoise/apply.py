"""Denoise files: NIfTI or DICOM in, the same kind out."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.nifti import ENDINGS
from data_recipes.readers.read import read_suv_per_value
from data_recipes.writers.like import Volume, from_canonical, read_volume, to_canonical, write_like
from denoise.denoiser import Denoised, Denoiser, model_files
from denoise.diffusion.method import Diffusion
from denoise.generate import Sampling
from denoise.methods import Method
from petsim.export import dose_name


@dataclass(frozen=True)
class ApplyOptions:
    """How volumes are read and denoised.

    Parameters
    ----------
    source_units : str, optional
        "bqml" or "suv"; None: what the file says.
    sidecar : str, optional
        JSON or CSV beside a NIfTI file.
    weight_kg, activity_mbq, uptake_s : float, optional
        For SUV, where the file does not say.
    drf, nec_per_m : float, optional
        Dose reduction factor, and noise-equivalent counts a meter, of the input, for models that are told one of them; the
        former also for those trained for one dose each.
    strength : float
        0 leaves the input, 1 is the full effect.
    weights : str
        "best" or "last".
    device : str
    stitching : str
        "hard": tiles of UniPET are not blended.
    overwrite : bool
    sampling : Sampling
        Of generative models, which also write the spread of samples (NAME_spread) and intermediate doses (NAME_drf-010).
    """

    source_units: str | None = None
    sidecar: str | None = None
    weight_kg: float | None = None
    activity_mbq: float | None = None
    uptake_s: float | None = None
    drf: float | None = None
    nec_per_m: float | None = None
    strength: float = 1.0
    weights: str = "best"
    device: str = "auto"
    stitching: str = "blend"
    overwrite: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"--strength: must be 0 to 1, got {self.strength:g}")
        if self.drf is not None and not self.drf >= 1:
            raise UsageError(f"--drf: must be 1 or more, got {self.drf:g}")
        if self.nec_per_m is not None and not self.nec_per_m >= 1:
            raise UsageError(f"--nec-per-m: must be 1 or more, got {self.nec_per_m:g}")


def apply(run: Path, inputs: Sequence[Path], out: Path, options: ApplyOptions) -> list[dict[str, Any]]:
    """Denoise volumes with a run's model.

    Parameters
    ----------
    run : Path
        Run folder or model file.
    inputs : sequence of Path
        NIfTI files and DICOM folders.
    out : Path
        Of one input: the file or folder to write. Of several: a folder, in which each has its own name.
    options : ApplyOptions

    Returns
    -------
    list of dict
        By input, JSON types: name, relative_noise, warnings.

    Raises
    ------
    DataError, UsageError
    """
    denoiser = Denoiser.load(run, options.device, options.weights, options.sampling, options.stitching == "hard")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in model_files(run, options.weights))).hexdigest()
    targets = [_target(path, out, len(inputs)) for path in inputs]
    if len(set(targets)) < len(targets):
        raise UsageError("two inputs have one name; denoise them one at a time")
    _check_free(targets, options.overwrite)
    results = []
    for path, target in zip(inputs, targets, strict=True):
        volume = read_volume(path)
        factor = _suv_factor(volume, options)
        values = to_canonical(volume.values, volume)
        log_nec = None if options.nec_per_m is None else math.log(options.nec_per_m)
        result = denoiser(values * np.float32(factor), volume.canonical_spacing_mm, options.drf, log_nec, options.strength)
        method = denoiser.choose(result.relative_noise, options.drf)[1].method
        how = _sampled(method, options.sampling)
        images = _images(result, target)
        _check_free([file for _, file, _ in images], options.overwrite)
        for image, file, what in images:
            write_like(
                volume, from_canonical(image / np.float32(factor), volume), file,
                series_description=f"{what} ({method.name})",
                derivation_description=f"petsim denoise, method {method.name}, model {digest[:16]}, strength "
                f"{options.strength:g}{how}",
                uid_key=f"{digest} {options.strength:g} {options.drf}{how} {what}", overwrite=options.overwrite,
            )  # fmt: skip
        results.append({
            "name": target.name, "relative_noise": round(result.relative_noise, 5), "warnings": list(result.warnings)
        })  # fmt: skip
    return results


def _check_free(files: Sequence[Path], overwrite: bool) -> None:
    for file in files:
        if file.exists() and not overwrite:
            raise DataError(f"--out: {file.name} exists; choose another name or add --overwrite")


def _sampled(method: Method | Diffusion, sampling: Sampling) -> str:
    """How a generative model was sampled, in words."""
    if not isinstance(method, Diffusion):
        return ""
    sampler, steps = sampling.usual(method)
    return f", {sampler}, {steps} steps from {sampling.start}, {sampling.samples} samples, seed {sampling.seed}"


def _images(result: Denoised, target: Path) -> list[tuple[np.ndarray, Path, str]]:
    """Images of a result, their files, and what they are."""
    ending = next((e for e in ENDINGS if target.name.lower().endswith(e)), "")
    stem = target.name[: len(target.name) - len(ending)]
    found = [(result.image, target, "denoised")]
    if result.spread is not None:
        found.append((result.spread, target.with_name(f"{stem}_spread{ending}"), "spread"))
    for drf, image in sorted(result.anchors.items()):
        found.append((image, target.with_name(f"{stem}_{dose_name(drf)}{ending}"), f"estimate at DRF {drf:g}"))
    return found


def _target(path: Path, out: Path, inputs: int) -> Path:
    nifti = path.name.lower().endswith(ENDINGS)
    if inputs > 1:
        return out / path.name
    if nifti and not out.name.lower().endswith(ENDINGS):
        return out / path.name
    if not nifti and out.name.lower().endswith(ENDINGS):
        raise UsageError(f"--out: {path.name} is a DICOM folder, so the output is one too; give a folder's name")
    return out


def _suv_factor(volume: Volume, options: ApplyOptions) -> float:
    """SUV for 1 of the file's unit."""
    if volume.unit == "unknown" and options.source_units is None and options.sidecar is None:
        raise DataError(f"{volume.path.name}: the unit is not known; give --source-units bqml or suv")
    return read_suv_per_value(
        volume.path, units=options.source_units, sidecar=options.sidecar, weight_kg=options.weight_kg,
        injected_mbq=options.activity_mbq, uptake_s=options.uptake_s,
    )  # fmt: skip
