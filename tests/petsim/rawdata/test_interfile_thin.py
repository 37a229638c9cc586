"""Dose ladders of sinogram files: nested, exactly binomial, and the same however the file is stored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from petsim.dose import DoseLadder
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata.events import Dose
from petsim.rawdata.interfile import Facts
from petsim.rawdata.interfile_sinogram import read_sinogram, write_sinogram
from petsim.rawdata.thin_sinogram import thin_sinogram
from tests.petsim.rawdata.test_interfile_sinogram import write_siemens

SMALL = load_scanner(str(Path(__file__).parents[2] / "small_scanner.toml"))
LAYOUT = SinogramLayout(SMALL, 12, mash=2, span=3, max_ring_difference=4, merge_tof=30, tof_bins=5)
FACTS = Facts(0.0, 60.0, "F-18", position="HFS", view_offset_deg=3.0)


def write(folder, counts, facts=FACTS):
    write_sinogram(folder / "scan.hs", counts, LAYOUT, facts)
    return folder / "scan.hs"


def counts_of(dtype=np.uint16, mean=4.0):
    return np.random.default_rng(5).poisson(mean, LAYOUT.shape).astype(dtype)


def read(path):
    return read_sinogram(path, SMALL).counts()


def thinned(path, drfs, folder, **more):
    return thin_sinogram(path, drfs, folder, 9, scanner=SMALL, **more)


def test_doses_are_nested_and_complements_exact(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 1)
    counts = counts_of(np.int16)
    result = thinned(write(tmp_path, counts), (20.0, 4.0, 1.0, 2.5), tmp_path / "out", complement=True)
    levels = {d: read(tmp_path / "out" / f"scan_drf{d}.hs") for d in ("2.5", "4", "20")}
    assert all(kept.dtype == np.int16 for kept in levels.values())
    assert (counts >= levels["2.5"]).all() and (levels["2.5"] >= levels["4"]).all() and (levels["4"] >= levels["20"]).all()
    for drf, kept in levels.items():
        assert np.array_equal(counts - kept, read(tmp_path / "out" / f"scan_drf{drf}_complement.hs"))
    assert result["prompts"] == {"1": counts.sum()} | {d: kept.sum() for d, kept in levels.items()}
    assert result["delayeds"] == {}
    files = [f"scan_drf{d}{c}" for d in ("2.5", "4", "20") for c in ("", "_complement")]
    assert result["files"] == [f"{f}.hs" for f in files]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{f}.{e}" for f in files for e in ("hs", "s"))


def test_headers_say_what_was_done(tmp_path):
    thinned(write(tmp_path, counts_of()), (4.0,), tmp_path, complement=True)
    for name, left_out in (("scan_drf4.hs", False), ("scan_drf4_complement.hs", True)):
        file = read_sinogram(tmp_path / name, SMALL)
        assert file.facts == replace(FACTS, dose=Dose(4.0, "thin", 9, left_out)) and file.layout == LAYOUT


def test_counts_are_those_of_the_dose_ladder_over_our_bins(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 3 * 12 * 5 * LAYOUT.planes)
    counts = counts_of()
    thinned(write(tmp_path, counts), (3.0, 10.0), tmp_path)
    kept = DoseLadder((1, 3.0, 10.0), 9, "sinogram", 0).thin(counts)
    assert np.array_equal(read(tmp_path / "scan_drf3.hs"), kept[1])
    assert np.array_equal(read(tmp_path / "scan_drf10.hs"), kept[2])


def test_the_order_of_storage_does_not_matter(tmp_path):
    """The same counts in Siemens' order of segments, timing positions, planes and views."""
    counts = counts_of()
    (tmp_path / "a").mkdir()
    write_siemens(tmp_path, LAYOUT, counts, counts, {"scan data type description [2]": "others"})
    thinned(tmp_path / "scan.s.hdr", (4.0,), tmp_path)
    thinned(write(tmp_path / "a", counts), (4.0,), tmp_path / "a")
    assert np.array_equal(read(tmp_path / "scan_drf4.hs"), read(tmp_path / "a" / "scan_drf4.hs"))


def test_delayeds_are_thinned_by_numbers_of_their_own(tmp_path):
    counts = counts_of()
    write_siemens(tmp_path, LAYOUT, counts, counts)
    result = thinned(tmp_path / "scan.s.hdr", (4.0,), tmp_path)
    prompts, delayeds = read(tmp_path / "scan_drf4.hs"), read(tmp_path / "scan_drf4_delayeds.hs")
    assert result["delayeds"] == {"1": counts.sum(), "4": delayeds.sum()} and result["prompts"]["4"] == prompts.sum()
    # Independent given the counts: differences have the variance of two binomials.
    spread = (prompts.astype(float) - delayeds).std() / np.sqrt(2 * counts.mean() * 0.25 * 0.75)
    assert abs(spread - 1) < 0.02


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint32])
def test_kept_counts_are_binomial(tmp_path, dtype):
    counts = counts_of(dtype)
    thinned(write(tmp_path, counts), (4.0,), tmp_path)
    kept = read(tmp_path / "scan_drf4.hs")
    assert kept.dtype == dtype
    total = counts.sum(dtype=float)
    assert abs(kept.sum(dtype=float) - total / 4) < 5 * np.sqrt(total * 0.25 * 0.75)
    of_four = kept[counts == 4]
    shares = np.bincount(of_four.astype(int), minlength=5) / of_four.size
    expected = np.array([81, 108, 54, 12, 1]) / 256
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / of_four.size))


def test_counts_above_16_bits(tmp_path):
    counts = counts_of(np.uint32)
    counts[3, 4, 2, 50] = 200_000
    thinned(write(tmp_path, counts), (4.0,), tmp_path)
    kept = read(tmp_path / "scan_drf4.hs")
    assert abs(kept[3, 4, 2, 50] - 50_000) < 5 * np.sqrt(200_000 * 0.25 * 0.75)


@pytest.mark.parametrize("change, facts, message", [
    (0.25, FACTS, "scan.hs: holds .* not a whole number; such pre-corrected data cannot be thinned: binomial thinn"),
    (-9.0, FACTS, "scan.hs: holds .* negative; such pre-corrected data cannot be thinned"),
    (1e10, FACTS, "scan.hs: a bin holds 1e[+]10 counts, more than 32 bits"),
    (0.0, replace(FACTS, corrections=("attenuation",)), r"scan.hs: pre-corrected data cannot be thinned \(applied: atten"),
    (0.0, replace(FACTS, dose=Dose(4.0, "thin", 1)), "scan.hs: is at DRF 4 already; thin the full dose"),
])  # fmt: skip
def test_what_cannot_be_thinned(tmp_path, change, facts, message):
    counts = counts_of(np.float32)
    counts[0, 0, 0, 0] += change
    path = write(tmp_path, counts, facts)
    with pytest.raises(DataError, match=message):
        thinned(path, (4.0,), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_factors(tmp_path):
    with pytest.raises(UsageError, match=r"--drf: 0\.5 is not a dose reduction factor"):
        thinned(write(tmp_path, counts_of()), (0.5,), tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path, counts_of())
    kept = DoseLadder.thin

    def full(self, counts, first_bin=0, out=None):
        if first_bin:
            raise OSError(28, "No space left on device")
        return kept(self, counts, first_bin, out)

    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 1)
    monkeypatch.setattr(DoseLadder, "thin", full)
    with pytest.raises(DataError, match=r"cannot write scan_drf4\.s: the disk is full"):
        thinned(path, (4.0,), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
