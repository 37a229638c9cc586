"""Sinograms read as events."""

from dataclasses import replace

import numpy as np
import pytest
from listmode_samples import all_events, sample_events

from data_recipes.errors import DataError, UsageError
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata import sinogram
from petsim.rawdata.formats import open_listmode
from petsim.rawdata.interfile import Facts
from petsim.rawdata.interfile_sinogram import write_sinogram
from petsim.rawdata.ladder_files import convert_file, thin_file

MMR, VISION = load_scanner("biograph_mmr"), load_scanner("biograph_vision_600")
FACTS = Facts(duration_s=10.0, isotope="F-18", position="HFS")


def vendor(events, scanner, crystals):
    """The same coincidences in the numbers of STIR's file: crystals turned on, rings from the other end."""
    out = events.copy()
    for end in "12":
        out[f"crystal{end}"] = (events[f"crystal{end}"].astype(int) + crystals) % scanner.crystals_per_ring
        out[f"ring{end}"] = scanner.rings - 1 - events[f"ring{end}"]
    return out


def written(path, layout, events, facts=FACTS, tof_bins=1):
    """A `.hs` file of events in the vendor's numbers; returns which of them have a bin."""
    bins = PairBins.of(layout).of_events(events, tof_bins, layout.scanner.tof_bin_ps or 0.0)
    counts = np.bincount(bins[bins >= 0], minlength=np.prod(layout.shape)).astype(np.uint16).reshape(layout.shape)
    write_sinogram(path, counts, layout, facts)
    return bins >= 0


def ordered(events, tof_bins=1):
    """Events as sorted rows, the lower crystal first."""
    rows = np.stack([events[n].astype(int) for n in ("crystal1", "ring1", "crystal2", "ring2", "tof_bin")], axis=1)
    turn = rows[:, 0] > rows[:, 2]
    rows[turn] = rows[turn][:, [2, 3, 0, 1, 4]]
    rows[turn, 4] = tof_bins - 1 - rows[turn, 4]
    return rows[np.lexsort(rows.T)]


def test_events_of_the_mmr_come_back(tmp_path):
    """Its virtual crystal is the first of a block, ours the last; its rings start at the head."""
    layout = SinogramLayout(MMR, 344, max_ring_difference=2)
    events = sample_events(MMR, 5000)
    inside = written(tmp_path / "a.hs", layout, vendor(events, MMR, 1), replace(FACTS, view_offset_deg=0.0))
    source = open_listmode(tmp_path / "a.hs")
    events["tof_bin"] = 0
    assert source.warnings == () and source.header.duration_s == 10.0
    assert np.array_equal(ordered(all_events(source)), ordered(events[inside]))


def test_a_file_in_our_own_numbers_is_not_turned(tmp_path):
    layout = SinogramLayout(MMR, 344, max_ring_difference=1)
    assert sinogram.crystal_shift(layout, 360 / 504) == (0, pytest.approx(0.0, abs=1e-3))


def test_tof_bins_keep_their_side(tmp_path):
    """Where the file's crystal 0 lies half a ring on, ends change places with their TOF bins."""
    layout = SinogramLayout(VISION, 60, max_ring_difference=1, merge_tof=1, tof_bins=33)
    events = sample_events(VISION, 40_000, tof_bins=33)
    step = 360 / VISION.crystals_per_ring
    block = VISION.transaxial_block
    turned = -20 * block  # of 38 blocks
    offset = -90 + np.degrees(VISION.view_offset_rad) + step * (0.5 - turned)
    inside = written(tmp_path / "a.hs", layout, vendor(events, VISION, turned), replace(FACTS, view_offset_deg=offset), 33)
    source = open_listmode(tmp_path / "a.hs")
    assert sinogram.crystal_shift(layout, offset)[0] == -turned % VISION.crystals_per_ring
    assert inside.sum() > 300
    assert np.array_equal(ordered(all_events(source), 33), ordered(events[inside], 33))


def test_counts_of_a_spanned_bin_go_to_its_real_pairs(tmp_path):
    layout = SinogramLayout(MMR, 100, span=11, max_ring_difference=60, mash=2)
    events = sample_events(MMR, 20_000)
    at = PairBins.of(layout)
    inside = written(tmp_path / "a.hs", layout, vendor(events, MMR, 1), replace(FACTS, view_offset_deg=0.0))
    got = all_events(open_listmode(tmp_path / "a.hs"))
    assert len(got) == inside.sum()
    assert MMR.transaxial_is_real()[got["crystal1"]].all() and MMR.transaxial_is_real()[got["crystal2"]].all()
    again = np.bincount(at.of_events(vendor(got, MMR, 1)), minlength=np.prod(layout.shape))
    before = np.bincount(at.of_events(vendor(events[inside], MMR, 1)), minlength=np.prod(layout.shape))
    assert np.array_equal(again, before)


def test_what_is_left_of_the_angle_is_told(tmp_path):
    layout = SinogramLayout(VISION, 60, max_ring_difference=0)
    written(tmp_path / "a.hs", layout, sample_events(VISION, 100), replace(FACTS, view_offset_deg=3.0))
    assert "turned by" in open_listmode(tmp_path / "a.hs").warnings[0]


def test_sinograms_in_and_out(tmp_path):
    layout = SinogramLayout(MMR, 344, max_ring_difference=2)
    inside = written(tmp_path / "a.hs", layout, vendor(sample_events(MMR, 5000), MMR, 1))
    assert convert_file(str(tmp_path / "a.hs"), str(tmp_path / "b.lm.h5"))["prompts"] == inside.sum()
    low = thin_file(str(tmp_path / "a.hs"), str(tmp_path / "low"), (4.0,), "thin", 0)
    assert low["warnings"] == [] and sorted(p.name for p in (tmp_path / "low").iterdir()) == ["a_drf4.hs", "a_drf4.s"]
    with pytest.raises(UsageError, match="--mode dose"):
        thin_file(str(tmp_path / "a.hs"), str(tmp_path / "x"), (4.0,), "dose", 0)
    with pytest.raises(UsageError, match="not written as a sinogram"):
        convert_file(str(tmp_path / "b.lm.h5"), str(tmp_path / "c.hs"))


def test_a_sinogram_without_duration(tmp_path):
    layout = SinogramLayout(MMR, 60, max_ring_difference=0)
    written(tmp_path / "a.hs", layout, sample_events(MMR, 100), replace(FACTS, duration_s=None))
    with pytest.raises(DataError, match="image duration"):
        open_listmode(tmp_path / "a.hs")
