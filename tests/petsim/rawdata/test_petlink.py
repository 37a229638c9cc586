"""PETLINK list mode: the real mMR scan, round trips, damaged files."""

import numpy as np
import pytest
from listmode_samples import all_events, cleared, in_memory, mmr_header, sample_events, sample_singles

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.rawdata import petlink
from petsim.rawdata.events import Block, DamagedError, Dose, Header


@pytest.fixture
def mmr_scan(real_data):
    return real_data("mmr_listmode/PET_ACQ_small.l.hdr.STIR")


def write(path, header, events, singles=None):
    with petlink.create(path, header) as put:
        for block in in_memory(header, events, singles).blocks():
            put(block)


def test_the_mmr_scan_is_decoded_exactly(mmr_scan):
    scan = petlink.read(mmr_scan)
    events = all_events(scan)
    assert (events["is_delayed"] == 0).sum() == 218_881
    assert (events["is_delayed"] == 1).sum() == 35_320
    assert scan.header.duration_s == pytest.approx(0.613)  # 613 tags of a millisecond
    assert scan.header.injection == Injection("F-18", "FDG", 46.5, 3215.0)
    assert len(scan.warnings) == 1 and "331257106" in scan.warnings[0]


def test_no_count_lies_in_a_gap_of_the_mmr(mmr_scan):
    # This fixes the order of crystals in an address: one crystal off, and a ninth of all counts would be in gaps.
    scan = petlink.read(mmr_scan)
    real = scan.header.scanner.transaxial_is_real()
    events = all_events(scan)
    assert real[events["crystal1"]].all() and real[events["crystal2"]].all()


def test_nothing_of_the_real_header_identifies_anybody(tmp_path):
    header = Header(
        mmr_header().scanner, 1.0, fields=frozenset({"injection", "time"}), injection=Injection("F-18", "FDG", 100.0, 3600.0)
    )
    write(tmp_path / "a.l.hdr", header, sample_events(header.scanner, 10))
    text = (tmp_path / "a.l.hdr").read_text().lower()
    assert "date" not in text and "study time" not in text and str(tmp_path).lower() not in text


def test_round_trip_keeps_what_the_format_holds(tmp_path):
    injection = Injection("F-18", "FDG", 123.5, 3600.0)
    dose = Dose(4.5, "thin", 7, True)
    header = Header(mmr_header().scanner, 1.0, fields=frozenset(petlink.HOLDS), injection=injection, dose=dose)
    events, singles = sample_events(header.scanner, 5000), sample_singles(224)
    write(tmp_path / "a.l.hdr", header, events, singles)
    back = petlink.read(tmp_path / "a.l.hdr")
    assert back.header == header and back.warnings == ()
    blocks = list(back.blocks())
    got = np.concatenate([b.events for b in blocks])
    wanted = cleared(events, petlink.HOLDS)
    # A LOR has no direction in an address: ends may change places together.
    turned = got["crystal1"] != wanted["crystal1"]
    for a, b in (("crystal1", "crystal2"), ("ring1", "ring2")):
        wanted[a][turned], wanted[b][turned] = wanted[b][turned].copy(), wanted[a][turned].copy()
    assert np.array_equal(got, wanted)
    assert turned.any() and not turned.all()
    assert np.array_equal(np.concatenate([b.singles for b in blocks]), singles)


def test_every_address_comes_back(tmp_path):
    header = mmr_header("time", "delayeds")
    layout_bins = 344 * 252 * 4084
    addresses = np.random.default_rng(0).integers(0, layout_bins, 20_000)
    words = np.concatenate([[0x80000000], addresses | 0x40000000]).astype("<u4")
    write(tmp_path / "a.l.hdr", header, sample_events(header.scanner, 1))
    (tmp_path / "a.l").write_bytes(words.tobytes())
    text = (tmp_path / "a.l.hdr").read_text().replace("word counts:=1001", f"word counts:={len(words)}")
    (tmp_path / "a.l.hdr").write_text(text)
    events = all_events(petlink.read(tmp_path / "a.l.hdr"))
    write(tmp_path / "b.l.hdr", header, events)
    again = np.fromfile(tmp_path / "b.l", "<u4")
    assert np.array_equal(again[again >> 31 == 0] & 0x3FFFFFFF, addresses)


@pytest.fixture
def scan(tmp_path):
    header = mmr_header("time", "delayeds")
    write(tmp_path / "a.l.hdr", header, sample_events(header.scanner, 3000))
    return tmp_path / "a.l.hdr"


def words_of(scan):
    return np.fromfile(scan.with_name("a.l"), "<u4")


def damaged(scan, words):
    scan.with_name("a.l").write_bytes(words if isinstance(words, bytes) else words.astype("<u4").tobytes())
    return petlink.read(scan)


def read_until_damage(source):
    events, line = 0, ""
    try:
        for block in source.blocks():
            events += len(block.events)
    except DamagedError as error:
        line = str(error)
    assert line and "\n" not in line and f"after {events} events" in line
    return events, line


def test_an_address_beyond_the_scanner(scan):
    words = words_of(scan)
    where = np.flatnonzero(words >> 31 == 0)[1234]
    words[where] = 0x40000000 | 344 * 252 * 4084
    events, line = read_until_damage(damaged(scan, words))
    assert events == 1234 and f"byte {4 * where}" in line and "address" in line


def test_time_that_runs_backwards(scan):
    words = words_of(scan)
    tags = np.flatnonzero(words >> 29 == 4)
    words[tags[500]] = 0x80000000 | 3
    events, line = read_until_damage(damaged(scan, words))
    assert events == (words[: tags[500]] >> 31 == 0).sum() and f"byte {4 * tags[500]}" in line and "backwards" in line


def test_a_file_that_ends_within_a_word(scan):
    words = words_of(scan)
    events, line = read_until_damage(damaged(scan, words.tobytes()[:-2]))
    assert events == (words[:-1] >> 31 == 0).sum() and "within a word" in line


def test_a_file_shorter_than_its_header_says(scan):
    short = damaged(scan, words_of(scan)[:-100])
    assert len(short.warnings) == 1 and "missing" in short.warnings[0]
    list(short.blocks())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda scan: scan.with_name("a.l").write_bytes(b""), "empty"),
        (lambda scan: scan.with_name("a.l").write_bytes(words_of(scan).astype(">u4").tobytes()), "swapped"),
        (lambda scan: scan.with_name("a.l").unlink(), "missing"),
        (lambda scan: scan.write_text("hello"), "does not begin with"),
        (lambda scan: scan.write_text(scan.read_text().replace("(bits):=32", "(bits):=64")), "64-bit"),
        (lambda scan: scan.write_text(scan.read_text().replace("rings:=64", "rings:=80")), "number of rings"),
        (lambda scan: scan.write_text(scan.read_text().replace("rings:=64", "rings:=many")), "is no number"),
        (lambda scan: scan.write_text(scan.read_text().replace("projections:=", "projection:=")), "has no 'number of proj"),
        (lambda scan: scan.write_text(scan.read_text().replace("system:=2008", "system:=1")), "--scanner"),
        (lambda scan: scan.write_text(""), "empty"),
        (lambda scan: scan.write_text(scan.read_text().replace("compression:=1", "compression:=11")), "span 1"),
    ],
)
def test_other_damage_is_told_at_once(scan, change, part):
    change(scan)
    with pytest.raises(DataError, match=part) as caught:
        petlink.read(scan)
    assert "\n" not in str(caught.value)


def test_the_uptake_may_pass_midnight(scan):
    times = ["study time (hh:mm:ss GMT+00:00):=00:30:00", "tracer injection time (hh:mm:ss GMT+00:00):=23:30:00"]
    times = "\n".join([*times, "isotope name:=F-18", ""])
    scan.write_text(scan.read_text() + times)
    assert petlink.read(scan).header.injection.uptake_s == 3600


def test_a_patient_who_lies_otherwise(scan):
    scan.write_text(scan.read_text() + "patient orientation:=FFS\n")
    assert "FFS" in petlink.read(scan).warnings[0]


def test_another_headers_data_are_not_replaced(scan):
    header = petlink.read(scan).header
    scan.rename(scan.with_name("other.hdr"))
    with pytest.raises(UsageError, match="belongs to another header"), petlink.create(scan, header):
        pass


def test_data_without_times_are_refused(tmp_path):
    with pytest.raises(UsageError, match="without times"), petlink.create(tmp_path / "a.l.hdr", mmr_header("delayeds")):
        pass


def test_nothing_half_written_remains(tmp_path):
    header = mmr_header("time")
    with pytest.raises(DataError, match="no bin address"), petlink.create(tmp_path / "a.l.hdr", header) as put:
        events = sample_events(header.scanner, 100)
        put(Block(events))
        events["crystal2"] = (events["crystal1"] + 9) % 504
        put(Block(events))
    assert list(tmp_path.iterdir()) == []


def test_real_words_survive_decoding_and_encoding(mmr_scan, tmp_path):
    scan = petlink.read(mmr_scan)
    with petlink.create(tmp_path / "out.l.hdr", scan.header) as put:
        for block in scan.blocks():
            put(block)
    before, after = (np.fromfile(p, "<u4") for p in (mmr_scan.with_name("small_listmode_file.l"), tmp_path / "out.l"))
    assert np.array_equal(before[before >> 31 == 0], after[after >> 31 == 0])
