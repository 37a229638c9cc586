"""What a lower injection would have recorded of given list-mode events: a model.

A random between crystals i and j is kept with [(a_i/D + b_i)(a_j/D + b_j)] / [(a_i + b_i)(a_j + b_j)] times the change of
both live fractions, a true or scattered event with live(D) / (D live(1)). The singles a + b come from the delayeds by
maximum likelihood (`petsim.physics.randoms`), b is the 176Lu of the scanner's crystals, live fractions are those of the
dead-time model for the triggers that come with a single from a water cylinder (a tenth too many of them made the counts at
DRF 20 too high by 7 % in a simulation with blocks live 60 % of the time). Whether a prompt is random is not known: it is
kept with the mean of both shares at its own place, weighted with the randoms fraction of its neighborhood in (view, radial,
TOF, plane). 176Lu coincidences count as trues.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numba as nb
import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.isotopes import isotope
from petsim.dose_rates import BinRates, DoseRates, dose_rates, frame_means
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.normalization import normalization
from petsim.physics.randoms import DelayedWindow
from petsim.physics.sensitivity import photons_kept
from petsim.physics.singles import Singles, subject_singles
from petsim.rawdata.events import Header, Listmode, rings_of

COARSE_MM = 16.0
"""Crystals are merged to about this size where the randoms fraction is looked up; it varies slowly over detectors."""

TOF_BINS_PER_FWHM = 2.5
"""Merged TOF bins in the timing resolution."""

BOXES = (
    (3, 1, 1, 1), (5, 1, 1, 3), (7, 3, 1, 3), (9, 3, 1, 5), (11, 3, 1, 7), (15, 5, 1, 7), (21, 5, 1, 9), (31, 7, 3, 11),
    (51, 9, 3, 15), (101, 15, 5, 31),
)  # fmt: skip
"""Neighborhoods in (view, radial, TOF, plane), in merged bins, longest along views, where a body changes least."""

RANDOMS_WANTED = 20.0
"""Randoms that are expected in a neighborhood; the smallest one that holds so many is taken."""

CYLINDER_DECAYS = 200_000
"""Of the simulation that tells how many triggers a single in the window comes with."""

EVEN_DELAYEDS = 30.0
"""Delayeds a radial bin from which on they tell which bins are accepted."""

FILLED = 0.8
"""A radial bin counts as accepted that holds more than this part of the delayeds of the middle ones."""

LIVE_ITERATIONS = 40
"""Rates then change by less than 1e-4, where half of all events are lost to dead time too."""


class Delayeds:
    """Counts delayeds between areas of detectors, int64 `counts` in the order of `DelayedWindow.expected`.

    Only pairs of crystals that are accepted count.

    Parameters
    ----------
    window : DelayedWindow
    pairs : PairBins
        Of the layout of `window`.
    """

    def __init__(self, window: DelayedWindow, pairs: PairBins) -> None:
        areas = window.areas
        self._around, self._axial = areas.of_crystals()
        self._pairs = pairs
        self.counts = np.zeros((areas.across, areas.along, areas.across, areas.along), np.int64)

    def add(self, events: np.ndarray) -> None:
        """Add the delayeds among some events."""
        layout = self._pairs.layout
        _add_delayeds(events, self._around, self._axial, self._pairs.line, layout.merge_transaxial,
                      layout.scanner.max_ring_difference, self.counts)  # fmt: skip


@nb.njit(cache=True, nogil=True)
def _add_delayeds(events, around, axial, line, merge, farthest, counts):
    for k in range(events.size):
        e = events[k]
        if e.is_delayed == 0 or line[e.crystal1 // merge, e.crystal2 // merge] < 0:
            continue
        if abs(np.int64(e.ring1) - np.int64(e.ring2)) > farthest:
            continue
        a1, z1, a2, z2 = around[e.crystal1], axial[e.ring1], around[e.crystal2], axial[e.ring2]
        if a1 > a2:
            a1, z1, a2, z2 = a2, z2, a1, z1
        counts[a1, z1, a2, z2] += 1


def merged_tof(header: Header, wanted_ps: float) -> tuple[int, int]:
    """Finest TOF bins, and bins of the events, in a merged one of about `wanted_ps` whose edges are edges of theirs.

    There is an odd number of merged bins; so edges fall together where the number of event bins in one is even or odd as
    that of all of them.

    Raises
    ------
    DataError
        Bins of the events that are no multiple of the scanner's finest.
    """
    finest = rings_of(header).given("tof_bin_ps")
    own = round(header.tof_bin_ps / finest)
    if own < 1 or abs(own * finest / header.tof_bin_ps - 1) > 0.01:
        raise DataError(
            f"{header.scanner.name}: TOF bins of {header.tof_bin_ps:g} ps are no multiple of {finest:g} ps; give the bins "
            "of the events as tof_bin_ps in a copy of the scanner's file (--scanner FILE.toml)"
        )
    odd = header.tof_bins % 2
    together = max(2 - odd, 2 * round((wanted_ps / header.tof_bin_ps - odd) / 2) + odd)
    return own * together, together


def coarse_layout(header: Header) -> SinogramLayout:
    """Sinogram in which the local randoms fraction is found: all crystal pairs, merged to `COARSE_MM`."""
    scanner = rings_of(header)
    pitch = 2 * np.pi * scanner.radius_mm / scanner.crystals_per_ring
    across = max(m for m in range(1, scanner.crystals_per_ring // 16) if scanner.crystals_per_ring % m == 0
                 and (m == 1 or m * pitch <= COARSE_MM))  # fmt: skip
    along = max(1, min(scanner.rings, round(COARSE_MM / scanner.ring_spacing_mm)))
    rings = -(-scanner.rings // along)
    crystals = scanner.crystals_per_ring // across
    merge, bins = 0, 1
    if header.tof_bins > 1 and scanner.tof_bin_ps and scanner.tof_fwhm_ps:
        merge, together = merged_tof(header, scanner.tof_fwhm_ps / TOF_BINS_PER_FWHM)
        # An odd number of merged bins that holds all bins of the events.
        bins = 2 * math.ceil((header.tof_bins / together - 1) / 2) + 1
    return SinogramLayout(
        scanner, (crystals // 2 if crystals % 2 else crystals) - 1, across, along, span=min(5, 2 * rings - 1),
        max_ring_difference=rings - 1, merge_tof=merge, tof_bins=bins,
    )  # fmt: skip


def acceptance(source: Listmode) -> SinogramLayout:
    """Sinogram of the unmerged crystal pairs that a file's events fill on both sides of the middle, and up to the ring
    difference that they reach, which its scanner has too.

    Singles follow from delayeds only where it is known which pairs could have one: with a narrow fan, an error of a few
    pairs at its edge moves singles from one side of the ring to the other. Edges that are filled in part are left out.
    """
    scanner = rings_of(source.header)
    whole = SinogramLayout(
        scanner, scanner.crystals_per_ring // (2 if scanner.crystals_per_ring % 2 else 1) - 1,
        max_ring_difference=scanner.max_ring_difference,
    )  # fmt: skip
    pairs, counts, farthest = PairBins.of(whole), np.zeros((2, whole.radials), np.int64), 0
    for block in source.blocks():
        difference = block.events["ring1"].astype(np.int32) - block.events["ring2"]
        farthest = max(farthest, int(np.abs(difference).max(initial=0)))
        late = block.events["is_delayed"] > 0
        pairs.count_radials(block.events[late], counts[0])
        pairs.count_radials(block.events[~late], counts[1])
    # Delayeds spread evenly over the accepted pairs, prompts do not; of too few delayeds the reach of all events must do.
    middle = whole.radials // 2
    filled = counts.sum(axis=0) > 0
    if counts[0].sum() >= EVEN_DELAYEDS * max(filled.sum(), 1):
        inner = counts[0, middle - middle // 4 : middle + middle // 4 + 1]
        filled = counts[0] > FILLED * np.median(inner[inner > 0])
    reach = next((t for t in range(middle, 0, -1) if filled[middle - t] and filled[min(middle + t, whole.radials - 1)]), 1)
    farthest = min(farthest, scanner.max_ring_difference)
    return SinogramLayout(
        replace(scanner, max_ring_difference=farthest), 2 * reach + 1 if reach < middle else whole.radials,
        max_ring_difference=farthest,
    )  # fmt: skip


def within(layout: SinogramLayout, accepted: SinogramLayout) -> SinogramLayout:
    """The layout with no more radial bins than were accepted: others have no counts."""
    share = accepted.radials / (accepted.crystals / layout.crystals)
    return replace(layout, radials=min(layout.radials, 2 * round((share - 1) / 2) + 1))


def singles_of(scanner: Scanner, window: DelayedWindow, delayeds: np.ndarray, seconds: float, isotope_name: str) -> Singles:
    """Singles of a scan from its delayeds.

    The 176Lu part and the triggers that come with a single are those of a water cylinder in the scanner.
    """
    model = _cylinder_singles(scanner, isotope_name)
    ratio = model.triggers_cps.sum() / model.activity_cps.sum()
    recorded = window.singles(delayeds, seconds)
    live = np.ones_like(recorded)
    singles = model
    # Estimated is the mean over the frame, a sqrt(f2) + b f1 / sqrt(f2) (see `dose_rates`); a is that of scan start.
    f1, f2 = frame_means(isotope(isotope_name), seconds)
    for _ in range(LIVE_ITERATIONS):
        activity = np.maximum((recorded / live - model.lutetium_cps * f1 / math.sqrt(f2)) / math.sqrt(f2), 0)
        singles = replace(model, activity_cps=activity, triggers_cps=activity * ratio)
        live = dose_rates(singles, 1.0, "dose", seconds, isotope_name, 1.0, 1.0).live
    return singles


def _cylinder_singles(scanner: Scanner, isotope_name: str) -> Singles:
    grid = Grid.centered((50, 50, 50), (4.0, 4.0, scanner.axial_length_mm / 50), (0.0, 0.0, 0.0))
    inside = np.hypot(grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]) < 100
    activity = np.repeat(inside[:, :, None], grid.shape[2], axis=2).astype(np.float32)
    return subject_singles(
        scanner, activity * 1000, activity * np.float32(0.096), grid, (0.0, 0.0, 0.0), 200.0,
        isotope(isotope_name).branching, photons_kept(scanner), CYLINDER_DECAYS,
    )  # fmt: skip


def kept_shares(source: Listmode, drfs: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Share that is kept of each of some events at every dose: events -> float32 (dose, events). Reads the file twice.

    Parameters
    ----------
    source : Listmode
        With delayeds, whole.
    drfs : tuple of float
        Ascending, 1 first.

    Raises
    ------
    DataError
        No delayeds, from which the model knows the singles.
    """
    header = source.header
    if "delayeds" not in header.fields:
        raise DataError(f"{source.name}: no delayeds, from which --mode dose learns the singles; use --mode thin")
    own = acceptance(source)
    layout = coarse_layout(replace(header, scanner=own.scanner))
    window = DelayedWindow.of(own)
    pairs, found = PairBins.of(layout), Delayeds(window, PairBins.of(own))
    prompts = np.zeros(int(np.prod(layout.shape)), np.int64)
    for block in source.blocks():
        found.add(block.events)
        _add_prompts(block.events, pairs.of_events(block.events, header.tof_bins, header.tof_bin_ps), prompts)
    if not found.counts.any():
        raise DataError(f"{source.name}: not one delayed, from which --mode dose learns the singles; use --mode thin")
    singles = singles_of(layout.scanner, window, found.counts, header.duration_s, header.injection.isotope)
    rates = tuple(dose_rates(singles, d, "dose", header.duration_s, header.injection.isotope, 1.0, 1.0) for d in drfs)
    fraction, random, true = _tables(layout, singles, rates, prompts.reshape(layout.shape))

    def kept(events: np.ndarray) -> np.ndarray:
        out = np.empty((len(drfs), len(events)), np.float32)
        _kept(events, pairs.of_events(events, header.tof_bins, header.tof_bin_ps), layout.tof_bins, layout.planes,
              fraction.reshape(-1), random, true, out)  # fmt: skip
        return out

    return kept


def _tables(
    layout: SinogramLayout, singles: Singles, rates: tuple[DoseRates, ...], prompts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Randoms fraction of prompts (view, radial, tof, plane), and shares of randoms and trues (dose, lines, plane).

    An event is one of the N + 1 prompts of its neighborhood. Since the mean of 1 / (N + 1) over a Poisson count N of mean m
    is (1 - exp(-m)) / m, expected randoms over prompts are right on average, although single fractions may pass 1.
    """
    in_bins = BinRates(layout, singles.areas, rates)
    real = layout.scanner.is_real().astype(np.float32)
    views = np.arange(layout.views)
    live = [in_bins.live(views, k) for k in range(len(rates))]
    randoms = [in_bins.randoms(views, k) for k in range(len(rates))]
    expected = normalization(layout, real, views) * live[0] * randoms[0]
    full = np.maximum(randoms[0], np.finfo(np.float32).tiny)
    random = np.stack([a / live[0] * r / full for a, r in zip(live, randoms, strict=True)])
    true = np.stack([a / live[0] / np.float32(r.drf) for a, r in zip(live, rates, strict=True)])
    shape = (len(rates), layout.views * layout.radials, layout.planes)
    ends = np.cumsum([0] + [s.planes for s in layout.segments()]).tolist()
    fraction = np.empty(layout.shape, np.float32)
    box: Any = next((b for b in BOXES if math.prod(b) * expected.mean() >= RANDOMS_WANTED), BOXES[-1])
    flat_box: Any = (*box[:2], 1, box[3])
    for low, high in pairwise(ends):
        flat = ndimage.uniform_filter(expected[:, :, None, low:high], flat_box, mode="nearest")
        near = ndimage.uniform_filter(prompts[..., low:high].astype(np.float32), box, mode="nearest")
        fraction[..., low:high] = flat / np.maximum(near, 0.5 / math.prod(box))
    return fraction, np.minimum.accumulate(np.minimum(random, 1)).reshape(shape), true.reshape(shape)


@nb.njit(cache=True, nogil=True)
def _add_prompts(events, bins, counts):
    for k in range(events.size):
        if events[k].is_delayed == 0 and bins[k] >= 0:
            counts[bins[k]] += 1


@nb.njit(cache=True, nogil=True)
def _kept(events, bins, tof_bins, planes, fraction, random, true, out):
    for k in range(events.size):
        at = bins[k]
        line, plane = at // (tof_bins * planes), at % planes
        own = np.float32(1)
        if events[k].is_delayed == 0:
            own = fraction[at]
        for d in range(out.shape[0]):
            share = own * random[d, line, plane] + (np.float32(1) - own) * true[d, line, plane]
            out[d, k] = max(np.float32(0), share) if d > 0 else np.float32(1)
            if d > 0 and out[d, k] > out[d - 1, k]:
                out[d, k] = out[d - 1, k]
