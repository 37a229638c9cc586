"""Crystal pairs to sinogram bins: the inverse of the layout's own pairs."""

import numpy as np
import pytest

from data_recipes.errors import UsageError
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata.events import EVENT

MMR, QUADRA = load_scanner("biograph_mmr"), load_scanner("biograph_vision_quadra")
LAYOUTS = [
    SinogramLayout(MMR, 344, max_ring_difference=60),
    SinogramLayout(MMR, 100, span=11, max_ring_difference=60, mash=2),
    SinogramLayout(MMR, 60, 4, 5, max_ring_difference=7, span=3),
    SinogramLayout(QUADRA, 100, 2, 8, max_ring_difference=5, span=5, merge_tof=15, tof_bins=15),  # an odd number of crystals
]


def middles(layout: SinogramLayout, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transaxial and axial LOR ends of flat bins."""
    view, radial, _, plane = np.unravel_index(bins, layout.shape)
    return layout.transaxial_ends(np.arange(layout.views))[view, radial], layout.plane_z_mm()[plane]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_comes_to_the_bin_whose_lor_joins_its_crystals(layout):
    random = np.random.default_rng(0)
    scanner = layout.scanner
    events = np.zeros(20_000, EVENT)
    events["crystal1"], events["crystal2"] = random.integers(0, scanner.crystals_per_ring, (2, len(events)))
    events["ring1"], events["ring2"] = random.integers(0, scanner.rings, (2, len(events)))
    # 50 finest bins towards end 2: its LOR end lies on the side of crystal 2, whatever order the bin has.
    events["tof_bin"] = 51 + 50
    bins = PairBins.of(layout).of_events(events, 103, scanner.tof_bin_ps or 0.0)
    found = bins >= 0
    assert found.sum() > 1000
    ends, z = middles(layout, bins[found])
    place = np.stack([events["crystal1"], events["crystal2"]], axis=1)[found]
    xy = scanner.crystal_xy_mm(place + 0.5)
    rings = np.stack([events["ring1"], events["ring2"]], axis=1)[found]
    own_z = scanner.ring_z_mm(rings)
    straight = np.hypot(*(ends[:, :2] - xy[:, 0]).T) < np.hypot(*(ends[:, 2:] - xy[:, 0]).T)
    for turned, (a, b) in ((False, (0, 1)), (True, (1, 0))):
        of = straight != turned
        # Within half a merged crystal and half a mashed view, or a merged ring and half a span.
        reach = scanner.radius_mm * 2 * np.pi / layout.crystals * (0.5 + (layout.mash - 1) / 2 + 0.01)
        assert np.hypot(*(ends[of, :2] - xy[of, a]).T).max() <= reach
        assert np.hypot(*(ends[of, 2:] - xy[of, b]).T).max() <= reach
        axial = (layout.merge_axial - 1) / 2 * scanner.ring_spacing_mm + (layout.span - 1) / 4 * layout.ring_pitch_mm + 0.01
        assert np.abs(z[of, 0] - own_z[of, a]).max() <= axial
        assert np.abs(z[of, 1] - own_z[of, b]).max() <= axial
    if layout.is_tof:
        tof = np.unravel_index(bins[found], layout.shape)[2] - (layout.tof_bins - 1) // 2
        assert np.array_equal(tof, np.where(straight, 3, -3))


def test_every_bin_is_reached_by_its_pair():
    layout = LAYOUTS[0]
    events = np.zeros((10, layout.radials, layout.planes), EVENT)
    rings = np.empty((layout.planes, 2), int)
    for seg in layout.segments():
        for p in range(seg.planes):
            total = seg.first_sum + p * seg.step
            rings[seg.start + p] = (total - seg.lowest) // 2, (total + seg.lowest) // 2
    for k, view in enumerate(range(0, 250, 25)):
        first, second = layout.crystal_pairs(view)
        events[k]["crystal1"], events[k]["crystal2"] = first[0][:, None], second[0][:, None]
    events["ring1"], events["ring2"] = rings[:, 0], rings[:, 1]
    bins = PairBins.of(layout).of_events(events.reshape(-1)).reshape(events.shape)
    assert np.array_equal(bins[3], 75 * layout.radials * layout.planes + np.arange(bins[3].size).reshape(bins[3].shape))


def test_ends_in_the_other_order_are_the_same_bin():
    pairs = PairBins.of(LAYOUTS[3])
    events = np.zeros(1000, EVENT)
    random = np.random.default_rng(1)
    events["crystal1"], events["crystal2"] = random.integers(0, 300, 1000), random.integers(350, 500, 1000)
    events["ring1"], events["ring2"] = random.integers(0, 40, (2, 1000))
    events["tof_bin"] = random.integers(0, 201, 1000)
    turned = events.copy()
    for a, b in (("crystal1", "crystal2"), ("ring1", "ring2")):
        turned[a], turned[b] = events[b], events[a]
    turned["tof_bin"] = 200 - events["tof_bin"]
    assert np.array_equal(pairs.of_events(events, 201, QUADRA.tof_bin_ps), pairs.of_events(turned, 201, QUADRA.tof_bin_ps))


@pytest.mark.parametrize(("merge", "bins", "fits"), [(14, 101, False), (14, 100, True), (15, 101, True), (15, 100, False)])
def test_tof_bins_whose_edges_do_not_fall_together_are_refused(merge, bins, fits):
    pairs = PairBins.of(SinogramLayout(QUADRA, 100, 2, 8, max_ring_difference=5, merge_tof=merge, tof_bins=15))
    events = np.zeros(1, EVENT)
    if fits:
        pairs.of_events(events, bins, QUADRA.tof_bin_ps)
        return
    with pytest.raises(UsageError, match="fall together"):
        pairs.of_events(events, bins, QUADRA.tof_bin_ps)
