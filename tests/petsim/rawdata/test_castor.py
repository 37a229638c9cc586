"""CASToR list mode, written and read: bytes against the documentation, files of others, and files that are wrong."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listmode_samples import all_events, cleared, sample_events

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.geometry.scanner import load_scanner
from petsim.rawdata import castor
from petsim.rawdata.castor_scanner import ELEMENT
from petsim.rawdata.events import (
    EVENT,
    Block,
    DamagedError,
    Dose,
    Elements,
    Header,
    lost_fields,
    without_fields,
)

SMALL = load_scanner(str(Path(__file__).parents[2] / "small_scanner.toml"))
ROUND = replace(SMALL, name="round", axial_block=4, axial_block_real=3, view_offset_rad=0.03)
SIDES = replace(
    SMALL, name="sides", transaxial_pitch_mm=14.0, axial_block=4, axial_block_real=4, axial_gap_mm=2.5, tof_bins=151
)
PLAIN = replace(ROUND, name="plain", tof_fwhm_ps=None, tof_bin_ps=None, tof_bins=None)

FIELDS = frozenset({"time", "labels", "injection", "dose"})
INJECTION = Injection("Ga-68", "PSMA", 180.0, 3600.0, 71.5)


def header_of(scanner, fields=FIELDS, **values):
    tof = {"tof_bins": scanner.tof_bins, "tof_bin_ps": scanner.tof_bin_ps} if scanner.tof_bins else {}
    values = {"injection": INJECTION, "dose": Dose(4.0, "thin", 7), "start_s": 2.0} | tof | values
    if "dose" not in fields:
        del values["dose"]
    return Header(scanner, 60.0, fields=frozenset(fields) | ({"tof"} if scanner.tof_bins else set()), **values)


def events_of(header):
    """Events with what CASToR holds of them."""
    events = sample_events(header.scanner, 1000, last_ms=59_999, tof_bins=header.tof_bins)
    events["time_ms"] += 2000
    return cleared(events, header.fields - {"delayeds", "energies"})


def write(path, header, events):
    with castor.create(path, header) as add:
        for part in np.array_split(events, 3):
            add(Block(part))
    return path


def made_by_others(folder, records, extra=(), drop=(), name="scan.cdh", dtype=None):
    """A data file with its header, without scanner files."""
    lines = {
        "Scanner name": "THEIRS", "Data filename": "scan.cdf", "Number of events": len(records), "Data mode": "list-mode",
        "Data type": "PET", "Start time (s)": 0, "Duration (s)": 10, **dict(extra),
    }  # fmt: skip
    (folder / name).write_text("".join(f"{k} : {v}  # theirs\n" for k, v in lines.items() if k not in drop))
    np.array(records, dtype or [("t", "<u4"), ("a", "<u4"), ("b", "<u4")]).tofile(folder / "scan.cdf")
    return folder / name


@pytest.mark.parametrize("scanner", [ROUND, SIDES, PLAIN], ids=lambda s: s.name)
def test_round_trip(tmp_path, scanner):
    header = header_of(scanner)
    events = events_of(header)
    opened = castor.read(write(tmp_path / "scan.cdh", header, events))
    assert opened.header == header and opened.header.scanner == scanner and opened.warnings == ()
    assert {p.name for p in tmp_path.iterdir()} == {f"{scanner.name}.hscan", f"{scanner.name}.lut", "scan.cdf", "scan.cdh"}
    for _ in range(2):
        np.testing.assert_array_equal(all_events(opened), events)


def test_sources_of_a_known_scanner_come_back(tmp_path):
    scanner = load_scanner("biograph_mmr")
    header = header_of(scanner)
    assert castor.read(write(tmp_path / "scan.cdh", header, events_of(header))).header.scanner.sources == scanner.sources


def test_bytes_of_an_event(tmp_path):
    """Order, types and units of the documentation; IDs count the 160 x 12 real crystals, ring after ring."""
    header = header_of(ROUND)
    event = np.zeros(1, EVENT)
    event["time_ms"], event["label"], event["tof_bin"] = 2500, 3, 149
    event["crystal1"], event["ring1"], event["crystal2"], event["ring2"] = 22, 4, 167 - 1, 14
    write(tmp_path / "scan.cdh", header, event)
    expected = struct.pack("<IBfII", 2500, 4, 74.5 * 30, 3 * 160 + 21, 11 * 160 + 159)
    assert (tmp_path / "scan.cdf").read_bytes() == expected
    lines = (tmp_path / "scan.cdh").read_text().splitlines()
    for line in (
        "Data filename: scan.cdf", "Number of events: 1", "Data mode: list-mode", "Data type: PET", "Start time (s): 2",
        "Duration (s): 60", "Scanner name: round", "Isotope: Ga-68", "Coincidence kind flag: 1", "TOF information flag: 1",
        "TOF resolution (ps): 400", "List TOF measurement range (ps): 4500", "List TOF quantization bin size (ps): 30",
    ):  # fmt: skip
        assert line in lines


def test_time_difference_is_positive_nearer_to_crystal_2(tmp_path):
    """CASToR: t1 - t2, so that the position from the middle toward crystal 2 is c/2 times it, as `tof_bin` counts."""
    header = header_of(SIDES)
    events = events_of(header)
    write(tmp_path / "scan.cdh", header, events)
    stored = np.fromfile(tmp_path / "scan.cdf", "<u4,u1,<f4,<u4,<u4")["f2"]
    np.testing.assert_allclose(stored, (events["tof_bin"] - 75.0) * 30, atol=1e-3)


@pytest.mark.parametrize("scanner", [ROUND, SIDES], ids=lambda s: s.name)
def test_positions_of_the_scanner_file(tmp_path, scanner):
    """CASToR moves the center of a crystal along its axis to the mean depth of interaction: there end our LORs."""
    header = header_of(scanner)
    write(tmp_path / "scan.cdh", header, events_of(header))
    lut = np.fromfile(tmp_path / f"{scanner.name}.lut", ELEMENT)
    keys = dict(line.split(": ") for line in (tmp_path / f"{scanner.name}.hscan").read_text().splitlines() if line[0] != "#")
    rings, crystals = np.flatnonzero(scanner.ring_is_real()), np.flatnonzero(scanner.transaxial_is_real())
    assert len(lut) == len(rings) * len(crystals) == int(keys["number of elements"])
    assert int(keys["number of crystals in layer"]) == len(lut) and keys["modality"] == "PET"
    np.testing.assert_allclose(np.linalg.norm(lut["axis"], axis=1), 1, rtol=1e-6)
    moved = float(keys["mean depth of interaction"]) - float(keys["crystals size depth"]) / 2
    ends = (lut["center_mm"] + moved * lut["axis"]).reshape(len(rings), len(crystals), 3)
    xy = scanner.crystal_xy_mm(crystals + 0.5)
    np.testing.assert_allclose(ends[..., :2], np.broadcast_to(xy, (len(rings), *xy.shape)), atol=1e-3)
    np.testing.assert_allclose(ends[..., 2], np.repeat(scanner.ring_z_mm(rings)[:, None], len(crystals), 1), atol=1e-3)


def test_acceptance_is_written(tmp_path):
    """Rings 8 mm apart, a gap of 2.5 mm after every fourth: 5 rings span two gaps at most."""
    header = header_of(replace(SIDES, max_ring_difference=5))
    text = write(tmp_path / "scan.cdh", header, events_of(header)).read_text()
    assert "Maximum axial difference mm: 45.01\n" in text
    header = header_of(ROUND)
    assert "Maximum axial" not in write(tmp_path / "other.cdh", header, events_of(header)).read_text()


def test_prompts_only(tmp_path):
    header = header_of(ROUND, {"time", "delayeds", "energies", "singles"})
    assert lost_fields(header, castor) == ["delayeds", "energies", "singles"]
    events = events_of(header)
    events["is_delayed"][::3] = 1
    path = write(tmp_path / "scan.cdh", without_fields(header, lost_fields(header, castor)), events)
    np.testing.assert_array_equal(all_events(castor.read(path)), events[events["is_delayed"] == 0])
    assert "Coincidence kind" not in path.read_text() and "Isotope" not in path.read_text()


def test_events_of_virtual_crystals(tmp_path):
    header = header_of(ROUND)
    events = events_of(header)
    events["crystal2"][5] = 20
    with pytest.raises(DataError, match=r"scan.cdh: crystal 20 of ring"):
        write(tmp_path / "scan.cdh", header, events)
    assert not list(tmp_path.iterdir())


def test_doses_written_at_the_same_time_share_scanner_files(tmp_path):
    header = header_of(ROUND)
    events = events_of(header)
    with castor.create(tmp_path / "a.cdh", header) as one, castor.create(tmp_path / "b.cdh", header) as two:
        one(Block(events)), two(Block(events[::2]))
    assert len(all_events(castor.read(tmp_path / "a.cdh"))) == 2 * len(all_events(castor.read(tmp_path / "b.cdh")))


def test_another_scanner_is_not_overwritten(tmp_path):
    header = header_of(ROUND)
    write(tmp_path / "scan.cdh", header, events_of(header))
    other = header_of(replace(ROUND, inner_radius_mm=300.0))
    with pytest.raises(DataError, match=r"round.hscan: another scanner of this name"):
        write(tmp_path / "other.cdh", other, events_of(other))
    assert not (tmp_path / "other.cdh").exists()


def test_names_that_castor_cannot_read(tmp_path):
    header = header_of(ROUND)
    with pytest.raises(UsageError, match="'#' begins a comment"):
        write(tmp_path / "scan#1.cdh", header, events_of(header))


def test_blocks_are_lazy(tmp_path, monkeypatch):
    header = header_of(ROUND)
    events = events_of(header)
    opened = castor.read(write(tmp_path / "scan.cdh", header, events))
    monkeypatch.setattr(castor, "AT_ONCE", 300)
    blocks = [block.events for block in opened.blocks()]
    assert [len(b) for b in blocks] == [300, 300, 300, 100]
    np.testing.assert_array_equal(np.concatenate(blocks), events)


def test_all_optional_fields(tmp_path):
    """Time, attenuation, kind, scatter, random, normalization, TOF, IDs; of those only factors are not read."""
    dtype = [("t", "<u4"), ("a", "<f4"), ("k", "u1"), ("s", "<f4"), ("r", "<f4"), ("n", "<f4"), ("tof", "<f4"),
             ("i", "<u4"), ("j", "<u4")]  # fmt: skip
    records = [(k, 2.0, k, 0.1, 0.2, 0.3, -1000.0 + 500 * k, k, 200 + k) for k in range(5)]
    flags = {
        "Attenuation correction flag": 1, "Coincidence kind flag": 1, "Scatter correction flag": 1,
        "Random correction flag": 1, "Normalization correction flag": 1, "TOF information flag": 1,
        "TOF resolution (ps)": 300, "List TOF measurement range (ps)": 2000, "Calibration factor": 1.25,
    }  # fmt: skip
    path = made_by_others(tmp_path, records, flags, dtype=dtype)
    opened = castor.read(path, ROUND)
    assert opened.header.fields == {"time", "tof", "labels"} and opened.header.tof_bins == 150
    assert "(attenuation, scatter, random, normalization) are not read" in opened.warnings[0]
    events = all_events(opened)
    np.testing.assert_array_equal(events["label"], [0, 1, 2, 2, 3])
    np.testing.assert_array_equal(events["tof_bin"], np.floor((-1000 + 500 * np.arange(5)) / 30 + 75))
    np.testing.assert_array_equal(events["crystal1"], np.arange(5))
    np.testing.assert_array_equal(events["ring2"], 1)
    np.testing.assert_array_equal(events["crystal2"], 42 + np.arange(5))


def test_bins_of_unquantized_times(tmp_path):
    """A tenth of the resolution without a scanner that says more; the range may hold for one sign only."""
    dtype = [("t", "<u4"), ("tof", "<f4"), ("i", "<u4"), ("j", "<u4")]
    flags = {"TOF information flag": 1, "TOF resolution (ps)": 300, "List TOF measurement range (ps)": 2000}
    path = made_by_others(tmp_path, [(0, -2000.0, 0, 100), (0, 0.0, 0, 100), (0, 2000.0, 0, 100)], flags, dtype=dtype)
    write_geom(tmp_path)
    opened = castor.read(path)
    assert (opened.header.tof_bins, opened.header.tof_bin_ps) == (135, 30.0)
    np.testing.assert_array_equal(all_events(opened)["tof_bin"], [0, 67, 134])


GEOM = {
    "modality": "PET", "scanner name": "THEIRS", "number of elements": 2 * 8 * 6 * 8, "number of layers": 2,
    "scanner radius": "100,112", "number of rsectors": "8,8", "number of rsectors axial": "1,1",
    "rsectors first angle": "10,10", "number of modules transaxial": "2,2", "module gap transaxial": "1.5,1.5",
    "number of modules axial": "2,2", "module gap axial": "3,3", "number of submodules axial": "2,2",
    "submodule gap axial": "1,1", "number of crystals transaxial": "3,3", "crystal gap transaxial": "0.25,0.25",
    "number of crystals axial": "2,2", "crystals size depth": "12,10", "crystals size trans": "4,4",
    "crystals size axial": "5,5", "rsectors nbZShift": 2, "rsectors ZShift": "0,2.5",
}  # fmt: skip


def write_geom(folder, **changes):
    keys = GEOM | {k.replace("_", " "): v for k, v in changes.items()}
    (folder / "THEIRS.geom").write_text("".join(f"{k}: {v}  # mm\n" for k, v in keys.items()))


def positions_one_by_one():
    """Centers of the crystals of `GEOM` by the documentation's loops (equations of theta_i and idCrystal)."""
    out = {}
    sub, module = 3 * 4 + 2 * 0.25, 3 * 4 + 2 * 0.25
    length = 2 * (2 * (2 * 5) + 1) + 3
    for layer, (radius, depth) in enumerate(((100, 12), (112, 10))):
        for sector in range(8):
            theta = np.radians(10 + sector * 45)
            for m in range(2):
                for c in range(3):
                    x = -(2 * module + 1.5) / 2 + m * (module + 1.5) + c * 4.25 + 2
                    y = radius + depth / 2
                    for am in range(2):
                        for asub in range(2):
                            for ac in range(2):
                                z = -length / 2 + am * 24 + asub * 11 + ac * 5 + 2.5 + (0, 2.5)[sector % 2]
                                ring = ac + asub * 2 + am * 4
                                number = layer * 384 + ring * 48 + sector * 6 + m * 3 + c
                                # Clockwise: a sector above the axis moves to the right.
                                out[number] = (
                                    np.cos(theta) * x + np.sin(theta) * y, np.cos(theta) * y - np.sin(theta) * x, z,
                                )  # fmt: skip
    assert sub == module
    return np.array([out[k] for k in range(len(out))])


def test_geom_file(tmp_path):
    write_geom(tmp_path)
    path = made_by_others(tmp_path, [(0, 0, 500), (1, 47, 767)])
    opened = castor.read(path)
    geometry = opened.header.native.geometry
    np.testing.assert_allclose(geometry.xyz_mm, positions_one_by_one(), atol=1e-9)
    assert geometry.layers == (384, 384)
    assert opened.header.scanner == Elements("THEIRS", 48, 16)
    events = all_events(opened)
    np.testing.assert_array_equal(events["ring2"], [500 // 48, 15])
    np.testing.assert_array_equal(events["crystal1"], [0, 47])


def test_counterclockwise_geom_is_the_mirror_image(tmp_path):
    path = made_by_others(tmp_path, [(0, 0, 500)])
    write_geom(tmp_path)
    clockwise = castor.read(path).header.native.geometry.xyz_mm
    write_geom(tmp_path, rotation_direction="CCW")
    np.testing.assert_allclose(castor.read(path).header.native.geometry.xyz_mm, clockwise * [-1, 1, 1], atol=1e-9)


def theirs_of(folder, scanner, order):
    """Scanner files of the scanner's real crystals in another order."""
    place = np.array([(c, r) for r in np.flatnonzero(scanner.ring_is_real())
                      for c in np.flatnonzero(scanner.transaxial_is_real())])[order]  # fmt: skip
    lut = np.zeros(len(place), ELEMENT)
    lut["center_mm"][:, :2] = scanner.crystal_xy_mm(place[:, 0] + 0.5) * (1 + 3 / scanner.radius_mm)
    lut["center_mm"][:, 2] = scanner.ring_z_mm(place[:, 1])
    lut.tofile(folder / "THEIRS.lut")
    text = f"number of layers: 1\nnumber of crystals in layer(s): {len(place)}\nnumber of rings in scanner: 12\n"
    (folder / "THEIRS.hscan").write_text(text)
    return place


def test_elements_of_others_are_found_by_position(tmp_path):
    rng = np.random.default_rng(0)
    place = theirs_of(tmp_path, ROUND, rng.permutation(160 * 12))
    pairs = [(k, i, j) for k, (i, j) in enumerate(rng.integers(0, len(place), (50, 2))) if place[i, 0] != place[j, 0]]
    path = made_by_others(tmp_path, pairs)
    events = all_events(castor.read(path, ROUND))
    for k, (_, i, j) in enumerate(pairs):
        assert tuple(place[i]) == (events["crystal1"][k], events["ring1"][k])
        assert tuple(place[j]) == (events["crystal2"][k], events["ring2"][k])
    assert castor.read(path).header.scanner == Elements("THEIRS", 160, 12)


def test_scanner_that_does_not_fit(tmp_path):
    theirs_of(tmp_path, ROUND, np.arange(160 * 12))
    path = made_by_others(tmp_path, [(0, 0, 500)])
    with pytest.raises(DataError, match=r"THEIRS: 1920 of its 1920 elements are no crystals of their own in round"):
        castor.read(path, replace(ROUND, inner_radius_mm=300.0))
    turned = replace(ROUND, view_offset_rad=ROUND.view_offset_rad + 0.11)
    with pytest.raises(DataError, match=r"view_offset_rad \(0\.0[23]") as error:
        castor.read(path, turned)
    fitting = float(str(error.value).split("(")[1].split()[0])
    assert castor.read(path, replace(ROUND, view_offset_rad=fitting)).header.scanner.view_offset_rad == fitting


def test_written_again(tmp_path):
    """What CASToR's files say besides stays in a file of the same data."""
    (tmp_path / "new").mkdir()
    write_geom(tmp_path)
    dtype = [("t", "<u4"), ("tof", "<f4"), ("i", "<u4"), ("j", "<u4")]
    flags = {
        "TOF information flag": 1, "TOF resolution (ps)": 312, "List TOF measurement range (ps)": 4056,
        "List TOF quantization bin size (ps)": 312, "Calibration factor": 1.25, "Isotope": "Zr-89",
    }  # fmt: skip
    opened = castor.read(made_by_others(tmp_path, [(0, -312.0, 0, 500), (7, 624.0, 3, 9)], flags, dtype=dtype))
    assert (opened.header.tof_bins, opened.header.tof_bin_ps) == (13, 312.0)
    path = write(tmp_path / "new" / "again.cdh", opened.header, all_events(opened))
    text = path.read_text()
    for line in ("Calibration factor: 1.25\n", "Isotope: Zr-89\n", "TOF resolution (ps): 312\n", "Scanner name: THEIRS\n"):
        assert line in text
    assert (tmp_path / "new" / "THEIRS.geom").read_bytes() == (tmp_path / "THEIRS.geom").read_bytes()
    assert (tmp_path / "new" / "again.cdf").read_bytes() == (tmp_path / "scan.cdf").read_bytes()


def test_elements_of_unknown_place_are_not_written(tmp_path):
    header = Header(Elements("modules", 10, 4), 10.0, fields=frozenset({"time"}))
    with pytest.raises(UsageError, match="where the elements of modules lie is not known"):
        write(tmp_path / "scan.cdh", header, np.zeros(0, EVENT))


def test_data_beside_the_header_whatever_path_it_names(tmp_path):
    path = made_by_others(tmp_path, [(0, 0, 500)], {"Data filename": "/home/someone/data/scan.cdf"})
    assert len(all_events(castor.read(path, ROUND))) == 1
    (tmp_path / "scan.cdf").unlink()
    with pytest.raises(DataError, match=r"its data file scan.cdf is missing") as error:
        castor.read(path, ROUND)
    assert "someone" not in str(error.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"Data mode": "histogram"}, "holds PET data in mode histogram, no events"),
        ({"Data mode": "normalization"}, "in mode normalization"),
        ({"Data type": "SPECT"}, "holds SPECT data"),
        ({"Maximum number of lines per event": 3}, "several lines"),
        ({"POI correction flag": "1,1,1"}, "points of interaction"),
        ({"Duration (s)": 0}, "scan.cdh: starts at 0 s and lasts 0 s"),
        ({"Duration (s)": "long"}, "'Duration \\(s\\)' is 'long', not a number"),
        ({"TOF information flag": 1, "List TOF measurement range (ps)": 0, "TOF resolution (ps)": 300}, "TOF bins"),
        ({"Number of events": "nan"}, "'Number of events' is 'nan', not a number"),
        ({"Number of events": 2}, "holds more than the 2 events of 12 bytes"),
        ({"Attenuation correction flag": 1}, "holds more than the 2 events|scan.cdf"),
    ],
)
def test_headers_that_are_refused(tmp_path, extra, message):
    path = made_by_others(tmp_path, [(0, 0, 500), (1, 1, 501), (2, 2, 502)], extra)
    with pytest.raises(DataError, match=message) as error:
        all_events(castor.read(path, PLAIN))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["Data filename", "Data mode", "Data type", "Number of events", "Duration (s)", "Scanner name"]
)
def test_header_lines_that_are_missing(tmp_path, key):
    path = made_by_others(tmp_path, [(0, 0, 500)], drop=(key,))
    with pytest.raises(DataError) as error:
        castor.read(path, ROUND)
    assert str(error.value) == f"scan.cdh: '{key}' is missing; give a whole header of CASToR"


def test_no_header_at_all(tmp_path):
    (tmp_path / "scan.cdh").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="no ASCII header"):
        castor.read(tmp_path / "scan.cdh", ROUND)


def test_no_scanner_at_all(tmp_path):
    path = made_by_others(tmp_path, [(0, 0, 500)])
    with pytest.raises(DataError, match=r"neither THEIRS.geom nor THEIRS.hscan with THEIRS.lut.*--scanner"):
        castor.read(path)


def test_scanner_files_that_are_wrong(tmp_path):
    theirs_of(tmp_path, ROUND, np.arange(160 * 12))
    path, lut = made_by_others(tmp_path, [(0, 0, 500)]), tmp_path / "THEIRS.lut"
    whole = lut.read_bytes()
    lut.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"THEIRS.lut: has 46076 bytes but 1920 elements of 24"):
        castor.read(path)
    lut.write_bytes(np.frombuffer(whole, "<f4").byteswap().tobytes())
    with pytest.raises(DataError, match="little-endian"):
        castor.read(path)
    lut.unlink()
    with pytest.raises(DataError, match=r"THEIRS.lut is missing"):
        castor.read(path)


@pytest.mark.parametrize("file", ["scan.cdh", "round.hscan"])
def test_notes_that_are_damaged(tmp_path, file):
    header = header_of(ROUND)
    path = write(tmp_path / "scan.cdh", header, events_of(header))
    text = (tmp_path / file).read_text()
    for good, bad in ((": {", ": {{"), ('"tracer"', '"tracker"'), ('"title"', '"tilt"')):
        wrong = text.replace(good, bad)
        if wrong == text:
            continue
        (tmp_path / file).write_text(wrong)
        with pytest.raises(DataError, match=f"{file}: .*damaged"):
            castor.read(path)


def test_file_that_ends_early(tmp_path):
    header = header_of(ROUND)
    events = events_of(header)
    path = write(tmp_path / "scan.cdh", header, events)
    data = (tmp_path / "scan.cdf").read_bytes()
    (tmp_path / "scan.cdf").write_bytes(data[: 17 * 777 + 5])
    found = []
    with pytest.raises(DamagedError, match="ends before the last of its 1000 events at byte 13209, after 777 events"):
        found.extend(block.events for block in castor.read(path).blocks())
    (tmp_path / "scan.cdf").write_bytes(b"")
    with pytest.raises(DataError, match="holds not one event of 17 bytes"):
        castor.read(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id1", 1920, "crystal IDs 1920 and .* are beyond the 1920 of round"),
        ("time_ms", 1, "time runs backwards to 1 ms"),
        ("tof_ps", np.nan, "TOF nan ps is beyond"),
        ("tof_ps", 4501.0, "TOF 4501 ps is beyond the header's measurement range of 4500 ps"),
        ("kind", 5, "coincidence kind 5 is not one of 5"),
    ],
)
def test_events_that_cannot_be(tmp_path, monkeypatch, field, value, message):
    """Everything before is yielded, also of the last block."""
    header = header_of(ROUND)
    events = events_of(header)
    path = write(tmp_path / "scan.cdh", header, events)
    dtype = [("time_ms", "<u4"), ("kind", "u1"), ("tof_ps", "<f4"), ("id1", "<u4"), ("id2", "<u4")]
    records = np.fromfile(tmp_path / "scan.cdf", dtype)
    records[field][500] = value
    records.tofile(tmp_path / "scan.cdf")
    monkeypatch.setattr(castor, "AT_ONCE", 300)
    found = []
    with pytest.raises(DamagedError, match=f"scan.cdf: {message} .*at byte 8500, after 500 events") as error:
        for block in castor.read(path).blocks():
            found.append(block.events)
    assert error.value.events == 500
    np.testing.assert_array_equal(np.concatenate(found), events[:500])


def test_swapped_bytes(tmp_path):
    path = made_by_others(tmp_path, [(1, 20, 500)] * 3, dtype=[("t", ">u4"), ("a", ">u4"), ("b", ">u4")])
    with pytest.raises(DataError, match=r"in its first event; check flags, byte order \(little\)") as error:
        all_events(castor.read(path, ROUND))
    assert not isinstance(error.value, DamagedError)


def test_events_after_the_end_are_told(tmp_path):
    path = made_by_others(tmp_path, [(0, 0, 500), (12345, 0, 500)])
    assert "events go on until 12.345 s but the header ends at 10 s" in castor.read(path, ROUND).warnings[0]


def test_nothing_is_left_of_a_failure(tmp_path):
    header = header_of(ROUND)
    with pytest.raises(RuntimeError), castor.create(tmp_path / "scan.cdh", header) as add:
        add(Block(events_of(header)))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
