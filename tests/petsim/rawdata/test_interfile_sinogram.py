"""Sinograms in Interfile: bins where STIR has them, every field back, one line for every mistake."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.sinogram import SinogramProjector
from petsim.rawdata.events import Dose
from petsim.rawdata.interfile import Facts
from petsim.rawdata.interfile_sinogram import integer_counts, read_sinogram, view_blocks, write_sinogram

SMALL = load_scanner(str(Path(__file__).parents[2] / "small_scanner.toml"))
FACTS = Facts(
    12.5, 600.0, "Ga-68", 185.0, (435.0, 585.0), 1.25, "FFP", (3.0, -1.5), ("randoms", "decay"), -5.021,
    Dose(4.5, "thin", 7, True),
)  # fmt: skip
LAYOUT = SinogramLayout(SMALL, 8, mash=4, span=3, max_ring_difference=4, merge_tof=30, tof_bins=5)


def counts_of(layout, dtype=np.uint16, seed=1):
    return np.random.default_rng(seed).poisson(3.0, layout.shape).astype(dtype)


def write_raw(path, sizes, numbers, ring_differences, more=(), drop=(), scanner=SMALL):
    """A header as STIR writes it, by hand: `sizes` by axis, fastest first; `numbers` in the order of the file."""
    values = {
        "name of data file": "raw.s", "originating system": "unknown", "!type of data": "PET", "!PET data type": "Emission",
        "imagedata byte order": "LITTLEENDIAN", "applied corrections": "{None}", "!number format": "unsigned integer",
        "!number of bytes per pixel": "4", "number of dimensions": str(len(sizes)),
    }  # fmt: skip
    for k, (axis, size) in enumerate(sizes.items(), 1):
        values |= {f"matrix axis label [{k}]": axis, f"!matrix size [{k}]": str(size).replace("[", "{").replace("]", "}")}
    low, high = zip(*ring_differences, strict=True)
    values |= {
        "minimum ring difference per segment": "{" + ",".join(map(str, low)) + "}",
        "maximum ring difference per segment": "{" + ",".join(map(str, high)) + "}",
        "Number of rings": str(scanner.rings), "Number of detectors per ring": str(scanner.crystals_per_ring),
        "Inner ring diameter (cm)": str(scanner.inner_radius_mm / 5),
        "Average depth of interaction (cm)": str(scanner.interaction_depth_mm / 10),
        "Distance between rings (cm)": str(scanner.ring_spacing_mm / 10),
    } | dict(more)  # fmt: skip
    lines = [f"{key} := {value}" for key, value in values.items() if key not in drop]
    path.write_text("\n".join(["!INTERFILE  :=", *lines, "!END OF INTERFILE :=", ""]))
    (path.parent / "raw.s").write_bytes(np.ascontiguousarray(numbers).tobytes())


def code(crystal1, ring1, crystal2, ring2, timing):
    """A number that tells which crystals and which time difference a bin has."""
    return ((crystal1 * 16 + ring1) * 168 + crystal2) * 16 * 5 + ring2 * 5 + timing + 2


def stir_numbers(segments, timings, by_view, tangentials=8):
    """Span 1 data of the small scanner as STIR numbers and stores them, by its formulas."""
    out = []
    for timing in timings:
        for difference in segments:
            block = np.empty((84, 16 - abs(difference), tangentials), np.uint32)
            for view in range(84):
                for axial in range(16 - abs(difference)):
                    ring_sum = abs(difference) + 2 * axial
                    for k in range(tangentials):
                        t = k - tangentials // 2
                        det1, det2 = (view + (t >> 1)) % 168, (view - ((t + 1) >> 1) + 84) % 168
                        rings = (ring_sum - difference) // 2, (ring_sum + difference) // 2
                        block[view, axial, k] = code(det1, rings[0], det2, rings[1], timing)
            out.append((block if by_view else block.transpose(1, 0, 2)).ravel())
    return np.concatenate(out)


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize("segments, timings", [((-1, 0, 1), (-2, -1, 0, 1, 2)), ((0, -1, 1), (0, 1, -1, 2, -2))])
def test_bins_are_those_of_the_same_crystals_whatever_the_order_of_the_file(tmp_path, by_view, segments, timings):
    view, axial = ("view", 84), ("axial coordinate", [16 - abs(d) for d in segments])
    sizes = dict([("tangential coordinate", 8), *((axial, view) if by_view else (view, axial)), ("segment", 3)])
    more = {"TOF mashing factor": 30, "TOF bin order": "{" + ",".join(map(str, timings)) + "}"}
    write_raw(tmp_path / "a.hs", sizes | {"timing positions": 5}, stir_numbers(segments, timings, by_view),
              [(d, d) for d in segments], more)  # fmt: skip
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    assert file.layout == SinogramLayout(SMALL, 8, max_ring_difference=1, merge_tof=30, tof_bins=5)
    expected = np.empty(file.layout.shape, np.uint32)
    for v in range(84):
        first, second = (c[0] for c in file.layout.crystal_pairs(v))
        for segment in file.layout.segments():
            for p in range(segment.planes):
                ring_sum = segment.first_sum + p * segment.step
                rings = (ring_sum - segment.lowest) // 2, (ring_sum + segment.lowest) // 2
                for tof in range(5):
                    # Nearer to the second crystal, which STIR counts down.
                    expected[v, :, tof, segment.start + p] = code(first, rings[0], second, rings[1], 2 - tof)
    assert np.array_equal(file.counts(), expected)
    assert np.array_equal(file.read(np.array([70, 3])), expected[[70, 3]])


def test_tof_of_a_point_lies_where_our_projector_has_it(tmp_path):
    """Arrival times decide: a positive timing position of STIR's means that detector 2 was hit later."""
    layout = SinogramLayout(SMALL, 40, merge_tof=30, tof_bins=5)
    point = np.array([110.0, 60.0])
    ends = layout.transaxial_ends(np.arange(layout.views)).reshape(84, 40, 2, 2)
    paths = np.linalg.norm(ends - point, axis=-1)
    delay_ps = (paths[..., 1] - paths[..., 0]) / 0.299792458
    timing = np.rint(delay_ps / 900).astype(int)
    numbers = np.zeros((5, 84, 1, 40), np.uint32)
    for k in range(-2, 3):
        numbers[k + 2, :, 0, :] = timing == k
    # One ring's planes are enough: all 16 get the same.
    write_raw(
        tmp_path / "a.hs",
        {"tangential coordinate": 40, "axial coordinate": [16], "view": 84, "segment": 1, "timing positions": 5},
        np.repeat(numbers, 16, axis=2), [(0, 0)], {"TOF mashing factor": 30},
    )  # fmt: skip
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    assert file.layout == layout
    grid = Grid.centered((1, 1, 1), (4.0, 4.0, 8.0), (*point, 4.0))
    projector = SinogramProjector(layout, grid, center_mm=(0.0, 0.0, 0.0))
    hit = projector.forward(np.ones(grid.shape, np.float32))[..., 8]
    inside = hit.sum(axis=2) > 1.0
    assert inside.sum() > 50 and np.unique(timing[inside]).size > 2
    ours, theirs = file.counts()[..., 8].argmax(axis=2)[inside], hit.argmax(axis=2)[inside]
    # Bins at whose border the point lies can go either way.
    border = np.abs(delay_ps / 900 - np.floor(delay_ps / 900) - 0.5)[inside] < 0.05
    assert np.array_equal(ours[~border], theirs[~border])


@pytest.mark.parametrize("layout", [
    LAYOUT,
    SinogramLayout(SMALL, 9, max_ring_difference=2),
    SinogramLayout(SMALL, 7, span=5, max_ring_difference=11),
    SinogramLayout(SMALL, 8, merge_transaxial=2, merge_axial=4, span=3, max_ring_difference=3),
    SinogramLayout(SMALL, 8, merge_tof=30, tof_bins=1),
    SinogramLayout(load_scanner("biograph_mmr"), 4, mash=63, span=11, max_ring_difference=60),
    SinogramLayout(load_scanner("discovery_mi_4ring"), 3, mash=68, max_ring_difference=1, even_rings=True),
    SinogramLayout(load_scanner("uexplorer"), 3, mash=140, merge_axial=4, max_ring_difference=1, even_rings=True),
], ids=lambda layout: f"{layout.scanner.name}-{layout.merge_axial}-{layout.radials}-{layout.span}")  # fmt: skip
def test_everything_comes_back(tmp_path, layout):
    counts = counts_of(layout)
    write_sinogram(tmp_path / "a.hs", counts, layout, FACTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hs", "a.s"]
    file = read_sinogram(tmp_path / "a.hs", SMALL if layout.scanner is SMALL else None)
    assert (file.layout, file.facts, file.dtype) == (layout, FACTS, counts.dtype)
    assert np.array_equal(file.counts(), counts)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_number_formats_and_byte_orders(tmp_path, dtype, order):
    numbers = np.arange(84 * 16 * 4).astype(f"{order}{dtype}")
    more = {
        "!number format": {"i": "signed integer", "u": "unsigned integer", "f": "float"}[dtype[0]],
        "!number of bytes per pixel": dtype[1],
        "imagedata byte order": "LITTLEENDIAN" if order == "<" else "BIGENDIAN",
    }
    sizes = {"tangential coordinate": 4, "axial coordinate": [16], "view": 84, "segment": 1}
    write_raw(tmp_path / "a.hs", sizes, numbers, [(0, 0)], more)
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    assert file.dtype == np.dtype(dtype)
    assert np.array_equal(file.counts()[:, :, 0, :].transpose(0, 2, 1).ravel(), numbers)
    write_sinogram(tmp_path / "b.hs", file.counts(), file.layout, file.facts)
    assert np.array_equal(read_sinogram(tmp_path / "b.hs", SMALL).counts(), file.counts())


def test_data_files_in_a_folder_or_from_another_machine(tmp_path):
    (tmp_path / "data").mkdir()
    counts = counts_of(LAYOUT)
    write_sinogram(tmp_path / "a.hs", counts, LAYOUT, Facts())
    text = (tmp_path / "a.hs").read_text()
    (tmp_path / "a.hs").write_text(text.replace(":= a.s\n", ":= C:\\scans\\a.s\n"))
    assert np.array_equal(read_sinogram(tmp_path / "a.hs", SMALL).counts(), counts)
    (tmp_path / "a.s").rename(tmp_path / "data" / "a.s")
    (tmp_path / "a.hs").write_text(text.replace(":= a.s\n", ":= data/a.s\n"))
    assert np.array_equal(read_sinogram(tmp_path / "a.hs", SMALL).counts(), counts)


def test_older_keys_and_swapped_ring_differences(tmp_path):
    numbers = np.arange(3 * 84 * 46 * 4, dtype=np.uint32)
    more = {"TOF mashing factor": 60, "Size of timing bin (ps)": 15}
    for name, segments in (("a.hs", [(-3, -2), (-1, 1), (2, 3)]), ("b.hs", [(-2, -3), (1, -1), (2, 3)])):
        planes = {"axial coordinate": [27, 31, 27], "timing positions": 1}
        write_raw(tmp_path / name, SIZES | planes, numbers, segments, more)
    files = [read_sinogram(tmp_path / name, SMALL) for name in ("a.hs", "b.hs")]
    assert files[0].layout == SinogramLayout(SMALL, 4, span=3, max_ring_difference=3, merge_tof=30)
    assert files[1].layout == files[0].layout and np.array_equal(files[0].counts(), files[1].counts())


def test_scale_and_offset(tmp_path):
    numbers = np.arange(84 * 16 * 4, dtype="<u2")
    sizes = {"tangential coordinate": 4, "axial coordinate": [16], "view": 84, "segment": 1}
    more = {"!number of bytes per pixel": 2, "image scaling factor[1]": "0.5", "data offset in bytes[1]": 7}
    write_raw(
        tmp_path / "a.hs", sizes, np.concatenate([np.zeros(7, "u1"), numbers.view("u1"), np.zeros(3, "u1")]), [(0, 0)], more
    )
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    assert file.dtype == np.float32
    assert np.array_equal(file.counts()[:, :, 0, :].transpose(0, 2, 1).ravel(), numbers / 2)


@pytest.mark.parametrize("system, rings, crystals, name", [
    ("SIEMENS_mMR", 64, 504, "biograph_mmr"), ("2008", 64, 504, "biograph_mmr"),
    ("Discovery MI", 45, 544, "discovery_mi_5ring"), ("umi 550", 84, 840, "umi_550"),
    ("1232", 323, 798, "biograph_vision_quadra"),
])  # fmt: skip
def test_scanners_are_known_by_name_and_geometry(tmp_path, system, rings, crystals, name):
    scanner = load_scanner(name)
    sizes = {"tangential coordinate": 1, "axial coordinate": [rings], "view": 1, "segment": 1}
    write_raw(tmp_path / "a.hs", sizes, np.zeros(rings, np.uint32), [(0, 0)], {"originating system": system},
              ["Distance between rings (cm)"], scanner)  # fmt: skip
    assert read_sinogram(tmp_path / "a.hs").layout.scanner == scanner
    assert scanner.crystals_per_ring == crystals


def test_scanners_may_differ_a_little(tmp_path):
    """STIR's entry of the Discovery MI, whose rings lie evenly."""
    scanner = load_scanner("discovery_mi_4ring")
    more = {
        "originating system": "GE Discovery MI 4 rings", "Inner ring diameter (cm)": 74.22,
        "Average depth of interaction (cm)": 0.94, "Distance between rings (cm)": 0.552296,
    }  # fmt: skip
    sizes = {"tangential coordinate": 1, "axial coordinate": [36], "view": 1, "segment": 1}
    write_raw(tmp_path / "a.hs", sizes, np.zeros(36, np.uint32), [(0, 0)], more, scanner=scanner)
    assert read_sinogram(tmp_path / "a.hs").layout == SinogramLayout(scanner, 1, mash=272, even_rings=True)


def test_flat_blocks_of_a_polygonal_scanner(tmp_path):
    scanner = load_scanner("discovery_mi_4ring")
    geometry = "Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)"
    more = {
        geometry: "BlocksOnCylindrical", "Distance between crystals in axial direction (cm)": 0.5316,
        "Distance between crystals in transaxial direction (cm)": 0.4031,
        "Distance between blocks in axial direction (cm)": 5.064,
    }  # fmt: skip
    sizes = {"tangential coordinate": 1, "axial coordinate": [36], "view": 1, "segment": 1}
    zeros = np.zeros(36, np.uint32)
    write_raw(tmp_path / "a.hs", sizes, zeros, [(0, 0)], more, scanner=scanner)
    assert read_sinogram(tmp_path / "a.hs", scanner).layout == SinogramLayout(scanner, 1, mash=272)
    wrong = more | {"Distance between crystals in transaxial direction (cm)": 0.45}
    write_raw(tmp_path / "a.hs", sizes, zeros, [(0, 0)], wrong, scanner=scanner)
    with pytest.raises(
        DataError, match=r"crystals in transaxial direction are 4.5 mm apart in the header but 4.03125 mm in"
    ):
        read_sinogram(tmp_path / "a.hs", scanner)
    write_raw(tmp_path / "a.hs", sizes, zeros, [(0, 0)], {geometry: "Generic"}, scanner=scanner)
    with pytest.raises(
        DataError, match="scanner geometry is 'generic' but discovery_mi_4ring has its crystals on flat blocks"
    ):
        read_sinogram(tmp_path / "a.hs", scanner)


def test_the_variant_that_accepts_the_data_is_taken(tmp_path):
    for variant, farthest in (("biograph_vision_quadra", 85), ("biograph_vision_quadra_322", 86)):
        layout = SinogramLayout(load_scanner(variant), 1, mash=399, span=2 * farthest + 1, max_ring_difference=farthest)
        write_sinogram(tmp_path / "a.hs", counts_of(layout), layout, Facts())
        text = (tmp_path / "a.hs").read_text()
        (tmp_path / "a.hs").write_text(text.replace(variant, "Siemens Quadra"))
        assert read_sinogram(tmp_path / "a.hs").layout == layout


SIZES = {"tangential coordinate": 4, "axial coordinate": [15, 16, 15], "view": 84, "segment": 3}
SEGMENTS = [(-1, -1), (0, 0), (1, 1)]
TOF = {"TOF mashing factor": 30}


@pytest.mark.parametrize("changes, message", [
    ({"more": {"name of data file": "/else/where/b.s"}}, "a.hs: its data file b.s is missing; put both into one folder"),
    ({"cut": 1}, "raw.s: holds 61823 bytes but a.hs describes 61824; the file was cut short"),
    ({"cut": 61824}, "raw.s: holds 0 bytes but a.hs describes"),
    ({"more": {"!number format": "bit"}}, "a.hs: number format 'bit' of 4 bytes is not read"),
    ({"more": {"!number of bytes per pixel": 3}}, "a.hs: number format 'unsigned integer' of 3 bytes is not read"),
    ({"drop": ["!number of bytes per pixel"]}, "a.hs: the header has no 'number of bytes per pixel'"),
    ({"more": {"imagedata byte order": "MIDDLE"}}, "a.hs: byte order 'middle' is not known"),
    ({"more": {"data offset in bytes[1]": -4}}, "a.hs: 'data offset in bytes' is -4"),
    ({"more": {"image scaling factor[1]": "{1,2,3}"}}, "a.hs: has several image scaling factors"),
    ({"more": {"number of time frames": 2}}, "a.hs: holds 2 time frames, only one is read"),
    ({"more": {"applied corrections": "{arc correction}"}}, "a.hs: its data are arc-corrected"),
    ({"drop": ["applied corrections"]}, "a.hs: has no 'applied corrections', which STIR takes for arc-corrected data"),
    ({"more": {"!PET data type": "Image"}}, "a.hs: 'PET data type' is 'image'; only sinograms of emission data"),
    ({"more": {"imaging modality": "NM"}}, "a.hs: these are no PET data"),
    ({"more": {"matrix axis label [3]": "segment", "matrix axis label [4]": "view"}}, "a.hs: its axes are tangential coord"),
    ({"more": {"!matrix size [3]": 80}}, "a.hs: 80 views do not divide half of the 168 detectors per ring"),
    ({"more": {"!matrix size [1]": 200}}, "a.hs: radials must be 1 to 167, got 200; write the sinogram so that it does"),
    ({"more": {"!matrix size [4]": 2}}, "a.hs: states 2 segments, 3 minimum and 3 maximum ring differences and 3 numbers"),
    ({"more": {"!matrix size [2]": "{15,16,14}"}}, "a.hs: the segment of ring differences 1 to 1 has 14 axial positions"),
    ({"drop": ["!matrix size [3]"]}, r"a.hs: the header has no 'matrix size \[3\]'"),
    ({"segments": [(-5, -4), (-3, -2), (-1, 1), (2, 3), (4, 5)],
      "more": {"!matrix size [4]": 5, "!matrix size [2]": "{23,27,31,27,23}"}},
     "a.hs: a segment sums ring differences -5 to -4, which span 3 up to ring difference 5 does not have"),
    ({"segments": [(-2, -1), (0, 1), (2, 3)]}, "a.hs: no segment has ring differences from -n to n"),
    ({"segments": [(-1, -1), (0, 0), (0, 0)], "more": {"!matrix size [2]": "{15,16,16}"}}, "a.hs: a segment sums ring diff"),
    ({"segments": [(1, 1), (0, 0), (1, 1)]}, "a.hs: holds 3 segments, span 1 up to ring difference 1 has 3; write each"),
    ({"more": {"Number of rings": 15}}, "a.hs: the header has 15 rings 8 mm apart but small_scanner 16, 8 mm apart"),
    ({"more": {"Number of detectors per ring": 504}}, "a.hs: the header has 504 detectors per ring but small_scanner 168"),
    ({"more": {"Inner ring diameter (cm)": 80}}, "a.hs: crystals of the header lie 407 mm from the axis but those of small"),
    ({"more": {"Average depth of interaction (cm)": 3}}, "a.hs: crystals of the header lie 440 mm from the axis but those"),
    ({"more": {"Distance between rings (cm)": 0.7}}, "a.hs: the header has 16 rings 7 mm apart but small_scanner"),
    ({"more": {"Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)": "BlocksOnCylindrical"}},
     "a.hs: the header's scanner geometry is 'blocksoncylindrical' but small_scanner has its crystals on a circle"),
    ({"more": {"number of detector layers": 2}}, "a.hs: the header has several layers"),
    ({"scanner": None}, "a.hs: its scanner is not known by 'originating system'; name it with --scanner"),
    ({"scanner": None, "more": {"originating system": "mCT"}}, "a.hs: the header has 16 rings 8 mm apart but biograph_m"),
    ({"timing": 7, "more": TOF}, "a.hs: holds 7 TOF bins, each 30 of the 150 of small_scanner; name another --scanner"),
    ({"timing": 4, "more": TOF}, "a.hs: has 4 TOF bins, only odd numbers are read"),
    ({"timing": 3, "more": TOF | {"Size of unmashed TOF time bins (ps)": 13.5}}, "a.hs: its TOF bins of 405 ps are no mul"),
    ({"timing": 3, "more": TOF | {"TOF bin order": "{0,1,2}"}}, "a.hs: 'TOF bin order' is 0, 1, 2; it must list -1 to 1"),
    ({"timing": 3, "more": TOF, "scanner": replace(SMALL, tof_bin_ps=None, tof_fwhm_ps=None, tof_bins=None)},
     "a.hs: holds 3 timing positions but small_scanner has no TOF"),
])  # fmt: skip
def test_one_line_for_what_cannot_be_read(tmp_path, changes, message):
    sizes = SIZES | ({"timing positions": changes["timing"]} if "timing" in changes else {})
    numbers = np.zeros(changes.get("timing", 1) * 84 * 46 * 4, np.uint32).view("u1")
    write_raw(tmp_path / "a.hs", sizes, numbers[: len(numbers) - changes.get("cut", 0)], changes.get("segments", SEGMENTS),
              changes.get("more", {}), changes.get("drop", ()))  # fmt: skip
    with pytest.raises(DataError, match=f"^{message}") as caught:
        read_sinogram(tmp_path / "a.hs", changes.get("scanner", SMALL))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_written_headers_say_what_stir_needs(tmp_path):
    """Keys and orders that STIR's reader insists on, and nothing of ours in the place of its numbers."""
    write_sinogram(tmp_path / "a.hs", counts_of(LAYOUT, np.int16), LAYOUT, Facts())
    text = (tmp_path / "a.hs").read_text()
    assert text.startswith("!INTERFILE  :=\n!imaging modality := PT\nname of data file := a.s\n")
    keys = [line.split(" :=")[0] for line in text.splitlines()]
    for first, later in (("number of dimensions", "matrix axis label [5]"), ("!type of data", "!PET data type"),
                         ("!matrix size [4]", "minimum ring difference per segment")):  # fmt: skip
        assert keys.index(first) < keys.index(later)
    assert (
        "minimum ring difference per segment := {-4,-1,2}" in text
        and "maximum ring difference per segment := {-2,1,4}" in text
    )
    assert "!matrix size [2] := {27,31,27}" in text and "Maximum number of (unmashed) TOF time bins := 150" in text
    assert "applied corrections := {None}" in text and "!number format := signed integer" in text
    # Crystal 0 of the small scanner begins at the right, its center is half a crystal of 360 / 168 degrees on; STIR counts
    # from the top.
    assert f"View offset (degrees) := {180 / 168 - 90}" in text
    assert "Default bin size (cm)" in text and "originating system := small_scanner" in text
    mmr = SinogramLayout(load_scanner("biograph_mmr"), 1, mash=252)
    write_sinogram(tmp_path / "b.hs", counts_of(mmr), mmr, Facts())
    text = (tmp_path / "b.hs").read_text()
    assert "Default bin size (cm)" not in text and "originating system := Siemens mMR" in text


def test_data_are_written_by_timing_position_segment_view_and_ring(tmp_path):
    counts = counts_of(LAYOUT)
    write_sinogram(tmp_path / "a.hs", counts, LAYOUT, Facts())
    stored = np.fromfile(tmp_path / "a.s", "<u2")
    first = LAYOUT.segments()[2]
    assert (first.lowest, first.highest) == (-4, -2)
    block = stored[: 21 * first.planes * 8].reshape(21, first.planes, 8)
    assert np.array_equal(block, counts[:, :, 4, first.start : first.start + first.planes].transpose(0, 2, 1))


@pytest.mark.parametrize("counts, name, layout, message", [
    (np.zeros(LAYOUT.shape, np.complex64), "a.hs", LAYOUT, "a.hs: complex64 cannot be written"),
    (np.zeros(LAYOUT.shape, np.int64), "a.hs", LAYOUT, "a.hs: int64 cannot be written"),
    (np.zeros((1, 2, 3, 4), np.uint16), "a.hs", LAYOUT, r"a.hs: a sinogram of shape \(21, 8, 5, 85\) is needed, got \(1, 2"),
    (np.zeros(LAYOUT.shape, np.uint16), "a.s", LAYOUT, "a.s: sinograms are written for STIR; let the name end in .hs"),
    (lambda views: np.zeros((len(views), 399 // 399, 1, 80), np.uint16), "a.hs",
     SinogramLayout(load_scanner("biograph_vision_600"), 1, merge_transaxial=2), "Interfile sinograms need an even number"),
])  # fmt: skip
def test_one_line_for_what_cannot_be_written(tmp_path, counts, name, layout, message):
    with pytest.raises(UsageError, match=message):
        write_sinogram(tmp_path / name, counts, layout, Facts())
    assert not list(tmp_path.iterdir())


def test_a_failed_writer_leaves_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 1)
    counts = counts_of(LAYOUT)
    write_sinogram(tmp_path / "a.hs", counts, LAYOUT, FACTS)

    def fails(views):
        if views[0] == 20:
            raise DataError("no more")
        return 2 * counts[views]

    with pytest.raises(DataError, match="no more"):
        write_sinogram(tmp_path / "a.hs", fails, LAYOUT, Facts())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hs", "a.s"]
    assert np.array_equal(read_sinogram(tmp_path / "a.hs", SMALL).counts(), counts)


def test_an_old_header_never_describes_new_data(tmp_path, monkeypatch):
    write_sinogram(tmp_path / "a.hs", counts_of(LAYOUT), LAYOUT, FACTS)
    replace_file = os.replace

    def fails(source, target):
        if str(target).endswith(".hs"):
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(DataError, match=r"cannot write a.hs: the disk is full"):
        write_sinogram(tmp_path / "a.hs", counts_of(LAYOUT, np.float32), LAYOUT, Facts())
    assert [p.name for p in tmp_path.iterdir()] == ["a.s"]


def test_blocks_of_views_give_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 4 * 8 * 5 * 85)
    counts = counts_of(LAYOUT)
    assert [len(v) for v in view_blocks(LAYOUT)] == [4, 4, 4, 4, 4, 1]
    write_sinogram(tmp_path / "a.hs", lambda views: counts[views], LAYOUT, FACTS)
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    assert np.array_equal(np.concatenate([block for _, block in file.blocks()]), counts)
    assert [first for first, _ in file.blocks()] == [0, 4, 8, 12, 16, 20]


def test_names_of_any_letters(tmp_path):
    write_sinogram(tmp_path / "Zürich 中.1.hs", counts_of(LAYOUT), LAYOUT, Facts())
    assert np.array_equal(read_sinogram(tmp_path / "Zürich 中.1.hs", SMALL).counts(), counts_of(LAYOUT))


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    write_sinogram(tmp_path / "a.hs", counts_of(LAYOUT), LAYOUT, Facts())
    file = read_sinogram(tmp_path / "a.hs", SMALL)
    (tmp_path / "a.s").write_bytes(b"12")
    with pytest.raises(DataError, match=r"^a.s: cannot be read \(.*\); copy it again$"):
        file.read(np.arange(1))


def test_integer_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.rawdata.interfile_sinogram.AT_ONCE", 1)
    counts = counts_of(LAYOUT, np.float32)
    counts[3, 2, 1, 0] = 70000
    write_sinogram(tmp_path / "a.hs", counts, LAYOUT, Facts())
    assert integer_counts(read_sinogram(tmp_path / "a.hs", SMALL)) == 70000


@pytest.mark.parametrize("value, facts, message", [
    (0.5, Facts(), "^a.hs: holds 0.5 in view 7, which is not a whole number; such pre-corrected data cannot be thinned"),
    (-2.0, Facts(), "^a.hs: holds -2 in view 7, which is negative; such pre-corrected data cannot be thinned"),
    (np.nan, Facts(), "^a.hs: holds nan in view 7, which is not a whole number"),
    (np.inf, Facts(), "^a.hs: holds inf in view 7, which is not a whole number"),
    (1.0, FACTS, r"^a.hs: pre-corrected data cannot be thinned \(applied: randoms, decay\): binomial thinning needs"),
])  # fmt: skip
def test_integer_counts_refuses(tmp_path, value, facts, message):
    counts = counts_of(LAYOUT, np.float32)
    counts[7, 2, 1, 0] = value
    write_sinogram(tmp_path / "a.hs", counts, LAYOUT, facts)
    with pytest.raises(DataError, match=message):
        integer_counts(read_sinogram(tmp_path / "a.hs", SMALL))


def write_siemens(folder, layout, prompts, delayeds, more=()):
    """An uncompressed sinogram as Siemens writes it: segments 0, -1, +1, ..., timing 0, +1, -1, ..."""
    segments = sorted(layout.segments(), key=lambda s: (abs(s.ring_difference), s.ring_difference))
    half = layout.tof_bins // 2
    timings = sorted(range(-half, half + 1), key=lambda k: (abs(k), -k))
    raw = [
        counts[:, :, half - k, s.start : s.start + s.planes].transpose(2, 0, 1).astype("<i2").tobytes()
        for counts in (prompts, delayeds) for k in timings for s in segments
    ]  # fmt: skip
    size = prompts.size * 2
    (folder / "scan.s").write_bytes(b"".join(raw))
    values = {
        "%comment": "made up", "!originating system": "2008", "%SMS-MI version number": "3.4",
        "!name of data file": "scan.s", "%compression": "off", "%study date (yyyy:mm:dd)": "2000:01:02",
        "%study time (hh:mm:ss GMT+00:00)": "12:00:01", "isotope name": "F-18",
        "tracer activity at time of injection (Bq)": "4.65e+007", "image data byte order": "LITTLEENDIAN",
        "%patient orientation": "HFS", "!PET data type": "emission", "number format": "signed integer",
        "!number of bytes per pixel": 2, "number of dimensions": 3, "matrix axis label [1]": "bin",
        "matrix axis label [2]": "projection", "matrix axis label [3]": "plane", "matrix size [1]": layout.radials,
        "matrix size [2]": layout.views, "matrix size [3]": layout.planes, "%axial compression": layout.span,
        "%maximum ring difference": layout.max_ring_difference, "number of rings": layout.rings,
        "%segment table": "{" + ",".join(str(s.planes) for s in segments) + "}",
        "%energy window lower level (keV) [1]": 430, "%energy window upper level (keV) [1]": 610,
        "applied corrections": "", "%method of random correction": "none", "%decay correction": "none",
        "%number of TOF time bins": layout.tof_bins, "%TOF mashing factor": max(1, layout.merge_tof),
        "number of scan data types": 2, "scan data type description [1]": "prompts",
        "scan data type description [2]": "randoms", "data offset in bytes [1]": 0, "data offset in bytes [2]": size,
        "!image duration (sec)": 1140, "!image relative start time (sec)": "0.0",
    } | dict(more)  # fmt: skip
    lines = [f"{key}:={value}" for key, value in values.items()]
    (folder / "scan.s.hdr").write_text("\n".join(["!INTERFILE:=", *lines, "END OF INTERFILE :=", ""]))


def test_siemens_sinograms_of_the_mmr(tmp_path):
    layout = SinogramLayout(load_scanner("biograph_mmr"), 3, span=11, max_ring_difference=60)
    assert layout.planes == 837
    prompts, delayeds = counts_of(layout), counts_of(layout, seed=2)
    write_siemens(tmp_path, layout, prompts, delayeds)
    file = read_sinogram(tmp_path / "scan.s.hdr")
    assert (file.layout, file.dtype) == (layout, np.int16)
    assert file.facts == Facts(0.0, 1140.0, "F-18", 46.5, (430.0, 610.0), position="HFS", view_offset_deg=0.0)
    assert np.array_equal(file.counts(), prompts)
    assert file.delayeds is not None and np.array_equal(file.delayeds.counts(), delayeds)


def test_siemens_sinograms_with_tof(tmp_path):
    layout = replace(LAYOUT, max_ring_difference=1)
    prompts = counts_of(layout)
    write_siemens(tmp_path, layout, prompts, prompts[::-1], {"scan data type description [2]": "others"})
    file = read_sinogram(tmp_path / "scan.s.hdr", SMALL)
    assert file.layout == layout and file.delayeds is None
    assert np.array_equal(file.counts(), prompts)


@pytest.mark.parametrize("more, message", [
    ({"%compression": "on"}, "^scan.s.hdr: its data are compressed; uncompress them with the vendor's tools"),
    ({"%segment table": "{31,31}"}, "^scan.s.hdr: 'segment table' is 31, 31, but span 3 up to ring difference 1 on 16"),
    ({"matrix size [3]": 30}, r"^scan.s.hdr: 'matrix size \[3\]' is 30, but span 3 up to ring difference 1 on 16 ring"),
    ({"matrix axis label [1]": "x"}, "^scan.s.hdr: its data are arc-corrected"),
    ({"applied corrections": "{norm, radial arc-correction}"}, "^scan.s.hdr: its data are arc-corrected"),
    ({"matrix axis label [3]": "view"}, "^scan.s.hdr: its axes are bin, projection, view; only bin, projection and plane"),
    ({"data offset in bytes [2]": 24504}, "^scan.s.hdr: prompts and randoms overlap; their offsets are those of the compr"),
    ({"data offset in bytes [2]": 10**9}, "^scan.s: holds"),
    ({"%axial compression": 2}, "^scan.s.hdr: span must be odd and positive, got 2"),
])  # fmt: skip
def test_one_line_for_siemens_sinograms_that_cannot_be_read(tmp_path, more, message):
    layout = replace(LAYOUT, max_ring_difference=1)
    write_siemens(tmp_path, layout, counts_of(layout), counts_of(layout), more)
    with pytest.raises(DataError, match=message):
        read_sinogram(tmp_path / "scan.s.hdr", SMALL)


def test_corrections_of_siemens_keys_count(tmp_path):
    layout = replace(LAYOUT, max_ring_difference=1)
    write_siemens(tmp_path, layout, counts_of(layout), counts_of(layout),
                  {"%method of random correction": "DLYD", "%decay correction": "on"})  # fmt: skip
    facts = read_sinogram(tmp_path / "scan.s.hdr", SMALL).facts
    assert facts.corrections == ("random correction (dlyd)", "decay correction")


def test_nothing_of_the_patient_is_kept(tmp_path):
    layout = replace(LAYOUT, max_ring_difference=1)
    write_siemens(tmp_path, layout, counts_of(layout), counts_of(layout), {"patient name": "Doe", "patient ID": "4711"})
    file = read_sinogram(tmp_path / "scan.s.hdr", SMALL)
    write_sinogram(tmp_path / "b.hs", file.read, file.layout, file.facts)
    text = (tmp_path / "b.hs").read_text()
    assert not any(word in text for word in ("Doe", "4711", "2000", "12:00", str(tmp_path), "made up"))
