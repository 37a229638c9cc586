"""Every crystal pair lies in one bin; planes are counted as vendors count them."""

import numpy as np
import pytest

from data_recipes.errors import UsageError
from petsim.geometry.scanner import load_scanner, scanner_names
from petsim.geometry.sinogram import SinogramLayout, radials_for, tof_bins_for


@pytest.mark.parametrize(("merge", "radials"), [(1, 503), (2, 251), (8, 30), (3, 167)])
def test_every_crystal_pair_lies_in_exactly_one_bin(merge, radials):
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=radials, merge_transaxial=merge)
    seen = set()
    for view in range(layout.views):
        first, second = layout.crystal_pairs(view)
        for a, b in zip(first[0], second[0], strict=True):
            assert a != b
            seen.add((min(a, b), max(a, b)))
    assert len(seen) == layout.views * layout.radials


def test_mmr_span_1_has_the_vendors_counts():
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=344, span=1, max_ring_difference=60)
    assert layout.shape == (252, 344, 1, 4084)


def test_mmr_span_11_has_the_vendors_segments():
    """The segment table of the vendor's header: 127, 115, 115, 93, 93, 71, 71, 49, 49, 27, 27."""
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=344, span=11, max_ring_difference=60)
    assert [s.planes for s in layout.segments()] == [127, 115, 115, 93, 93, 71, 71, 49, 49, 27, 27]


@pytest.mark.parametrize(("span", "farthest"), [(1, 18), (3, 16), (3, 17), (3, 18), (7, 17), (7, 14)])
def test_every_ring_pair_lies_in_exactly_one_plane(span, farthest):
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=10, merge_axial=3, span=span,
                            max_ring_difference=farthest)  # fmt: skip
    planes = {}
    for seg in layout.segments():
        for r1 in range(layout.rings):
            for r2 in range(layout.rings):
                if seg.lowest <= r2 - r1 <= seg.highest:
                    p = (r1 + r2 - seg.first_sum) / seg.step
                    assert p == int(p) and 0 <= p < seg.planes
                    assert (r1, r2) not in planes
                    planes[r1, r2] = seg.start + int(p)
    expected = [(a, b) for a in range(layout.rings) for b in range(layout.rings)
                if abs(b - a) <= layout.max_ring_difference]  # fmt: skip
    assert set(planes) == set(expected)
    assert set(planes.values()) == set(range(layout.planes))
    for seg in layout.segments():
        assert seg.ring_difference == (seg.lowest + seg.highest) / 2


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_views_are_parallel_and_turn_by_a_constant_angle(merge):
    layout = SinogramLayout(load_scanner("biograph_vision_600"), radials=60, merge_transaxial=merge)
    ends = layout.transaxial_ends(np.arange(layout.views))
    direction = np.arctan2(ends[..., 3] - ends[..., 1], ends[..., 2] - ends[..., 0])
    angle = np.unwrap(direction[:, 30])
    step = np.diff(angle)
    np.testing.assert_allclose(np.abs(step).mean(), np.pi / layout.views, rtol=1e-6)
    # Interleaved views hold two angles half a crystal apart; no LOR is further from its view's mean than that.
    spread = np.abs(np.angle(np.exp(1j * (direction - direction[:, 30:31]))))
    assert spread.max() <= np.pi / layout.crystals + 1e-9


def test_radial_positions_cover_the_field_of_view():
    scanner = load_scanner("biograph_vision_quadra")
    for merge in (1, 2, 3):
        layout = SinogramLayout(scanner, radials=radials_for(scanner, merge, 480.0), merge_transaxial=merge)
        x1, y1, x2, y2 = np.moveaxis(layout.transaxial_ends(np.arange(4)), -1, 0)
        s = (x1 * y2 - x2 * y1) / np.hypot(x2 - x1, y2 - y1)
        assert np.all(s.min(axis=1) <= -240) and np.all(s.max(axis=1) >= 240)
        assert np.abs(np.diff(np.sort(s, axis=1), axis=1)).max() <= layout.radial_pitch_mm * 1.001


def test_tof_bins_cover_the_field_of_view():
    scanner = load_scanner("biograph_vision_quadra")
    bins = tof_bins_for(scanner, 15, 480.0, 3.0)
    layout = SinogramLayout(scanner, radials=100, merge_tof=15, tof_bins=bins)
    assert bins % 2 == 1
    assert bins * layout.tof_bin_mm / 2 >= 240 + 3 * layout.tof_sigma_mm
    assert tof_bins_for(load_scanner("biograph_mmr"), 15, 480.0, 3.0) == 1


def test_virtual_crystals_of_the_quadra():
    scanner = load_scanner("biograph_vision_quadra")
    assert scanner.transaxial_is_real().sum() == 760
    assert scanner.ring_is_real().sum() == 320


@pytest.mark.parametrize("wrong", [{"span": 2}, {"span": 3, "max_ring_difference": 64}, {"merge_transaxial": 5},
                                   {"mash": 5}, {"radials": 0}, {"merge_tof": 1}])  # fmt: skip
def test_wrong_layouts_are_refused(wrong):
    with pytest.raises(UsageError):
        SinogramLayout(load_scanner("biograph_mmr"), **{"radials": 344, **wrong})


def test_scanner_files_cite_every_field():
    for name in scanner_names():
        scanner = load_scanner(name)
        assert set(scanner.sources) >= {"inner_radius_mm", "sensitivity_cps_per_kbq", "protocol_duration_s"}


def test_unknown_scanner_names_the_nearest():
    with pytest.raises(UsageError, match="biograph_vision_quadra"):
        load_scanner("vision_quadra")
