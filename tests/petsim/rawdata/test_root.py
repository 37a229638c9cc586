"""GATE's ROOT files, made here with uproot's writer."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uproot
from listmode_samples import all_events, sample_events

from data_recipes.errors import DataError, UsageError
from petsim.geometry.scanner import load_scanner
from petsim.rawdata import root
from petsim.rawdata.events import DamagedError, Header

SCANNER = load_scanner(str(Path(__file__).parents[2] / "small_scanner.toml"))
COUNT = 400


def expected(count=COUNT, seed=0):
    """Events in order of time that a file is made of."""
    events = sample_events(SCANNER, count, seed, last_ms=9999, tof_bins=SCANNER.tof_bins)
    events["is_delayed"] = 0
    return events


def branches_of(events, scanner=SCANNER):
    """GATE 9's branches of events: places inside their crystals, times that give their TOF bins."""
    rng, count = np.random.default_rng(5), len(events)
    late_s = (events["tof_bin"] - (SCANNER.tof_bins - 1) / 2) * SCANNER.tof_bin_ps * 1e-12
    time_s = events["time_ms"] / 1000 + 3e-4
    branches = {"time1": time_s, "time2": time_s - late_s}
    for end in "12":
        out = 1 + rng.uniform(-0.01, 0.02, count)
        xy = scanner.crystal_xy_mm(events[f"crystal{end}"] + 0.5 + rng.uniform(-0.4, 0.4, count)) * out[:, None]
        z = scanner.ring_z_mm(events[f"ring{end}"]) + rng.uniform(-3, 3, count)
        for axis, values in zip("XYZ", (*xy.T, z), strict=True):
            branches[f"globalPos{axis}{end}"] = values.astype(np.float32)
        branches[f"energy{end}"] = (events[f"energy{end}_kev"] / 1000).astype(np.float32)
        for name in ("comptonPhantom", "RayleighPhantom", "comptonCrystal"):
            branches[name + end] = np.zeros(count, np.int32)
        branches["eventID" + end] = np.arange(count, dtype=np.int32)
    branches["eventID2"][events["label"] == 3] += 7
    scattered = np.flatnonzero(events["label"] == 2)
    for k, name in enumerate(("comptonPhantom1", "comptonPhantom2", "RayleighPhantom1", "RayleighPhantom2")):
        branches[name][scattered[k::4]] = 1 + k
    return branches


def write(path, trees, step=100):
    """A ROOT file of trees, in baskets of `step` entries."""
    with uproot.recreate(path) as file:
        for name, branches in trees.items():
            file.mktree(name, {k: v.dtype for k, v in branches.items()})
            for start in range(0, len(next(iter(branches.values()))), step):
                file[name].extend({k: v[start : start + step] for k, v in branches.items()})
    return path


PET_DATA = {"start_time_sec": np.array([0.0]), "stop_time_sec": np.array([12.0])}


def gate9(path, events, **more):
    return write(path, {"Coincidences": branches_of(events), "pet_data": PET_DATA} | more)


def test_gate_9(tmp_path):
    """Crystals by position, labels by events and phantom scatter (Rayleigh too), s, MeV and ps in our units."""
    events = expected()
    opened = root.read(gate9(tmp_path / "sim.root", events), SCANNER)
    assert opened.header == Header(
        SCANNER, 12.0, tof_bins=150, tof_bin_ps=30.0, fields=frozenset({"time", "tof", "labels", "energies"})
    )
    assert opened.warnings == () and opened.name == "sim.root"
    for _ in range(2):
        found = all_events(opened)
        for name in events.dtype.names:
            np.testing.assert_allclose(found[name], events[name], rtol=1e-6, err_msg=name)


def test_comptons_in_crystals_are_no_scatter(tmp_path):
    events = expected()
    events["label"] = 1
    branches = branches_of(events)
    branches["comptonCrystal1"][:] = 2
    path = write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA})
    assert (all_events(root.read(path, SCANNER))["label"] == 1).all()


def test_noise_is_random(tmp_path):
    events = expected()
    events["label"] = 1
    branches = branches_of(events)
    branches["eventID1"][3] = branches["eventID2"][3] = -2
    path = write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA})
    np.testing.assert_array_equal(np.flatnonzero(all_events(root.read(path, SCANNER))["label"] == 3), [3])


def test_masked_branches(tmp_path):
    events = expected()
    branches = {k: v for k, v in branches_of(events).items() if "Phantom" not in k and "energy" not in k}
    opened = root.read(write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA}), SCANNER)
    assert opened.header.fields == {"time", "tof", "labels"}
    np.testing.assert_array_equal(all_events(opened)["label"], np.where(events["label"] == 3, 3, 0))


def test_gate_10(tmp_path):
    """Times in ns; scattering is not recorded."""
    events = expected()
    names = {"eventID": "EventID", "time": "GlobalTime", "energy": "TotalEnergyDeposit", "globalPosX": "PostPosition_X",
             "globalPosY": "PostPosition_Y", "globalPosZ": "PostPosition_Z"}  # fmt: skip
    theirs = {names[k[:-1]] + k[-1]: v for k, v in branches_of(events).items() if k[:-1] in names}
    theirs |= {"GlobalTime1": theirs["GlobalTime1"] * 1e9, "GlobalTime2": theirs["GlobalTime2"] * 1e9}
    opened = root.read(write(tmp_path / "sim.root", {"Coincidences": theirs}), SCANNER)
    assert "no tree 'pet_data'" in opened.warnings[0]
    assert (opened.header.start_s, opened.header.duration_s) == (0.0, 10.0)
    found = all_events(opened)
    np.testing.assert_array_equal(found["label"], np.where(events["label"] == 3, 3, 0))
    for name in ("time_ms", "crystal1", "ring1", "crystal2", "ring2", "tof_bin"):
        np.testing.assert_array_equal(found[name], events[name])
    np.testing.assert_allclose(found["energy2_kev"], events["energy2_kev"], rtol=1e-6)


def test_tof_beyond_the_outermost_bin(tmp_path):
    branches = branches_of(expected())
    branches["time2"][10], branches["time2"][11] = branches["time1"][10] + 1e-8, branches["time1"][11] - 1e-8
    opened = root.read(write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA}), SCANNER)
    np.testing.assert_array_equal(all_events(opened)["tof_bin"][10:12], [0, 149])


def test_scanner_without_tof(tmp_path):
    scanner = replace(SCANNER, tof_fwhm_ps=None, tof_bin_ps=None, tof_bins=None)
    opened = root.read(gate9(tmp_path / "sim.root", expected()), scanner)
    assert "tof" not in opened.header.fields and opened.header.tof_bins == 1
    assert not all_events(opened)["tof_bin"].any()


@pytest.mark.parametrize("name", ["delay", "Delays", "delayedCoincidences"])
def test_delayeds_come_in_between(tmp_path, monkeypatch, name):
    """Two trees, one order of time; the offset of the delayed window is no TOF."""
    monkeypatch.setattr(root, "ENTRIES", 64)
    monkeypatch.setattr(root, "HELD_BACK", 16)
    prompts, delayeds = expected(), expected(150, seed=1)
    delayeds["time_ms"] = np.sort(delayeds["time_ms"] // 2 + 1000)
    delayeds["tof_bin"] = np.minimum(delayeds["tof_bin"], 74)
    delayeds["tof_bin"][0] = 74
    branches = branches_of(delayeds)
    branches["time2"] += 500e-9
    opened = root.read(gate9(tmp_path / "sim.root", prompts, **{name: branches}), SCANNER)
    assert "delayeds" in opened.header.fields
    found = all_events(opened)
    assert (np.diff(found["time_ms"].astype(int)) >= 0).all() and len(found) == 550
    late = found[found["is_delayed"] == 1]
    assert (late["label"] == 3).all()
    for field in ("time_ms", "crystal1", "ring1", "crystal2", "ring2", "tof_bin"):
        np.testing.assert_array_equal(late[field], delayeds[field])
        np.testing.assert_array_equal(found[found["is_delayed"] == 0][field], prompts[field])


def test_late_entries(tmp_path, monkeypatch):
    """Within the window they are put into order, beyond it the file is wrong; what came before is yielded."""
    monkeypatch.setattr(root, "ENTRIES", 50)
    monkeypatch.setattr(root, "HELD_BACK", 20)
    events = expected()
    events["time_ms"] = np.arange(COUNT) * 10
    order = np.arange(COUNT)
    order[100:115] = np.roll(order[100:115], 1)
    path = gate9(tmp_path / "sim.root", events[order])
    np.testing.assert_array_equal(all_events(root.read(path, SCANNER))["time_ms"], events["time_ms"])
    order[300], order[100] = order[100], order[300]
    path = gate9(tmp_path / "sim.root", events[order])
    found = []
    with pytest.raises(DamagedError, match=r"sim.root: time runs backwards to 1140 ms") as error:
        found.extend(block.events for block in root.read(path, SCANNER).blocks())
    np.testing.assert_array_equal(np.concatenate(found)["time_ms"], np.delete(events["time_ms"][:281], order[300]))
    assert error.value.events == 280


def test_blocks_are_lazy(tmp_path, monkeypatch):
    monkeypatch.setattr(root, "ENTRIES", 64)
    monkeypatch.setattr(root, "HELD_BACK", 16)
    events = expected()
    opened = root.read(gate9(tmp_path / "sim.root", events), SCANNER)
    blocks = [block.events for block in opened.blocks()]
    assert max(len(b) for b in blocks) <= 80 and sum(len(b) for b in blocks) == COUNT


def test_coincidences_outside(tmp_path):
    events = expected()
    branches = branches_of(events)
    branches["globalPosZ1"][7] = 500
    branches["globalPosX2"][9] = np.nan
    for axis in "XY":
        branches[f"globalPos{axis}1"][11] = branches[f"globalPos{axis}2"][11]
    path = write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA})
    opened = root.read(path, SCANNER)
    assert "(2 of the first 400) or with both ends at one place of its ring (1) are left out" in opened.warnings[0]
    kept = np.delete(np.arange(COUNT), [7, 9, 11])
    np.testing.assert_array_equal(all_events(opened)["time_ms"], events["time_ms"][kept])


def test_another_scanner(tmp_path):
    path = gate9(tmp_path / "sim.root", expected())
    with pytest.raises(DataError, match=r"400 of the first 400 coincidences lie farther .*--scanner"):
        root.read(path, replace(SCANNER, inner_radius_mm=300.0))


def test_most_are_outside_later(tmp_path, monkeypatch):
    monkeypatch.setattr(root, "ENTRIES", 100)
    monkeypatch.setattr(root, "HELD_BACK", 10)
    monkeypatch.setattr(root, "LOOKED_AT", 50)
    branches = branches_of(expected())
    branches["globalPosZ1"][200:300] = 500
    path = write(tmp_path / "sim.root", {"Coincidences": branches, "pet_data": PET_DATA})
    with pytest.raises(DamagedError, match=r"most coincidences of tree Coincidences lie outside .* after 200 events"):
        all_events(root.read(path, SCANNER))


def test_turned_scanner(tmp_path):
    scanner = replace(SCANNER, crystal_size_mm=(14.9, 8.0, 20.0))
    path = write(tmp_path / "sim.root", {"Coincidences": branches_of(expected(), scanner), "pet_data": PET_DATA})
    half = np.pi / 8
    opened = root.read(path, replace(scanner, view_offset_rad=half))
    assert "seems turned" in opened.warnings[0]
    angle = float(opened.warnings[0].split("view_offset_rad ")[1].split()[0])
    assert abs((angle + half) % (2 * half) - half) < 0.01
    assert root.read(path, replace(scanner, view_offset_rad=angle)).warnings == ()


def test_span_of_the_scan(tmp_path):
    """Events lie in it, whatever pet_data says."""
    path = tmp_path / "sim.root"
    stated = {"start_time_sec": np.array([5.0]), "stop_time_sec": np.array([8.0])}
    events = expected()
    gate9(path, events, pet_data=stated)
    header = root.read(path, SCANNER).header
    assert (header.start_s, header.duration_s) == (0.0, 10.0)


def test_what_is_missing(tmp_path):
    path, branches = tmp_path / "sim.root", branches_of(expected())
    with pytest.raises(DataError, match=r"sim\.root: GATE files do not tell the scanner; name it with --scanner"):
        root.read(path)
    write(path, {"Singles": branches})
    with pytest.raises(DataError, match=r"one tree Coincidences .* its trees are Singles"):
        root.read(path, SCANNER)
    write(path, {"Coincidences": branches, "delay": branches, "delays": branches})
    with pytest.raises(DataError, match="at most one of delayeds"):
        root.read(path, SCANNER)
    write(path, {"Coincidences": {k: v for k, v in branches.items() if k not in ("globalPosX2", "eventID2")}})
    with pytest.raises(DataError, match="tree Coincidences has no branch eventID2, globalPosX2;"):
        root.read(path, SCANNER)
    write(path, {"Coincidences": {k: v[:0] for k, v in branches.items()}})
    with pytest.raises(DataError, match="tree Coincidences has no entries"):
        root.read(path, SCANNER)


def test_no_uproot(tmp_path, monkeypatch):
    path = gate9(tmp_path / "sim.root", expected())
    monkeypatch.setitem(sys.modules, "uproot", None)
    with pytest.raises(DataError, match=r"pip install 'petsim\[root\]'"):
        root.read(path, SCANNER)


@pytest.mark.parametrize("kept", [0, 3, 200, 0.3, 0.9])
def test_truncated_files(tmp_path, kept):
    path = gate9(tmp_path / "sim.root", expected(), delay=branches_of(expected()))
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 or kept == 0 else int(kept * len(data))])
    with pytest.raises(DataError, match=r"^sim\.root: ") as error:
        all_events(root.read(path, SCANNER))
    assert "\n" not in str(error.value)


def test_no_root_file(tmp_path):
    path = tmp_path / "sim.root"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(DataError, match=r"sim\.root: it is no ROOT file, or its end is missing"):
        root.read(path, SCANNER)


def test_damaged_basket(tmp_path, monkeypatch):
    """Entries before it are yielded."""
    monkeypatch.setattr(root, "ENTRIES", 100)
    monkeypatch.setattr(root, "HELD_BACK", 10)
    monkeypatch.setattr(root, "LOOKED_AT", 50)
    events = expected()
    path = gate9(tmp_path / "sim.root", events)
    with uproot.open(path) as file:
        branch = file["Coincidences"]["comptonPhantom1"]
        start, size = int(branch.member("fBasketSeek")[2]), int(branch.member("fBasketBytes")[2])
    data = bytearray(path.read_bytes())
    data[start + size - 10 : start + size] = bytes(range(10))
    path.write_bytes(data)
    found = []
    with pytest.raises(DamagedError, match=r"entries of tree Coincidences cannot be read .* after 200 events"):
        found.extend(block.events for block in root.read(path, SCANNER).blocks())
    np.testing.assert_array_equal(np.concatenate(found)["time_ms"], events["time_ms"][:200])


def test_times_that_cannot_be(tmp_path, monkeypatch):
    path, branches = tmp_path / "sim.root", branches_of(expected())
    branches["time1"][130] = -1.0
    write(path, {"Coincidences": branches, "pet_data": PET_DATA})
    with pytest.raises(DataError, match="a time in tree Coincidences is not that of a scan; the file is damaged"):
        root.read(path, SCANNER)
    monkeypatch.setattr(root, "ENTRIES", 50)
    monkeypatch.setattr(root, "HELD_BACK", 10)
    monkeypatch.setattr(root, "LOOKED_AT", 50)
    with pytest.raises(DamagedError, match=r"a time in tree Coincidences is not that of a scan .* after 100 events"):
        all_events(root.read(path, SCANNER))


def test_nothing_is_written(tmp_path):
    header = Header(SCANNER, 1.0, fields=frozenset({"time"}))
    with pytest.raises(UsageError, match=r"sim\.root: ROOT files are read only"), root.create(tmp_path / "sim.root", header):
        pass
