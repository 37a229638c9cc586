"""What is read off an image by region: organ means, lesions, and blobs that should not be there."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SHELL_INNER_MM = 5.0
"""Background of a lesion starts this far from any lesion: about the resolution of a scanner, so little spills in."""
SHELL_OUTER_MM = 15.0
"""Background of a lesion ends this far from it."""
MISSED_BELOW = 0.5
"""A lesion counts as missed when less than this part of its contrast is left."""
_FEWEST_ERODED_VOXELS = 20

_Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class HotBlobs:
    """Spurious hot regions of an image.

    Attributes
    ----------
    count : int
    volume_ml : float
        Of all of them together.
    """

    count: int
    volume_ml: float


def organ_means(image: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> dict[str, float]:
    """Mean over each organ without its outermost voxels, which share the activity of their neighbors.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z).
    labels : ndarray
        uint8 (x, y, z).
    names : mapping
        Label value to organ; several labels may share a name. 0 and labels missing here are left out.

    Returns
    -------
    dict
        Name to mean, in the unit of the image. An organ that does not keep 20 voxels is taken whole; one that is not
        in the image is left out.
    """
    means = {}
    for name in dict.fromkeys(name for label, name in names.items() if label):
        organ = np.isin(labels, [label for label, other in names.items() if label and other == name])
        boxes = ndimage.find_objects(organ.astype(np.uint8))
        if not boxes:
            continue
        whole = organ[boxes[0]]
        core = np.asarray(ndimage.binary_erosion(whole), bool)
        chosen = core if np.count_nonzero(core) >= _FEWEST_ERODED_VOXELS else whole
        means[name] = float(image[boxes[0]][chosen].mean(dtype=np.float64))
    return means


def suv_max(image: np.ndarray, lesion_labels: np.ndarray) -> dict[int, float]:
    """Largest value in each lesion, in the unit of the image, by the label that lesions have in `contrast_recovery`."""
    return {label: float(image[box][inside].max()) for label, box, inside in _lesions(lesion_labels)}


def contrast_recovery(
    image: np.ndarray, reference: np.ndarray, lesion_labels: np.ndarray, spacing_mm: _Spacing
) -> dict[int, float]:
    """Contrast of each lesion over that in the reference, where contrast is lesion mean / background mean - 1.

    The background is the shell from 5 to 15 mm around the lesion without what is within 5 mm of another lesion. It is
    the same in both images and is not confined to one organ.

    Parameters
    ----------
    image, reference : ndarray
        float32 (x, y, z), in the same unit; the reference free of noise.
    lesion_labels : ndarray
        Integers (x, y, z): one positive label for each lesion, 0 elsewhere.
    spacing_mm : tuple of float
        Voxel edges.

    Returns
    -------
    dict
        Label to recovery, 1 when all contrast is kept. NaN without contrast in the reference, without background
        voxels, or with a background that is not positive.
    """
    recovery = {}
    for label, box, _ in _lesions(lesion_labels):
        region, lesion, shell = _with_shell(lesion_labels, label, box, spacing_mm)
        contrast, true = (_contrast(volume[region], lesion, shell) for volume in (image, reference))
        recovery[label] = contrast / true if true else math.nan
    return recovery


def missed_lesions(image: np.ndarray, reference: np.ndarray, lesion_labels: np.ndarray, spacing_mm: _Spacing) -> list[int]:
    """Labels of the lesions that keep less than half of their contrast; arguments as of `contrast_recovery`.

    Lesions whose recovery is not defined are not among them.
    """
    recovery = contrast_recovery(image, reference, lesion_labels, spacing_mm)
    return [label for label, kept in recovery.items() if kept < MISSED_BELOW]


def hot_blobs(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None, threshold: float, min_ml: float, voxel_ml: float
) -> HotBlobs:
    """Connected regions in which an image exceeds its reference: candidates for false lesions.

    Parameters
    ----------
    image, reference : ndarray
        float32 (x, y, z), in the same unit; the reference free of noise.
    mask : ndarray or None
        bool (x, y, z): where to look; None is everywhere.
    threshold : float
        Excess over the reference above which a voxel belongs to a region, in the unit of the images.
    min_ml : float
        Volume from which on a region counts. Voxels that share a corner are connected.
    voxel_ml : float
        Volume of a voxel.

    Returns
    -------
    HotBlobs
    """
    hot = image - reference > threshold
    if mask is not None:
        hot &= mask
    numbered = np.empty(hot.shape, np.int32)
    ndimage.label(hot, np.ones((3, 3, 3)), output=numbered)
    volumes = np.bincount(numbered.ravel())[1:] * voxel_ml
    # A region of exactly the least volume shall count, whatever the rounding of the product.
    large = volumes[volumes >= min_ml * (1 - 1e-9)]
    return HotBlobs(count=len(large), volume_ml=float(large.sum()))


def _lesions(lesion_labels: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray]]:
    for label, box in enumerate(ndimage.find_objects(lesion_labels), start=1):
        if box is not None:
            yield label, box, lesion_labels[box] == label


def _with_shell(
    lesion_labels: np.ndarray, label: int, box: tuple[slice, ...], spacing_mm: _Spacing
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    # Another lesion may keep voxels out of the shell from beyond its outer edge.
    reach = [math.ceil((SHELL_OUTER_MM + SHELL_INNER_MM) / d) for d in spacing_mm]
    region = tuple(slice(max(0, b.start - r), b.stop + r) for b, r in zip(box, reach, strict=True))
    near = lesion_labels[region]
    from_this, from_any = (
        np.asarray(ndimage.distance_transform_edt(outside, sampling=spacing_mm)) for outside in (near != label, near == 0)
    )
    return region, near == label, (from_this <= SHELL_OUTER_MM) & (from_any > SHELL_INNER_MM)


def _contrast(image: np.ndarray, lesion: np.ndarray, shell: np.ndarray) -> float:
    background = float(image[shell].mean(dtype=np.float64)) if shell.any() else 0.0
    return float(image[lesion].mean(dtype=np.float64)) / background - 1 if background > 0 else math.nan
