"""Attenuation for measured images: from the PET itself, from a CT, or from a mu-map file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.config import disable_value_validation
from scipy import ndimage

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.hounsfield import hu_to_mu, remove_table
from data_recipes.readers.nifti import load_volume
from data_recipes.readers.series import number, read_series, text
from data_recipes.resample import resample
from data_recipes.subject import Subject

MU_TISSUE = 0.096
MU_LUNG = 0.027
# Cortical bone is near 0.17 /cm, a metal implant can reach 0.5 /cm; an empty bore has nothing.
PLAUSIBLE_MU_MAX = (0.03, 1.0)
UNCOVERED_ACTIVITY = 0.1
TRUNCATED = 0.1
"""Part of a side of the image that tissue fills from which on the body is said to be cut off."""
BODY, LUNGS = 1, 2
LABEL_NAMES = {BODY: "body", LUNGS: "lungs"}

# Uptake over the median of the body. Fat takes up 0.3 to 0.5 of the median, air outside next to nothing.
EDGE = 0.2
# Blood, heart and liver lie above this; lungs, muscle and fat below.
NOT_LUNG = 1.4
# Regions that are lungs or gas by uptake alone.
COLD = 0.6
LIVER = 2.0

FWHM_BODY_MM = 10.0
FWHM_ORGAN_MM = 16.0
OPENING_MM = 8.0
# What is thinner than twice this (bed, vessels, bowel) is no part of the body, or not the liver.
BED_MM = 13.0
LIVER_CORE_MM = 20.0
LIVER_CORE_ML = 150.0
LIVER_OFF_MIDLINE_MM = 15.0
CHEST_WALL_MM = 25.0
# Lungs reach from below the liver's dome to about 1.3 half-widths of the rib cage above it.
LUNG_BELOW_DOME_MM = 25.0
LUNG_HEIGHT = 1.3
RIB_CAGE_DEPTH = 0.8
LUNG_ML = 200.0
# Half the width of spine, trachea and sternum.
MEDIASTINUM_MM = 20.0
PART_OF_BODY = 0.02


def mu_from_pet(activity_bqml: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A mu-map guessed from uptake: soft tissue 0.096 /cm, lungs 0.027 /cm, air and bed 0 at 511 keV.

    The body is what exceeds 0.2 of its own median uptake after smoothing, without thin or small parts, with holes
    filled in every transverse slice. Lungs take up about as little as muscle, so uptake alone does not show them:
    they are sought within a rib cage placed above the dome of the liver, which is found as the largest thick hot
    region right of the midline. There, what lies deeper than the chest wall and takes up less than blood is lung.
    Where no liver is in the image, only large enclosed cold regions are lungs. The values are those for 511 keV of
    water and of lung at 0.28 g/mL (NIST XCOM, doi 10.18434/T48G6X).

    Parameters
    ----------
    activity_bqml : ndarray
        (x, y, z) in any unit proportional to activity concentration.
    grid : Grid
        Its grid, RAS+.

    Returns
    -------
    mu_per_cm : ndarray
        float32 (x, y, z) in 1/cm.
    labels : ndarray
        uint8 (x, y, z): 0 outside, 1 body, 2 lungs.

    Raises
    ------
    DataError
        When there is no body in the image.
    """
    spacing = np.asarray(grid.spacing_mm)
    body, median = _find_body(_smooth(activity_bqml, FWHM_BODY_MM, spacing), spacing)
    smooth = _smooth(activity_bqml, FWHM_ORGAN_MM, spacing) / median
    depth = np.stack([_distance(body[:, :, z], spacing[:2]) for z in range(body.shape[2])], axis=-1)
    cage = _rib_cage(smooth, body, grid)
    lungs = _cold_lungs(smooth, depth, grid) if cage is None else (smooth < NOT_LUNG) & (depth > CHEST_WALL_MM) & cage
    lungs = _keep_large(_open(lungs, OPENING_MM, spacing), LUNG_ML / grid.voxel_ml)
    lungs = _fill_slices(lungs) & body
    labels = np.where(lungs, LUNGS, np.where(body, BODY, 0)).astype(np.uint8)
    mu = np.array([0.0, MU_TISSUE, MU_LUNG], np.float32)[labels]
    return mu, labels


def _find_body(smooth: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, float]:
    # Hot organs carry the mean far above most of the body: start there and come down to the median.
    body = smooth > 0.1 * smooth.mean()
    median = 0.0
    for _ in range(50):
        if not body.any():
            raise DataError("no body was found in the PET image; give a mu-map with --mu or a CT with --ct")
        last, median = median, float(np.median(smooth[body]))
        if median == last:
            break
        body = smooth > EDGE * median
    body = _open(_fill_slices(body), BED_MM, spacing)
    return _fill_slices(_keep_large(body, PART_OF_BODY * body.sum())), median


def _rib_cage(smooth: np.ndarray, body: np.ndarray, grid: Grid) -> np.ndarray | None:
    """Where lungs may be: half an ellipsoid on the liver's dome; None when no liver is in the image."""
    spacing = np.asarray(grid.spacing_mm)
    core = _distance((smooth > LIVER) & body, spacing) > LIVER_CORE_MM
    parts, _ = _parts(core)
    sizes = np.bincount(parts.ravel()) * grid.voxel_ml
    sizes[0] = 0.0
    # The brain can be the larger hot region, but lies on the midline.
    for part in np.argsort(sizes)[::-1]:
        if sizes[part] < LIVER_CORE_ML:
            return None
        levels = (parts == part).any(axis=(0, 1))
        x_mid, y_mid, _ = _center_mm(body & levels, grid)
        if _center_mm(parts == part, grid)[0] > x_mid + LIVER_OFF_MIDLINE_MM:
            break
    else:
        return None
    liver = _distance(parts != part, spacing) < LIVER_CORE_MM
    x_mm, y_mm, z_mm = (grid.axis_mm(axis) for axis in range(3))
    half_width = float(x_mm[liver.any(axis=(1, 2))].max()) - x_mid
    # The heart often joins the liver, but does not reach this far to the right.
    right = liver[x_mm > x_mid + half_width / 2]
    dome = float(z_mm[right.any(axis=(0, 1))].max())
    above = np.clip((z_mm - dome) / (LUNG_HEIGHT * half_width), 0, None)
    lateral, frontal = (x_mm - x_mid) / half_width, (y_mm - y_mid) / (RIB_CAGE_DEPTH * half_width)
    across = lateral[:, None] ** 2 + frontal[None, :] ** 2
    sides = np.abs(x_mm - x_mid) > MEDIASTINUM_MM
    return (across[:, :, None] + above**2 < 1) & sides[:, None, None] & (z_mm > dome - LUNG_BELOW_DOME_MM)


def _cold_lungs(smooth: np.ndarray, depth: np.ndarray, grid: Grid) -> np.ndarray:
    """Cold regions that warmer tissue encloses: subcutaneous fat is cold too, but reaches the skin."""
    cold = _open((smooth < COLD) & (depth > CHEST_WALL_MM / 2), OPENING_MM, np.asarray(grid.spacing_mm))
    parts, count = _parts(cold)
    enclosed = np.zeros(count + 1, bool)
    for part in range(1, count + 1):
        enclosed[part] = np.percentile(depth[parts == part], 5) > 0.75 * CHEST_WALL_MM
    return enclosed[parts]


def _center_mm(mask: np.ndarray, grid: Grid) -> tuple[float, float, float]:
    x, y, z = (o + d * c for o, d, c in zip(grid.origin_mm, grid.spacing_mm, ndimage.center_of_mass(mask), strict=True))
    return float(x), float(y), float(z)


def _smooth(values: np.ndarray, fwhm_mm: float, spacing: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(np.asarray(values, np.float32), fwhm_mm / 2.3548 / spacing, mode="nearest")


def _open(mask: np.ndarray, radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    # Padding with the edge keeps what runs out of the image, such as the thighs, from being worn away there.
    pad = [(int(np.ceil(2 * radius_mm / s)) + 1,) * 2 for s in spacing]
    wide = np.pad(mask, pad, mode="edge")
    core = _distance(wide, spacing) > radius_mm
    if not core.any():
        return np.zeros_like(mask)
    opened = _distance(~core, spacing) <= radius_mm
    inner = tuple(slice(p[0], -p[1]) for p in pad)
    return opened[inner] & mask


def _keep_large(mask: np.ndarray, voxels: float) -> np.ndarray:
    parts, _ = _parts(mask)
    large = np.bincount(parts.ravel()) >= voxels
    large[0] = False
    return large[parts]


def _fill_slices(mask: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(ndimage.binary_fill_holes(mask[:, :, z])) for z in range(mask.shape[2])], axis=-1)


def _distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm of every voxel of the mask from its nearest voxel outside."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    parts = np.zeros(mask.shape, np.int32)
    return parts, int(ndimage.label(mask, output=parts))  # pyright: ignore[reportArgumentType]


def read_mu(path: str | Path, grid: Grid) -> np.ndarray:
    """A mu-map file on the subject's grid.

    Parameters
    ----------
    path : path
        NIfTI in 1/cm at 511 keV.
    grid : Grid
        Of the subject.

    Returns
    -------
    ndarray
        float32 (x, y, z) in 1/cm; 0 outside the file's extent.

    Raises
    ------
    DataError
        For a file that cannot be read, values that are not 1/cm, or no overlap with the subject.
    """
    file = Path(path)
    mu, own, _ = load_volume(file)
    if not np.isfinite(mu).all() or mu.min() < 0:
        raise DataError(f"{file.name}: a mu-map is 0 or more everywhere; this one has NaN, infinite or negative values")
    low, high = PLAUSIBLE_MU_MAX
    if not low <= mu.max() <= high:
        raise DataError(
            f"{file.name}: highest value {mu.max():g}, but a mu-map in 1/cm at 511 keV has tissue near 0.096 "
            f"(highest between {low} and {high}); convert it to 1/cm, or give a CT with --ct"
        )
    return _on_grid(mu, own, grid, file.name)


def read_ct(path: str | Path, grid: Grid, *, kvp: float | None = None, without_table: bool = False) -> np.ndarray:
    """A CT as a mu-map at 511 keV on the subject's grid.

    Parameters
    ----------
    path : path
        Folder with one CT DICOM series, or NIfTI in HU.
    grid : Grid
        Of the subject.
    kvp : float, optional
        Tube voltage in kV; needed for NIfTI, wins over the tag KVP of a series.
    without_table : bool
        Leave out all but the body, see `data_recipes.hounsfield.remove_table`.

    Returns
    -------
    ndarray
        float32 (x, y, z) in 1/cm; 0 outside the CT's extent.

    Raises
    ------
    UsageError
        For a NIfTI without `kvp`.
    DataError
        As `read_series`, `hu_to_mu` and `remove_table` raise; for a series without KVP, values that are not HU, or no
        overlap with the subject.
    """
    source = Path(path)
    if source.is_dir():
        hu, own, kvp, where = _ct_series(source, kvp)
    else:
        hu, own, kvp, where = _ct_volume(source, kvp)
    if without_table:
        try:
            hu = remove_table(hu)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return _on_grid(hu_to_mu(hu, kvp), own, grid, where)


def _ct_volume(source: Path, kvp: float | None) -> tuple[np.ndarray, Grid, float, str]:
    hu, own, _ = load_volume(source)
    if not np.isfinite(hu).all() or hu.max() - hu.min() < 10:
        raise DataError(f"{source.name}: not a CT in HU (values from {hu.min():g} to {hu.max():g}); give HU")
    if kvp is None:
        raise UsageError(f"--ct-kvp: {source.name} is NIfTI and has no tube voltage; give it in kV, such as 120")
    return hu, own, kvp, source.name


def _ct_series(folder: Path, kvp: float | None) -> tuple[np.ndarray, Grid, float, str]:
    with disable_value_validation():
        series = read_series(folder, "CT")
        first = series.slices[0]
        rescaled = text(first, "RescaleType")
        voltage = number(first, "KVP") if kvp is None else kvp
    if rescaled not in ("", "HU"):
        raise DataError(f"{first.file}: RescaleType is {rescaled}, not HU; give a CT in HU")
    if not voltage:
        raise DataError(f"{first.file}: tag KVP is missing, so that HU cannot become 1/cm; give --ct-kvp")
    return series.values, series.grid, voltage, first.file


def with_mu(subject: Subject, *, ct: str | Path | None = None, mu: str | Path | None = None,
            kvp: float | None = None, without_table: bool = False) -> Subject:  # fmt: skip
    """The subject with attenuation: from a mu-map file, a CT, what it has already, or else its own PET.

    Parameters
    ----------
    subject : Subject
        As a reader or phantom yields it.
    ct : path, optional
        CT DICOM folder or NIfTI in HU.
    mu : path, optional
        NIfTI in 1/cm.
    kvp : float, optional
        Tube voltage of the CT in kV.
    without_table : bool
        Leave out couch and all else but the body from the CT.

    Returns
    -------
    Subject
        With `mu_per_cm` and `mu_source` ("given", "ct" or "pet_contour"); a map from the PET brings its labels too.
        What the map does not cover, and missing lungs, are warned of in the provenance, and so is a body that reaches the
        sides of the image (`truncated_fov` is set then).

    Raises
    ------
    UsageError
        When both a CT and a mu-map are given.
    DataError
        As `read_mu`, `read_ct` and `mu_from_pet` raise.
    """
    if ct is not None and mu is not None:
        raise UsageError("--ct, --mu: both were given; leave one out")
    if ct is None and kvp is not None:
        raise UsageError("--ct-kvp: there is no --ct that it belongs to; leave it out")
    if ct is None and without_table:
        raise UsageError("--ct-remove-table: there is no --ct that it belongs to; leave it out")
    if ct is not None or mu is not None:
        source = "given" if mu is not None else "ct"
        values = (
            read_mu(mu, subject.grid)
            if mu is not None
            else read_ct(str(ct), subject.grid, kvp=kvp, without_table=without_table)
        )
        outside = float(subject.activity_bqml[values == 0].sum(dtype=np.float64))
        share = outside / float(subject.activity_bqml.sum(dtype=np.float64))
        warning = f"{share:.0%} of the activity lies where the mu-map is 0: it may cover a part of the body only"
        warnings = [warning] if share > UNCOVERED_ACTIVITY else []
        subject = replace(subject, mu_per_cm=values, mu_source=source, provenance=_warned(subject, warnings))
        return _flagged(subject)
    if subject.mu_per_cm is not None:
        return subject
    values, labels = mu_from_pet(subject.activity_bqml, subject.grid)
    lungs = bool((labels == LUNGS).any())
    warnings = [] if lungs else ["no lungs were found in the PET: all of the body is taken for soft tissue"]
    subject = replace(
        subject,
        mu_per_cm=values,
        mu_source="pet_contour",
        labels=labels,
        label_names=LABEL_NAMES,
        provenance=_warned(subject, warnings),
    )
    return _flagged(subject)


def _flagged(subject: Subject) -> Subject:
    """Flag a body that is cut off at the right, left, back or front of the image; above and below it usually is."""
    assert subject.mu_per_cm is not None
    tissue = subject.mu_per_cm > MU_TISSUE / 2
    sides = (tissue[0], tissue[-1], tissue[:, 0], tissue[:, -1])
    if max(float(side.mean()) for side in sides) < TRUNCATED:
        return subject
    warning = (
        "the body reaches the sides of the image: what lies beyond neither scatters nor counts; not for figures of noise"
    )
    return replace(subject, provenance=_warned(subject, [warning]) | {"truncated_fov": True})


def _warned(subject: Subject, warnings: list[str]) -> dict[str, Any]:
    return subject.provenance | {"warnings": [*subject.provenance.get("warnings", []), *warnings]}


def _on_grid(mu: np.ndarray, own: Grid, grid: Grid, where: str) -> np.ndarray:
    try:
        return resample(mu, own, grid)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
