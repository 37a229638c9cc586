"""What blurs a PET image before any noise: positron range, photons that are not collinear, crystals, depth of interaction.

The published NEMA NU 2 resolution of a scanner (`resolution_fwhm_mm`) was measured with F-18 near the center. It holds the
positron range of F-18, non-collinearity and crystal size, but no depth of interaction, which blurs off center only. So the
forward model blurs by it, less what its rays and voxels blur by themselves (`blur_left_mm`), adds what another isotope's
positrons fly beyond those of F-18 (`add_positron_range`), and moves the ends of its rays in depth (`ray_design`). Merging
crystals is not in the published figure, and blurs beyond it. What filtered back projection added to that figure, a few
percent without a window, stays in the model.
"""

import math
from typing import Any

import numpy as np
from scipy import fft
from scipy.optimize import brentq
from scipy.special import erfcx

from data_recipes.isotopes import isotope, range_terms
from petsim.filters import gaussian_kernel
from petsim.geometry.scanner import Scanner
from petsim.physics.photons import ELECTRON_KEV, crystal_attenuation

FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))

MEASURED_WITH = "F-18"
"""Isotope of NEMA NU 2 resolution measurements."""

RECONSTRUCTION_FACTOR = 1.25
"""By which filtered back projection widens what the detectors give: Moses 2011, doi 10.1016/j.nima.2010.11.092."""

NON_COLLINEARITY = 0.0044
"""FWHM at the center per mm of ring radius (0.0022 per mm of diameter), Moses 2011."""

MOSES_DEPTH_MM = 12.5
"""Moses' parallax constant, which stands for crystals of 30 mm."""

KERNEL_REACH = 8.0
"""Range kernels are kept to this many decay lengths 1/k; exp(-8) is 0.03 %."""


def range_variance_mm2(name: str) -> float:
    """Variance in mm^2, along one axis, of where the positrons of an isotope annihilate in water."""
    return sum(2 * weight / k**2 for weight, k in range_terms(isotope(name)))


def _terms_beyond(name: str, beyond: str | None) -> list[tuple[float, float]]:
    """Terms (weight, k) of the range kernel; the rest of the weights, up to 1, stays in place.

    For one exponential the ratio of two transforms is (k/k0)^2 + (1 - (k/k0)^2) k^2 / (k^2 + q^2): a part that stays, and
    the farther isotope's own kernel. For two terms the wide one is used, and its weight follows from the variances.
    """
    terms = list(range_terms(isotope(name)))
    if beyond is None:
        return terms
    extra = range_variance_mm2(name) - range_variance_mm2(beyond)
    k = max(terms)[1]
    return [(extra * k**2 / 2, k)] if extra > 0 else []


def add_positron_range(
    image: np.ndarray, spacing_mm: tuple[float, float, float], name: str, beyond: str | None = MEASURED_WITH
) -> np.ndarray:
    """Blur by the distance between decay and annihilation in water.

    The kernel of `data_recipes.isotopes.range_terms` solves (1 - laplacian / k^2) f = delta; its voxel version takes the
    second differences of the grid for the Laplacian, which keeps it positive, its sum 1 and its variance 2 / k^2 along every
    axis, whatever the voxels. The image counts as zero outside, which makes the operator its own transpose.

    Parameters
    ----------
    image : ndarray
        Activity, (x, y, z).
    spacing_mm : tuple of float
        Voxel edges in mm.
    name : str
        Isotope.
    beyond : str, optional
        Isotope whose range the blur of the scanner already holds; None adds the whole range. An isotope of no longer
        range adds nothing.

    Returns
    -------
    ndarray
        float32 (x, y, z).

    Raises
    ------
    DataError
        An isotope that is unknown or has no positron energies.
    """
    terms = _terms_beyond(name, beyond)
    image = np.asarray(image, np.float32)
    if not terms:
        return image.copy()
    reach = KERNEL_REACH / min(k for _, k in terms)
    shape = [fft.next_fast_len(n + math.ceil(reach / d), real=True) for n, d in zip(image.shape, spacing_mm, strict=True)]
    waves = [fft.fftfreq(n) for n in shape[:2]] + [fft.rfftfreq(shape[2])]
    x, y, z = ((2 * np.sin(np.pi * w) / d) ** 2 for w, d in zip(waves, spacing_mm, strict=True))
    q2 = (x[:, None, None] + y[None, :, None] + z[None, None, :]).astype(np.float32)
    transfer = np.full(q2.shape, 1 - sum(weight for weight, _ in terms), np.float32)
    for weight, k in terms:
        transfer += np.float32(weight) / (1 + q2 / np.float32(k**2))
    spectrum = np.asarray(fft.rfftn(image, shape))
    spectrum *= transfer
    nx, ny, nz = image.shape
    blurred = np.asarray(fft.irfftn(spectrum, shape))[:nx, :ny, :nz]
    return np.ascontiguousarray(blurred, np.float32)


def range_kernel(name: str, spacing_mm: tuple[float, float, float], beyond: str | None = MEASURED_WITH) -> np.ndarray:
    """What `add_positron_range` makes of one voxel: float32, odd in every axis, of sum 1 but for what lies farther out."""
    terms = _terms_beyond(name, beyond)
    reach = KERNEL_REACH / min((k for _, k in terms), default=math.inf)
    half = [math.ceil(reach / d) for d in spacing_mm]
    point = np.zeros([2 * h + 1 for h in half], np.float32)
    point[tuple(half)] = 1
    return add_positron_range(point, spacing_mm, name, beyond)


def fwhm_with_range(fwhm_mm: float, name: str) -> float:
    """FWHM in mm of a Gaussian blur of `fwhm_mm` followed by the positron range of an isotope, along one axis.

    The kernel's peak is sharp and its tails are long, so that it widens the half maximum less than its variance says.
    """
    sigma = fwhm_mm / FWHM_PER_SIGMA
    terms = range_terms(isotope(name))

    def response(x: float) -> float:
        total = 0.0
        for weight, k in terms:
            two_sides = erfcx((k * sigma - x / sigma) / math.sqrt(2)) + erfcx((k * sigma + x / sigma) / math.sqrt(2))
            total += weight * k / 4 * math.exp(-0.5 * (x / sigma) ** 2) * float(two_sides)
        return total

    half = response(0.0) / 2
    widest = FWHM_PER_SIGMA * math.sqrt(sigma**2 + range_variance_mm2(name))
    return 2 * float(brentq(lambda x: response(x) - half, 0.0, widest))  # pyright: ignore[reportArgumentType]


def depth_sigma_mm(scanner: Scanner) -> float:
    """Standard deviation in mm of the depth at which 511 keV photons interact in a crystal.

    Depths follow exp(-mu x) up to the crystal's length L, so that the variance is 1/mu^2 - L^2 e / (1 - e)^2 with
    e = exp(-mu L); mu is photoelectric and incoherent, and photons enter along the crystal.
    """
    photoelectric, incoherent = crystal_attenuation(scanner.crystal_material, np.array([ELECTRON_KEV]))
    mu = float(photoelectric[0] + incoherent[0]) / 10
    length = scanner.crystal_size_mm[2]
    left = math.exp(-mu * length)
    return math.sqrt(1 / mu**2 - length**2 * left / (1 - left) ** 2)


def ray_design(rays: int, scanner: Scanner) -> list[tuple[float, float, float]]:
    """Rays of a crystal pair: `rays` x `rays` shifts (transaxial, axial, depth).

    The first two are fractions of the merged crystal's pitch. The shift of a LOR between two crystals of width p is
    triangular with variance p^2 / 24, and equally spaced and equally weighted rays are scaled to that variance. The third
    is in mm: both ends of the ray lie that much deeper than the mean depth of interaction. At an incidence s / R (radial
    offset s, ring radius R) the depths d1 and d2 of two photons move a LOR sideways by (d1 + d2) / 2 s / R, of variance
    sigma^2 / 2 (s / R)^2, so that the depths of the rays get the standard deviation sigma / sqrt(2) with sigma of
    `depth_sigma_mm`. They go as the product of both shifts, with which they are uncorrelated; their mean is 0.

    Parameters
    ----------
    rays : int
        In each direction. 1 gives one ray through the centers and no blur at all.
    scanner : Scanner

    Returns
    -------
    list of tuple
        Transaxial shift and axial shift (fractions of the pitch), depth in mm.
    """
    if rays == 1:
        return [(0.0, 0.0, 0.0)]
    places = np.arange(rays) - (rays - 1) / 2
    places /= np.sqrt(np.mean(places**2))
    shift, depth = math.sqrt(1 / 24), depth_sigma_mm(scanner) / math.sqrt(2)
    return [(float(a * shift), float(b * shift), float(a * b * depth)) for a in places for b in places]


def blur_left_mm(
    fwhm_mm: tuple[float, float, float], voxel_mm: tuple[float, float, float], pitch_mm: tuple[float, float]
) -> tuple[float, float, float]:
    """Gaussian that a forward model still needs to blur by `fwhm_mm` in all.

    Variances add up. Voxels of width h average the activity, h^2 / 12, and the projector interpolates linearly between them
    along the axis that a ray crosses: h^2 / 6 axially, and seen across the ray, over all its directions, (1/2 + 1/pi) times
    that. Rays over crystals of pitch p have p^2 / 24 (`ray_design`). What is left is the variance of a Gaussian integrated
    over voxels, as `petsim.filters.gaussian` applies it.

    Parameters
    ----------
    fwhm_mm, voxel_mm : tuple of float
        By axis.
    pitch_mm : tuple of float
        Crystals, transaxial and axial: those of the scanner, not merged ones. 0 where there is but one ray.

    Returns
    -------
    tuple of float
        FWHM in mm by axis; 0 where voxels and crystals blur as much or more.
    """
    across = 1 / 12 + (1 / 2 + 1 / math.pi) / 6
    shares, pitches = (across, across, 1 / 4), (pitch_mm[0], pitch_mm[0], pitch_mm[1])
    x, y, z = (
        h * _gaussian_with((f / FWHM_PER_SIGMA / h) ** 2 - share - (p / h) ** 2 / 24)
        for f, h, share, p in zip(fwhm_mm, voxel_mm, shares, pitches, strict=True)
    )
    return x, y, z


def _gaussian_with(variance: float) -> float:
    """FWHM in voxels of the Gaussian whose kernel has a variance, in voxels^2; 0 where that is not positive."""
    if variance <= 0:
        return 0.0

    def missing(fwhm: float) -> float:
        kernel = gaussian_kernel(fwhm).astype(np.float64)
        return float(kernel @ (np.arange(kernel.size) - kernel.size // 2) ** 2) - variance

    return float(brentq(missing, 0.0, FWHM_PER_SIGMA * math.sqrt(variance) + 1))  # pyright: ignore[reportArgumentType]


def resolution_budget(
    scanner: Scanner, radius_mm: float, isotope_name: str = MEASURED_WITH, decoding_mm: float = 0.0
) -> dict[str, Any]:
    """Contributions to the radial resolution, as FWHM in mm, after Moses 2011 (doi 10.1016/j.nima.2010.11.092).

    total = 1.25 sqrt(crystal^2 + non_collinearity^2 + decoding^2 + depth^2 + range^2) with crystal = d / 2 and
    non_collinearity = 0.0044 R. Unlike there, the depth follows from length and attenuation of the crystals,
    sqrt(8 ln 2) sigma / sqrt(2) r / R, and the range is what the isotope's kernel adds in quadrature to the FWHM of the
    others. The terms can be compared with a published resolution but do not enter the simulation.

    Parameters
    ----------
    scanner : Scanner
    radius_mm : float
        Distance from the axis in mm.
    isotope_name : str
    decoding_mm : float
        Moses' b: what light shared between crystals adds; not published for most scanners.

    Returns
    -------
    dict
        crystal, non_collinearity, decoding, depth, range, reconstruction_factor, total; and depth_moses, Moses' own
        12.5 r / sqrt(r^2 + R^2), for comparison.

    Raises
    ------
    DataError
        As `add_positron_range` raises.
    """
    radius = scanner.radius_mm
    terms = {
        "crystal": scanner.crystal_size_mm[0] / 2,
        "non_collinearity": NON_COLLINEARITY * radius,
        "decoding": decoding_mm,
        "depth": FWHM_PER_SIGMA * depth_sigma_mm(scanner) / math.sqrt(2) * radius_mm / radius,
    }
    others = math.hypot(*terms.values())
    whole = fwhm_with_range(others, isotope_name)
    return terms | {
        "range": math.sqrt(whole**2 - others**2),
        "reconstruction_factor": RECONSTRUCTION_FACTOR,
        "total": RECONSTRUCTION_FACTOR * whole,
        "depth_moses": MOSES_DEPTH_MM * radius_mm / math.hypot(radius_mm, radius),
    }
