"""petsim compare: a real and a simulated image beside each other."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.writers.like import read_volume, to_canonical
from petsim.cache.store import SubjectFile, make_folder, whole_or_nothing
from petsim.dose_pairs import Labels
from petsim.noise import NO_FIGURE, SPHERE_MM, body_mask, noise_region, sphere
from petsim.noise_covariance import FrequencyBins, lag_products, spectrum_of
from petsim.noise_regions import Piece, Regions, organ_regions, pieces, place_regions

RESULT, FIGURE = "comparison.json", "comparison.png"

HISTOGRAM_EDGES = np.linspace(0, 6, 61)
"""Of voxel values over the body's mean."""

_BAND_MM = 20.0
"""Width of the band through the body's axis in which the transaxial profile is taken."""


@dataclass(frozen=True)
class Image:
    """One image.

    Parameters
    ----------
    values : ndarray
        float32 (x, y, z), any unit of activity.
    spacing_mm : tuple of float
    labels : Labels or None
    simulated : bool
        It is of a dataset that petsim simulated.
    """

    values: np.ndarray
    spacing_mm: tuple[float, float, float]
    labels: Labels | None
    simulated: bool


def read_image(path: Path, drf: float) -> Image:
    """A NIfTI file, a PET DICOM folder, or a dose of a subject's file.

    Parameters
    ----------
    path : Path
    drf : float
        Which dose of a subject's file.

    Raises
    ------
    UsageError
        The file has no such dose.
    DataError
        An image that cannot be read or is not finite.
    """
    if path.suffix != ".h5":
        volume = read_volume(path)
        return Image(to_canonical(volume.values, volume), volume.canonical_spacing_mm, None, simulated=False)
    with SubjectFile(path) as f:
        if f.is_truncated:
            raise DataError(f"{path.name}: {NO_FIGURE}; give a whole image")
        if drf not in f.drfs:
            raise UsageError(f"--drf: {drf:g} is not in {path.name}, which has {', '.join(f'{d:g}' for d in f.drfs)}")
        values, labels = f.image(f.drfs.index(drf)), f.array("truth/labels")
        simulated = f.json("provenance").get("full_dose") not in ("recorded", "measured")
        if not np.isfinite(values).all():
            raise DataError(f"{path.name}: the image at DRF {drf:g} has NaN or infinite voxels; run petsim verify --repair")
        return Image(values, f.spacing_mm, None if labels is None else Labels(labels, f.label_names), simulated)


def compare(real: Image, simulated: Image) -> dict[str, Any]:
    """Figures of both images, JSON types; values are relative to each body's mean, so that units do not matter.

    Noise by region is the spread of voxels in cubes of a region, anatomy included. Regions are organs without their
    borders where one of the images has labels and both are on one grid, else places in the body. The spectrum is that of
    a sphere, in the liver where that is labeled.

    Parameters
    ----------
    real, simulated : Image

    Raises
    ------
    DataError
        An image without body.
    """
    sides = {"real": real, "simulated": simulated}
    one_grid = real.values.shape == simulated.values.shape and np.allclose(real.spacing_mm, simulated.spacing_mm, rtol=1e-3)
    labels = (real.labels or simulated.labels) if one_grid else None
    measured = {name: _measure(image, labels) for name, image in sides.items()}
    a, b = measured["real"], measured["simulated"]
    regions = [
        {"region": name, "real": a["regions"][name], "simulated": b["regions"][name]}
        for name in a["regions"] if name in b["regions"]
    ]  # fmt: skip
    return {
        "real": "simulated image" if real.simulated else "image",
        "regions_are": "organs" if labels is not None else "places",
        "voxel_mm": {name: list(image.spacing_mm) for name, image in sides.items()},
        "regions": regions,
        **{
            key: {name: m[key] for name, m in measured.items()}
            for key in ("sphere", "noise_power_spectrum", "axial_profile", "transaxial_profile")
        },
        "histogram": {
            "edges_over_body_mean": HISTOGRAM_EDGES.tolist(),
            **{name: m["histogram"] for name, m in measured.items()},
            "overlap": float(np.minimum(a["histogram"], b["histogram"]).sum()),
        },
    }


def _measure(image: Image, labels: Labels | None) -> dict[str, Any]:
    body = body_mask(image.values)
    mean = float(image.values[body].mean(dtype=np.float64))
    values = image.values / np.float32(mean)
    if labels is None:
        places = place_regions(values, image.spacing_mm)
    else:
        places = _without_borders(organ_regions(labels.values, labels.names))
    inside = np.histogram(values[body], HISTOGRAM_EDGES)[0] / np.count_nonzero(body)
    return {
        "regions": _by_region(values, places, list(pieces(places, image.spacing_mm))),
        "histogram": inside.tolist(),
        "axial_profile": _axial_profile(values, body, image.spacing_mm),
        "transaxial_profile": _transaxial_profile(values, body, image.spacing_mm),
        **_in_sphere(values, labels, image.spacing_mm),
    }


def _without_borders(regions: Regions) -> Regions:
    """Without the outermost voxels of organs, which share the activity of their neighbors."""
    index = regions.index
    inner = ndimage.maximum_filter(index, 3) == ndimage.minimum_filter(index, 3)
    return Regions(regions.names, np.where(inner, index, -1).astype(np.int16))


def _by_region(values: np.ndarray, regions: Regions, cut: list[Piece]) -> dict[str, dict[str, float]]:
    """Mean of each region, and the root mean square over its cubes of the coefficient of variation, in percent."""
    found = {}
    for k, name in enumerate(regions.names):
        inside = [values[p.box][p.mask].astype(np.float64) for p in cut if p.region == k]
        positive = [v for v in inside if v.mean() > 0]
        if positive:
            weights = np.array([v.size for v in positive])
            squares = np.array([v.var(ddof=1) / v.mean() ** 2 for v in positive])
            found[name] = {
                "mean_over_body": float(sum(v.sum() for v in positive) / weights.sum()),
                "cov_percent": 100 * math.sqrt(float(weights @ squares / weights.sum())),
            }
    return found


def _in_sphere(values: np.ndarray, labels: Labels | None, spacing_mm: tuple[float, float, float]) -> dict[str, Any]:
    """Noise in the liver, or where the image is most uniform, less its linear trend; null where no sphere is."""
    x, y, z = values.shape
    grid = Grid((x, y, z), spacing_mm, (0.0, 0.0, 0.0))
    box, where = noise_region(values, *((None, {}) if labels is None else (labels.values, labels.names)), grid)
    if box is None:
        return {"sphere": None, "noise_power_spectrum": None}
    mask = sphere(grid)
    inside = values[box][mask].astype(np.float64)
    trend = np.stack([np.ones(inside.size), *np.nonzero(mask)], axis=1)
    residual = inside - trend @ np.linalg.lstsq(trend, inside, rcond=None)[0]
    noise = np.zeros(mask.shape)
    noise[mask] = residual / inside.mean()
    reach = [n // 2 for n in mask.shape]
    bins = FrequencyBins.up_to(spacing_mm, [r * d for r, d in zip(reach, spacing_mm, strict=True)])
    covariance = lag_products(noise, reach) / np.maximum(lag_products(mask, reach), 1)
    power = spectrum_of(covariance, spacing_mm, bins)
    transaxial = power @ bins.lengths_per_mm
    # Weak power is a difference of covariances and may come out below zero.
    weights = np.maximum(transaxial, 0) * bins.areas_per_mm2
    spectrum = {
        "transaxial_frequency_per_mm": bins.transaxial_per_mm.tolist(), "transaxial_mm2": transaxial.tolist(),
        "axial_frequency_per_mm": bins.axial_per_mm.tolist(), "axial_mm": (bins.areas_per_mm2 @ power).tolist(),
        "mean_transaxial_frequency_per_mm": float(weights @ bins.transaxial_per_mm / max(weights.sum(), 1e-30)),
    }  # fmt: skip
    return {
        "sphere": {
            "place": where,
            "mean_over_body": float(inside.mean()), "cov_percent": float(100 * inside.std(ddof=1) / inside.mean()),
        },
        "noise_power_spectrum": spectrum if residual.any() else None,
    }  # fmt: skip


def _profile(sums: np.ndarray, voxels: np.ndarray, center: float, step_mm: float) -> dict[str, list[float]]:
    held = voxels > 0
    return {
        "mm": ((np.flatnonzero(held) - center) * step_mm).tolist(),
        "over_body_mean": (sums[held] / voxels[held]).tolist(),
    }


def _axial_profile(values: np.ndarray, body: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, list[float]]:
    """Mean of the body in each slice, from its middle on."""
    voxels = body.sum(axis=(0, 1))
    sums = np.where(body, values, 0).sum(axis=(0, 1), dtype=np.float64)
    ends = np.flatnonzero(voxels)[[0, -1]]
    return _profile(sums, voxels, float(ends.mean()), spacing_mm[2])


def _transaxial_profile(
    values: np.ndarray, body: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, list[float]]:
    """Mean along the axis in a band from left to right through the body's axis, from there on."""
    area = body.sum(axis=2, dtype=np.float64)
    x, y = (float((area.sum(axis=1 - k) * np.arange(area.shape[k])).sum() / area.sum()) for k in range(2))
    half = max(0, round(_BAND_MM / 2 / spacing_mm[1]))
    band = slice(max(0, round(y) - half), round(y) + half + 1)
    slices = body.any(axis=(0, 1))
    part = values[:, band][:, :, slices]
    sums = part.sum(axis=(1, 2), dtype=np.float64)
    return _profile(sums, np.full(len(sums), part[0].size), x, spacing_mm[0])


def table(result: dict[str, Any]) -> str:
    """The figures to be read in a terminal."""
    lines = [f"{result['real']} against simulation, by {result['regions_are']}; COV with anatomy, %; means over the body's",
             f"{'':52s} {'COV real':>9s} {'sim.':>7s} {'mean real':>10s} {'sim.':>6s}"]  # fmt: skip
    rows = [(r["region"], r["real"], r["simulated"]) for r in result["regions"]]
    found = result["sphere"]
    if found["real"] is not None and found["simulated"] is not None:
        rows.append((f"{SPHERE_MM:g} mm sphere", found["real"], found["simulated"]))
    lines += [
        f"{name:52s} {a['cov_percent']:9.2f} {b['cov_percent']:7.2f} {a['mean_over_body']:10.3f} {b['mean_over_body']:6.3f}"
        for name, a, b in rows
    ]
    spectra = result["noise_power_spectrum"]
    if spectra["real"] is not None and spectra["simulated"] is not None:
        means = [1000 * spectra[side]["mean_transaxial_frequency_per_mm"] for side in ("real", "simulated")]
        lines.append(f"mean transaxial frequency of the noise: {means[0]:.1f} and {means[1]:.1f} cycles/m")
    lines.append(f"histograms overlap by {100 * result['histogram']['overlap']:.1f} %")
    return "\n".join(lines)


def write_comparison(result: dict[str, Any], out: Path) -> list[str]:
    """Write comparison.json and comparison.png into a folder; names of the files."""
    from petsim.calibration_figures import comparison_figure

    make_folder(out)
    with whole_or_nothing(out / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with whole_or_nothing(out / FIGURE) as temporary:
        comparison_figure(result).savefig(temporary, format="png", dpi=130)
    return [RESULT, FIGURE]
