"""Reconstruction of counts with the corrections that a scanner would use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numba as nb
import numpy as np

from data_recipes.grid import Grid
from petsim.dose_rates import BinRates, DoseRates
from petsim.filters import gaussian
from petsim.physics.attenuation import survival
from petsim.physics.normalization import normalization
from petsim.physics.scatter import ScatterTable
from petsim.physics.singles import DetectorAreas
from petsim.plan import Plan
from petsim.projectors.contract import SinogramOperator
from petsim.recon.bsrem import bsrem
from petsim.recon.osem import EmBack, is_seen, osem
from petsim.recon.relative_difference import RelativeDifference

PRIOR_UNIT = 2e-6
"""Weight of the prior over the sensitivity in air for a beta of 1, see `prior_weight`. No vendor's scale was found; this is
petsim's own: on the Discovery MI, beta 400 leaves about the noise of the preset ge-vpfx-s in a uniform cylinder."""

CENTER_MM = 100.0
"""Sensitivity in air is that of voxels within this radius, over the two rings in the middle."""


@dataclass(frozen=True)
class Surroundings:
    """What other bed positions tell of the part of the subject around the one that is reconstructed.

    Parameters
    ----------
    activity_bqml : ndarray
        (images, x, y, z) at the start of this position.
    mu_per_cm : ndarray
        (x, y, z).
    grid : Grid
        Of both; that of the plan, with more slices at the ends.
    first : int
        Slice at which the grid of the plan begins.
    """

    activity_bqml: np.ndarray
    mu_per_cm: np.ndarray
    grid: Grid
    first: int

    def holding(self, images: np.ndarray) -> np.ndarray:
        """The activity with images of this position (images, x, y, z) in their place."""
        whole = self.activity_bqml.copy()
        whole[..., self.first : self.first + images.shape[-1]] = images
        return whole


@dataclass(frozen=True)
class Corrections:
    """What the reconstruction believes.

    Parameters
    ----------
    mu_per_cm : ndarray
        On the reconstruction grid.
    efficiencies : ndarray
        (crystals_per_ring, rings).
    rates : tuple of DoseRates
        By image: duration, scale, live fractions, and singles for randoms.
    areas : DetectorAreas
    scatter : ScatterTable, optional
    shares_scatter : bool
        All images have the scatter of the table's image 0, instead of one of their own.
    scatter_scales : tuple of dict
        By image: scale that was put on the single scatter, and how it was found; JSON types.
    surroundings : Surroundings, optional
        Of which photons scatter into this field of view too.
    """

    mu_per_cm: np.ndarray
    efficiencies: np.ndarray
    rates: tuple[DoseRates, ...]
    areas: DetectorAreas
    scatter: ScatterTable | None = None
    shares_scatter: bool = False
    scatter_scales: tuple[dict[str, Any], ...] = ()
    surroundings: Surroundings | None = None


class Reconstructor:
    """OSEM or BSREM, as the preset has it, of several images with the layout of a plan and their corrections.

    Images carry the constant `counts_per_unit` of their rates until `finish`.

    Parameters
    ----------
    plan : Plan
    operator : callable
        Makes projectors.
    corrections : Corrections
    psf : bool
        Model the point spread function.
    """

    def __init__(
        self, plan: Plan, operator: Callable[..., SinogramOperator], corrections: Corrections, psf: bool = True
    ) -> None:
        self.plan, self.corrections, self._psf = plan, corrections, psf
        support = plan.fov_mm / 2
        self._projector = operator(plan.layout, plan.grid, plan.center_mm, support)
        self._plain = operator(plan.layout, plan.grid, plan.center_mm, support, tof=False)
        self._mu = self._plain.prepare(corrections.mu_per_cm[None])[0]
        self._psf_mm: tuple[float, float, float] = plan.scanner.given("resolution_fwhm_mm")
        self.inside = self._plain.support
        self.in_bins = BinRates(plan.layout, corrections.areas, corrections.rates)
        # Images whose blocks were equally live share their sensitivity.
        self._like = [
            next(k for k, other in enumerate(corrections.rates) if np.array_equal(other.live, r.live))
            for r in corrections.rates
        ]
        self._sensitivities = [self._sensitivity(subset) for subset in range(plan.preset.subsets)]
        self._prior = self._make_prior() if plan.preset.algorithm == "bsrem" else None

    def _make_prior(self) -> RelativeDifference:
        total = np.sum([s[0] for s in self._sensitivities], axis=0)
        weight = prior_weight(self.plan.preset.beta or 0.0, self._air_sensitivity())
        return RelativeDifference(weight, self.plan.grid.spacing_mm, self.inside & is_seen(total))

    def _air_sensitivity(self) -> float:
        """Sensitivity of the scanner's middle with all crystals alike and live, and nothing that attenuates."""
        sums = self._plain.new_sums(1)
        for subset in range(self.plan.preset.subsets):
            for views in self.groups(subset):
                factors = normalization(self.plan.layout, self.plan.scanner.is_real().astype(np.float32), views)
                self._plain.add_back(sums, views, factors[None, :, :, None])
        grid, (x_mm, y_mm, _) = self.plan.grid, self.plan.center_mm
        near = np.hypot((grid.axis_mm(0) - x_mm)[:, None], (grid.axis_mm(1) - y_mm)[None, :]) < CENTER_MM
        # Slices between rings see few lines; whole rings stand for all.
        half = min(round(self.plan.layout.ring_pitch_mm / grid.spacing_mm[2]), grid.shape[2] // 2)
        middle = slice(grid.shape[2] // 2 - half, grid.shape[2] // 2 + half)
        return float(self._plain.image_of(sums)[0][near & self.inside.any(axis=2), middle].mean(dtype=np.float64))

    def _sensitivity(self, subset: int) -> np.ndarray:
        own = sorted(set(self._like))
        sums = self._plain.new_sums(len(own))
        for views in self.groups(subset):
            factors = self.survival(views)[:, :, None]
            factors *= normalization(self.plan.layout, self.corrections.efficiencies, views)[:, :, None]
            self._plain.add_back(sums, views, np.stack([factors * self.in_bins.live(views, k)[:, :, None] for k in own]))
        images = np.stack([self.blur(image) for image in self._plain.image_of(sums)])
        return images if len(own) == 1 else images[[own.index(k) for k in self._like]]

    def groups(self, subset: int) -> Iterator[np.ndarray]:
        """Views of a subset, a group at a time."""
        views = self.plan.layout.subset_views(subset, self.plan.preset.subsets)
        for first in range(0, len(views), self.plan.views_at_once):
            yield views[first : first + self.plan.views_at_once]

    def survival(self, views: np.ndarray) -> np.ndarray:
        """Survival of both photons by the mu-map in use, float32 (views, radial, plane)."""
        return survival(self._plain.forward_prepared(self._mu, views))[:, :, 0]

    def background(self, views: np.ndarray, first: int, images: int, out: np.ndarray | None = None) -> np.ndarray:
        """Scatter and randoms of some images over the factors of a bin, float32 (images, views, radial, tof, plane)."""
        layout, scatter = self.plan.layout, self.corrections.scatter
        if out is None:
            out = np.empty((images, len(views), *layout.shape[1:]), np.float32)
        survive = self.survival(views)
        shared = scatter is not None and self.corrections.shares_scatter
        # From the last image to the first, whose place holds the scatter that all share until then.
        for k in reversed(range(images)):
            rates, source = self.corrections.rates[first + k], out[0 if shared else k]
            if scatter is None:
                source[:] = 0
            elif not shared or k == images - 1:
                scatter.at(layout, views, 0 if shared else first + k, source)
            _background(source, np.float32(rates.counts_per_unit), self.in_bins.randoms(views, first + k), survive, out[k])
        return out

    def blur(self, image: np.ndarray) -> np.ndarray:
        """Point spread function of the model."""
        if not self._psf:
            return image
        return gaussian(image, self._psf_mm, self.plan.grid.spacing_mm)

    def em_back(self, data: Callable[[np.ndarray], Iterable[np.ndarray]], images: Sequence[int] | None = None) -> EmBack:
        """What `run` takes, of sinograms.

        Parameters
        ----------
        data : callable
            Views -> stacks (n, views, ...) of counts, which together make up the images.
        images : sequence of int, optional
            Ascending: those that are given and asked for, neighbors in every stack. None: all.
        """
        chosen = range(len(self.corrections.rates)) if images is None else images
        # Fresh memory for every group would cost as much as filling it.
        buffers: dict[tuple[int, int], np.ndarray] = {}

        def em_back(subset: int, blurred: np.ndarray) -> np.ndarray:
            sums = self._projector.new_sums(len(chosen))
            prepared = self._projector.prepare(blurred)
            for views in self.groups(subset):
                first = 0
                for stack in data(views):
                    part = slice(first, first + len(stack))
                    shape = (len(stack), len(views))
                    if shape not in buffers:
                        buffers[shape] = np.empty((*shape, *self.plan.layout.shape[1:]), np.float32)
                    more = self.background(views, chosen[first], len(stack), buffers[shape])
                    self._projector.add_em_back(sums[part], views, stack, prepared[part], more)
                    first += len(stack)
            return self._projector.image_of(sums)

        return em_back

    def run(
        self,
        em_back: EmBack,
        order: Sequence[int],
        step: Callable[[], None] = lambda: None,
        start: np.ndarray | None = None,
        made: int = 0,
    ) -> np.ndarray:
        """Reconstruct; BSREM begins after an iteration of OSEM.

        Parameters
        ----------
        em_back : callable
            Of all images, from sinograms (`em_back`) or otherwise.
        order : sequence of int
            Subsets, one an update.
        step : callable
            Called after every update.
        start : ndarray, optional
            (images, x, y, z), as returned by an earlier run; None: uniform.
        made : int
            Updates of that run and those before it: BSREM's steps shrink with them.

        Returns
        -------
        ndarray
            float32 (images, x, y, z), still with the constants of the counts.
        """
        if start is None:
            start = np.broadcast_to(self.inside.astype(np.float32), (len(self.corrections.rates), *self.plan.grid.shape))

        def told(updates: int, images: np.ndarray) -> None:
            step()

        # BSREM's steps are made for images near their goal.
        subsets = self.plan.preset.subsets
        alone = len(order) if self._prior is None else max(0, subsets - made)
        found = osem(start, em_back, self._sensitivities, self.blur, order[:alone], told)
        if self._prior is None or not order[alone:]:
            return found
        return bsrem(
            found, em_back, self._sensitivities, self.blur, order[alone:], self._prior.gradient, self._prior.curvature(),
            callback=told, made=max(0, made - subsets),
        )  # fmt: skip

    def finish(self, images: np.ndarray) -> np.ndarray:
        """Scale to Bq/mL at scan start and full dose, and post-filter."""
        width = self.plan.preset.filter_mm
        return np.stack([
            gaussian(image / np.float32(r.counts_per_unit), (width, width, width), self.plan.grid.spacing_mm)
            for image, r in zip(images, self.corrections.rates, strict=True)
        ])  # fmt: skip

    def believing(self, corrections: Corrections) -> "Reconstructor":
        """The same with other randoms and scatter; all that sensitivities depend on must be equal."""
        other = copy(self)
        other.corrections = corrections
        other.in_bins = BinRates(self.plan.layout, corrections.areas, corrections.rates)
        return other

    def of_first(self, images: int) -> "Reconstructor":
        """The same for the first images only, which share its sensitivities."""
        other = self.believing(replace(self.corrections, rates=self.corrections.rates[:images]))
        other._like = self._like[:images]
        other._sensitivities = [s if len(s) == 1 else s[:images] for s in self._sensitivities]
        return other


def prior_weight(beta: float, air_sensitivity: float) -> float:
    """Weight of `RelativeDifference` for images in counts.

    At a uniform image x (in counts) the log-likelihood's curvature is s / x, with s a voxel's sensitivity, and that of the
    prior is weight times the sum of w over x. Their ratio tells how far an image is smoothed, and neither the unit of x nor
    the counts take part in it. So the weight goes with a sensitivity, here `PRIOR_UNIT` times that in air: a beta then means
    the same on every scanner, layout and voxel, and a subject that attenuates more is smoothed more, as where a weight is
    fixed.

    One weight serves all doses: the prior is of first degree in the image (doi 10.1109/TNS.2002.998681), as the
    log-likelihood is in the counts, so that a lower injected dose leaves their balance as it is, whatever the unit. A
    shorter scan does so because images are in counts here; with a prior on activity its share would grow. Noise hence rises
    as counts fall, and resolution stays. Which of both a vendor does is not verified.

    Parameters
    ----------
    beta : float
        The preset's.
    air_sensitivity : float
        A' m of a voxel in the middle of the scanner, without attenuation, all subsets.
    """
    return PRIOR_UNIT * beta * air_sensitivity


@nb.njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _background(values, unit, randoms, survive, out):
    """out <- (values unit + randoms) / survive, which is infinite or no number where nothing survives."""
    for v in nb.prange(values.shape[0]):
        for r in range(values.shape[1]):
            for t in range(values.shape[2]):
                row, to, flat, through = values[v, r, t], out[v, r, t], randoms[v, r], survive[v, r]
                for p in range(row.size):
                    to[p] = (row[p] * unit + flat[p]) / through[p]
