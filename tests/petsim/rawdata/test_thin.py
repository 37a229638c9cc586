"""Dose ladders of list-mode data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listmode_samples import all_events, cleared, in_memory, mmr_header, sample_events, sample_singles
from scipy import stats

from data_recipes.errors import DataError, UsageError
from petsim.dose import DoseLadder
from petsim.geometry.scanner import load_scanner
from petsim.rawdata import hdf5, petlink
from petsim.rawdata.events import DamagedError, Dose, Header, Listmode
from petsim.rawdata.formats import open_listmode
from petsim.rawdata.ladder_files import convert_file, thin_file
from petsim.rawdata.thin import Ladder, thin, window_s

COUNT = 40_000
DRFS = (1.0, 2.5, 4.0, 10.0)


@pytest.fixture(scope="module")
def source():
    header = mmr_header("time", "delayeds", "labels", "singles")
    return in_memory(header, cleared(sample_events(header.scanner, COUNT), header.fields), sample_singles(3), at_once=7001)


def run(source, folder, mode="thin", seed=0, complement=False, drfs=DRFS, **more):
    def name(drf, other):
        return folder / f"x{drf:g}{'c' if other else ''}.lm.h5"

    result = thin(source, Ladder(drfs, mode, seed, complement), name, **more)
    return result, {p.name.removeprefix("x").removesuffix(".lm.h5"): all_events(hdf5.read(p)) for p in folder.iterdir()}


def as_rows(events: np.ndarray) -> set[bytes]:
    return {e.tobytes() for e in events}


def test_counts_lie_within_binomial_limits(source, tmp_path):
    result, made = run(source, tmp_path)
    for drf in DRFS[1:]:
        kept = len(made[f"{drf:g}"])
        assert result["prompts"][f"{drf:g}"] + result["delayeds"][f"{drf:g}"] == kept
        assert stats.binomtest(kept, COUNT, 1 / drf).pvalue > 1e-4


def test_doses_are_nested_and_complements_exact(source, tmp_path):
    _, made = run(source, tmp_path, complement=True)
    everything = all_events(source)
    assert as_rows(made["10"]) < as_rows(made["4"]) < as_rows(made["2.5"]) < as_rows(everything)
    for drf in DRFS[1:]:
        parts = [made[f"{drf:g}"], made[f"{drf:g}c"]]
        assert len(parts[0]) + len(parts[1]) == COUNT
        together = np.concatenate(parts)
        assert np.array_equal(
            np.sort(together, order=together.dtype.names), np.sort(everything, order=everything.dtype.names)
        )


def test_a_dose_does_not_depend_on_the_others_or_on_blocks(source, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    _, together = run(source, tmp_path / "a")
    other = in_memory(source.header, all_events(source), at_once=333)
    _, alone = run(other, tmp_path / "b", drfs=(1.0, 10.0))
    assert np.array_equal(together["10"], alone["10"])


def test_events_keep_their_distributions_in_time_and_space(source, tmp_path):
    _, made = run(source, tmp_path)
    full, low = all_events(source), made["4"]
    assert stats.ks_2samp(full["time_ms"], low["time_ms"]).pvalue > 1e-3
    for column in ("crystal1", "ring1"):
        expected = np.bincount(full[column] // 8).astype(float)
        found = np.bincount(low[column] // 8, minlength=len(expected))
        p = len(low) / len(full)
        used = expected > 50
        chi2 = ((found - p * expected) ** 2 / (p * (1 - p) * expected))[used].sum()
        assert stats.chi2.sf(chi2, used.sum() - 1) > 1e-3
    # Successive decisions are independent: gaps between kept indices are geometric.
    levels = DoseLadder(DRFS, 0, "events", 0).levels(COUNT)
    gaps = np.diff(np.flatnonzero(levels >= 3)) - 1
    found = np.bincount(gaps, minlength=40)[:20]
    expected = len(gaps) * 0.25 * 0.75 ** np.arange(20)
    assert stats.chi2.sf(((found - expected) ** 2 / expected).sum(), 19) > 1e-3


def test_levels_of_pieces_are_those_of_the_whole():
    ladder = DoseLadder(DRFS, 5, "events", 0)
    whole = ladder.levels(10_000)
    for first, size in ((0, 1), (1, 2), (3, 1021), (1023, 3000), (9_999, 1)):
        assert np.array_equal(ladder.levels(size, first), whole[first : first + size])
    shares = np.repeat(1 / np.array(DRFS, np.float32)[:, None], 500, axis=1)
    assert np.array_equal(ladder.levels(500, 77, shares), whole[77:577])


def test_a_share_of_zero_keeps_nothing_and_of_one_everything():
    shares = np.zeros((3, 1000), np.float32)
    shares[:2] = 1
    assert (DoseLadder((1.0, 2.0, 4.0), 0, "events", 0).levels(1000, 0, shares) == 2).all()


def test_window_is_the_middle_of_the_scan(source, tmp_path):
    _, made = run(source, tmp_path, mode="window")
    for drf in DRFS[1:]:
        back = hdf5.read(tmp_path / f"x{drf:g}.lm.h5")
        assert back.header.duration_s == pytest.approx(1 / drf, abs=0.001)
        assert back.header.start_s + back.header.duration_s / 2 == pytest.approx(0.5, abs=0.001)
        times = made[f"{drf:g}"]["time_ms"] / 1000
        start, end = window_s(source.header, drf)
        everything = all_events(source)["time_ms"] / 1000
        assert len(times) == ((everything >= start) & (everything < end)).sum()
        singles = np.concatenate([b.singles for b in back.blocks()])
        assert all(start <= t / 1000 < end for t in singles["time_ms"])
    assert as_rows(made["10"]) < as_rows(made["4"]) < as_rows(made["2.5"])


def test_a_window_of_a_scan_that_starts_later():
    header = replace(mmr_header("time"), start_s=2.0, duration_s=4.0)
    assert window_s(header, 2.0) == (3.0, 5.0)


def test_delayeds_are_left_out_where_a_format_cannot_hold_them(source, tmp_path):
    header = replace(source.header, scanner=load_scanner("biograph_mmr"))
    result = thin(replace(source, header=header), Ladder((1.0, 4.0), "thin", 0), lambda drf, other: tmp_path / "a.cdh")
    assert len(all_events(open_listmode(tmp_path / "a.cdh"))) == result["prompts"]["4"]


def test_what_is_known_of_a_dose_is_stored(source, tmp_path):
    run(source, tmp_path, seed=9, complement=True)
    low = hdf5.read(tmp_path / "x4c.lm.h5")
    assert low.header.dose == Dose(4.0, "thin", 9, True)
    assert np.array_equal(np.concatenate([b.singles for b in low.blocks()]), sample_singles(3))
    with pytest.raises(DataError, match="thin the full dose"):
        thin(low, Ladder(DRFS, "thin", 0), lambda drf, other: tmp_path / "y.lm.h5")


def test_fields_that_a_format_cannot_hold_are_told(source, tmp_path):
    result = thin(source, Ladder((1.0, 4.0), "thin", 0), lambda drf, other: tmp_path / "a.l.hdr")
    assert len(result["warnings"]) == 1 and "cannot hold labels" in result["warnings"][0]


def damaged(source: Listmode) -> Listmode:
    def blocks():
        first = next(iter(source.blocks()))
        yield first
        raise DamagedError("x", "a hole", "byte 5", len(first.events))

    return Listmode("x", source.header, blocks)


def test_a_damaged_file_leaves_nothing_unless_salvaged(source, tmp_path):
    with pytest.raises(DamagedError, match="--salvage"):
        run(damaged(source), tmp_path)
    assert list(tmp_path.iterdir()) == []
    result, made = run(damaged(source), tmp_path, salvage=True)
    last = int(next(iter(source.blocks())).events["time_ms"][-1])
    assert hdf5.read(tmp_path / "x4.lm.h5").header.duration_s == pytest.approx((last + 1) / 1000)
    assert len(made) == 3 and 7001 / 4 * 0.8 < len(made["4"]) < 7001 / 4 * 1.2
    assert "a hole at byte 5, after 7001 events" in result["warnings"][0]


def test_a_window_without_times_is_refused(tmp_path):
    header = mmr_header("delayeds")
    with pytest.raises(DataError, match="no times"):
        run(in_memory(header, sample_events(header.scanner, 10)), tmp_path, mode="window")


def test_a_complement_of_a_window_is_refused():
    with pytest.raises(UsageError, match="--complement"):
        Ladder(DRFS, "window", 0, True)


def test_files_from_the_command_line(source, tmp_path):
    with hdf5.create(tmp_path / "scan.lm.h5", source.header) as put:
        for block in source.blocks():
            put(block)
    result = thin_file(str(tmp_path / "scan.lm.h5"), str(tmp_path / "out"), (4.0, 2.5, 1.0), "thin", 0, format=".l.hdr")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "scan_drf2.5.l", "scan_drf2.5.l.hdr", "scan_drf4.l", "scan_drf4.l.hdr",
    ]  # fmt: skip
    back = petlink.read(tmp_path / "out" / "scan_drf4.l.hdr")
    assert len(all_events(back)) == result["prompts"]["4"] + result["delayeds"]["4"]
    converted = convert_file(str(tmp_path / "scan.lm.h5"), str(tmp_path / "b.l.hdr"))
    assert converted["prompts"] + converted["delayeds"] == COUNT and "labels" in converted["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"input": "none.lm.h5"}, "no such file"),
        ({"input": "scan.xyz"}, "no list-mode format"),
        ({"format": ".xyz"}, "no list-mode format"),
        ({"drfs": (1.0,)}, "--drf"),
    ],
)
def test_wrong_arguments(arguments, part, tmp_path):
    header = Header(mmr_header().scanner, 1.0)
    with hdf5.create(tmp_path / "scan.lm.h5", header):
        pass
    given = {"input": "scan.lm.h5", "drfs": (4.0,), "mode": "thin", "seed": 0, "out": str(tmp_path / "out")} | arguments
    given["input"] = str(tmp_path / Path(given["input"]).name)
    with pytest.raises((DataError, UsageError), match=part):
        thin_file(**given)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
