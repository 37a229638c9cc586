"""Which fields each list-mode format keeps: the README's table, cell by cell, and what is said of the others."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listmode_samples import cleared, in_memory, sample_events, sample_singles

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.geometry.scanner import load_scanner
from petsim.rawdata.events import FIELDS, Dose, Header, lost_fields, without_fields
from petsim.rawdata.formats import NAMES, format_of, formats, is_listmode, loss, open_listmode

README = Path(__file__).parents[3] / "README.md"
WRITTEN = {"petlink": "a.l.hdr", "petsird": "a.petsird", "castor": "a.cdh", "hdf5": "a.lm.h5"}
INJECTION = Injection("F-18", "FDG", 250.0, 3600.0, 71.0)


def header_of(name: str) -> Header:
    """A scan that holds every field, on a scanner of the format."""
    scanner = load_scanner("biograph_mmr" if name == "petlink" else "biograph_vision_600")
    fields = frozenset(FIELDS) - (set() if scanner.tof_bins else {"tof"})
    dose = Dose(4.0, "thin", 3)
    return Header(scanner, 1.0, 0.0, scanner.tof_bins or 1, scanner.tof_bin_ps or 0.0, fields, INJECTION, dose)


def round_trip(name, folder):
    header = header_of(name)
    events = cleared(sample_events(header.scanner, 3000, tof_bins=header.tof_bins), header.fields)
    path = folder / WRITTEN[name]
    lost, _ = loss(header, path)
    blocks = 8 * (header.scanner.crystals_per_ring // header.scanner.transaxial_block)
    with format_of(path).create(path, without_fields(header, lost)) as put:
        for block in in_memory(header, events, sample_singles(blocks)).blocks():
            kept = block.events if "delayeds" in format_of(path).HOLDS else block.events[block.events["is_delayed"] == 0]
            put(replace(block, events=kept))
    if "delayeds" in lost:
        events = events[events["is_delayed"] == 0]
    return header, events, sample_singles(blocks), open_listmode(path)


def canonical(events):
    """Events sorted, with the ends in one order: formats may turn LORs and sort within a millisecond."""
    out = events.copy()
    turn = out["crystal1"] > out["crystal2"]
    for a, b in (("crystal1", "crystal2"), ("ring1", "ring2"), ("energy1_kev", "energy2_kev")):
        out[a][turn], out[b][turn] = events[b][turn], events[a][turn]
    return out, turn


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_keeps_what_its_format_holds(name, tmp_path):
    header, events, singles, back = round_trip(name, tmp_path)
    holds = format_of(tmp_path / WRITTEN[name]).HOLDS
    assert back.header.fields == header.fields & holds
    blocks = list(back.blocks())
    got, turned = canonical(np.concatenate([b.events for b in blocks]))
    wanted, was = canonical(cleared(events, holds))
    if "tof" in holds & header.fields:
        for some, flags in ((got, turned), (wanted, was)):
            some["tof_bin"][flags] = header.tof_bins - 1 - some["tof_bin"][flags]
    for one in (got, wanted):
        one["energy1_kev"], one["energy2_kev"] = np.round(one["energy1_kev"]), np.round(one["energy2_kev"])
    columns = ["time_ms", "is_delayed", "crystal1", "crystal2", "ring1", "ring2", "tof_bin", "label"]
    got, wanted = np.sort(got, order=columns), np.sort(wanted, order=columns)
    for column in columns:
        assert np.array_equal(got[column], wanted[column]), column
    for column in ("energy1_kev", "energy2_kev"):
        assert np.abs(got[column] - wanted[column]).max() <= 1
    if "singles" in holds:
        assert sum(len(b.singles) for b in blocks) == len(singles)
    if "injection" in holds:
        kept = back.header.injection
        assert (kept.isotope, kept.injected_mbq) == ("F-18", pytest.approx(250.0))
    assert back.header.dose == (header.dose if "dose" in holds else None)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_cannot_be_held_is_said_in_one_line(name, tmp_path):
    header = header_of(name)
    lost, line = loss(header, tmp_path / WRITTEN[name])
    assert lost == lost_fields(header, formats()[name])
    assert "\n" not in line and all(field in line for field in lost) and bool(lost) == bool(line)


def table() -> dict[str, dict[str, bool]]:
    """The README's table: title of the format -> field -> kept."""
    rows = [line.strip("|").split("|") for line in README.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    first = next(i for i, row in enumerate(cells) if row[0] == "list mode")
    columns = [re.sub(r"`", "", cell) for cell in cells[first][2:]]
    found = {}
    for row in cells[first + 2 : first + 2 + len(NAMES)]:
        found[row[0]] = {column: cell == "yes" for column, cell in zip(columns, row[2:], strict=True)}
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", FIELDS)
def test_the_readme_says_what_a_format_keeps(name, field):
    format = formats()[name]
    assert table()[format.TITLE][field] == (field in format.HOLDS)


def test_endings():
    assert format_of(Path("x.l.hdr.STIR")).TITLE == formats()["petlink"].TITLE
    assert is_listmode(Path("x.lm.h5")) and not is_listmode(Path("x.h5")) and not is_listmode(Path("x.nii"))
    with pytest.raises(UsageError, match="no list-mode format"):
        format_of(Path("x.h5"))
    with pytest.raises(DataError, match="no such file"):
        open_listmode(Path("x.cdh"))
