"""petsim's own list-mode file."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from listmode_samples import all_events, cleared, in_memory, sample_events, sample_singles

from data_recipes.errors import DataError
from data_recipes.subject import Injection
from petsim.geometry.scanner import load_scanner
from petsim.rawdata import hdf5
from petsim.rawdata.events import FIELDS, DamagedError, Dose, Elements, Header

HEADER = Header(
    load_scanner("biograph_vision_600"), 1.0, 0.0, 33, 143.0, frozenset(FIELDS),
    Injection("Ga-68", "PSMA", 99.0, 60.0, 81.0), Dose(4.0, "thin", 3),
)  # fmt: skip


def write(path, header, events, singles=None):
    with hdf5.create(path, header) as put:
        for block in in_memory(header, events, singles).blocks():
            put(block)
    return path


def test_every_field_comes_back(tmp_path):
    events, singles = sample_events(HEADER.scanner, 4321, tof_bins=33), sample_singles(20)
    back = hdf5.read(write(tmp_path / "a.lm.h5", HEADER, events, singles))
    assert back.header == HEADER
    blocks = list(back.blocks())
    assert np.array_equal(np.concatenate([b.events for b in blocks]), events)
    assert np.array_equal(np.concatenate([b.singles for b in blocks]), singles)


@pytest.mark.parametrize("field", ["time", "tof", "delayeds", "labels", "energies"])
def test_columns_that_the_data_do_not_have_take_no_room(field, tmp_path):
    fields = frozenset(FIELDS) - {field, "singles"}
    header = replace(HEADER, fields=fields, **({"tof_bins": 1, "tof_bin_ps": 0.0} if field == "tof" else {}))
    events = sample_events(header.scanner, 100, tof_bins=header.tof_bins)
    back = hdf5.read(write(tmp_path / "a.lm.h5", header, events))
    assert np.array_equal(all_events(back), cleared(events, fields))
    with h5py.File(tmp_path / "a.lm.h5") as f:
        assert len(f["events"]) < 10


def test_detectors_without_rings(tmp_path):
    header = Header(Elements("demo", 56, 40), 1.0)
    back = hdf5.read(write(tmp_path / "a.lm.h5", header, sample_events(HEADER.scanner, 0)))
    assert back.header == header


def test_a_wrong_event_ends_the_pass_after_all_good_ones(tmp_path):
    events = sample_events(HEADER.scanner, 500, tof_bins=33)
    events["ring1"][321] = 999
    source = hdf5.read(write(tmp_path / "a.lm.h5", HEADER, events, sample_singles(2)))
    got = []
    with pytest.raises(DamagedError, match="event 321"):
        got.extend(source.blocks())
    assert sum(len(b.events) for b in got) == 321


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_file(size, tmp_path):
    path = write(tmp_path / "a.lm.h5", HEADER, sample_events(HEADER.scanner, 5000, tof_bins=33))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="cannot be read"):
        hdf5.read(path)


def test_another_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "a.lm.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(DataError, match="no list mode"):
        hdf5.read(tmp_path / "a.lm.h5")


def test_another_scanner_than_the_files(tmp_path):
    path = write(tmp_path / "a.lm.h5", HEADER, sample_events(HEADER.scanner, 10, tof_bins=33))
    with pytest.raises(DataError, match="--scanner biograph_mmr"):
        hdf5.read(path, load_scanner("biograph_mmr"))
