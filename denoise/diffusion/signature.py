"""Degradation signatures: how far images at lower doses, and images with noise added, are from the full dose.

The signature is (NMAE, 1 - SSIM) in the body, in network numbers, against the image that is x_0 in training: sum |d| over
sum |x_0|, and the mean structural similarity with a Gaussian window of 1.5 voxels, 11 wide, whose dynamic range is the
largest value of x_0 in the body. Forward-diffused images are taken as x_t / a(t) = x_0 + (s / a) n, since shrinkage would
count as degradation otherwise; their NMAE is then exactly proportional to s / a.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from data_recipes.errors import DataError
from denoise.diffusion.noise import ColoredNoise, draw_noise
from denoise.metrics import own_range_peak, ssim
from denoise.scaling import Scaling
from petsim.noise import body_mask

Read = Callable[[], np.ndarray]

MARGIN = 6
"""Voxels around the body that windows of the structural similarity reach into."""


@dataclass(frozen=True)
class Case:
    """A subject to calibrate on; images are read when they are needed, float32 (x, y, z) in SUV.

    Parameters
    ----------
    name, scanner : str
    reference : callable
        Gives x_0.
    images : mapping
        DRF -> gives the image at that dose.
    organs : callable, optional
        Gives integer labels (x, y, z) and their names.
    """

    name: str
    scanner: str
    reference: Read
    images: Mapping[float, Read]
    organs: Callable[[], tuple[np.ndarray, dict[int, str]]] | None = None


@dataclass(frozen=True)
class Signature:
    """What was measured of a case.

    Parameters
    ----------
    scanner : str
    noise_nmae : float
        NMAE of x_0 + n for noise of unit variance.
    nmae, ssim_loss : dict
        DRF -> NMAE and 1 - SSIM of the image at that dose.
    curve : ndarray
        1 - SSIM of x_0 + r n, at given ratios r.
    organs : dict
        Name -> (NMAE for unit noise, DRF -> NMAE), both within the organ.
    """

    scanner: str
    noise_nmae: float
    nmae: dict[float, float]
    ssim_loss: dict[float, float]
    curve: np.ndarray
    organs: dict[str, tuple[float, dict[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Reference, noise and body of a case, cut to the body; network numbers."""

    clean: np.ndarray
    noise: np.ndarray
    body: np.ndarray
    part: tuple[slice, slice, slice]
    shape: tuple[int, ...]


def prepare(case: Case, scaling: Scaling, colored: ColoredNoise | None, seed: int) -> Prepared:
    """Read the reference of a case and draw its noise."""
    suv = case.reference()
    body = body_mask(suv)
    places = [np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not all(len(p) for p in places):
        raise DataError(f"{case.name}: no body in the full dose; give a PET volume")
    part = tuple(
        slice(max(0, int(p[0]) - MARGIN), min(n, int(p[-1]) + 1 + MARGIN)) for p, n in zip(places, suv.shape, strict=True)
    )
    guide = scaling.numbers_of(case.images[max(case.images)]())
    if guide.shape != suv.shape:
        raise _other_shape(case, guide.shape, suv.shape)
    low = torch.from_numpy(guide)[None, None]
    noise = draw_noise(colored, low, [seed])[0, 0].numpy()
    return Prepared(scaling.numbers_of(suv)[part], noise[part], body[part], (part[0], part[1], part[2]), suv.shape)


def measure(case: Case, scaling: Scaling, colored: ColoredNoise | None, seed: int, ratios: Sequence[float]) -> Signature:
    """Signature of a case, the curve at some ratios s / a."""
    ready = prepare(case, scaling, colored, seed)
    clean, body = ready.clean, ready.body
    peak = own_range_peak(clean, body)
    labels, names = (None, {}) if case.organs is None else case.organs()
    masks = {} if labels is None else {name: labels[ready.part] == label for label, name in names.items()}
    # A region of few voxels tells little, and one without activity nothing.
    least = 0.2 * float(clean[body].mean())
    masks = {name: mask for name, mask in masks.items() if mask.sum() >= 200 and clean[mask].mean() > least}
    organs: dict[str, tuple[float, dict[float, float]]] = {
        name: (mean_absolute(ready.noise, clean, mask), {}) for name, mask in masks.items()
    }
    errors, losses = {}, {}
    for drf, read in case.images.items():
        image = _cut(case, read(), ready)
        image = scaling.numbers_of(image)
        errors[drf] = mean_absolute(image - clean, clean, body)
        losses[drf] = 1 - ssim(image, clean, peak, body)
        for name, mask in masks.items():
            organs[name][1][drf] = mean_absolute(image - clean, clean, mask)
    curve = np.array([1 - ssim(clean + np.float32(r) * ready.noise, clean, peak, body) for r in ratios])
    return Signature(case.scanner, mean_absolute(ready.noise, clean, body), errors, losses, curve, organs)


def ratios_of_doses(case: Case, scaling: Scaling, colored: ColoredNoise | None, seed: int) -> list[float]:
    """Ratios s / a at which noise has the NMAE of each dose."""
    ready = prepare(case, scaling, colored, seed)
    unit = mean_absolute(ready.noise, ready.clean, ready.body)
    found = []
    for read in case.images.values():
        image = scaling.numbers_of(_cut(case, read(), ready))
        found.append(mean_absolute(image - ready.clean, ready.clean, ready.body) / unit)
    return found


def mean_absolute(difference: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """NMAE: mean |difference| over mean |reference| in a mask."""
    return float(np.abs(difference[mask]).mean(dtype=np.float64) / np.abs(reference[mask]).mean(dtype=np.float64))


def _cut(case: Case, image: np.ndarray, ready: Prepared) -> np.ndarray:
    if image.shape != ready.shape:
        raise _other_shape(case, image.shape, ready.shape)
    return image[ready.part]


def _other_shape(case: Case, shape: tuple[int, ...], wanted: tuple[int, ...]) -> DataError:
    return DataError(f"{case.name}: an image has {shape} voxels, the full dose {wanted}; give images of one reconstruction")
