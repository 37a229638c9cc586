"""PETSIRD: events, geometry and conventions against the package petsird; round trips; damaged files."""

import io
import types
from dataclasses import replace
from itertools import pairwise

import numpy as np
import petsird
import pytest
from listmode_samples import all_events, in_memory, sample_events, sample_singles
from petsird.helpers import expand_detection_bin, generator
from petsird.helpers.geometry import get_detecting_box

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.geometry.scanner import Scanner, load_scanner, tof_ps_to_mm
from petsim.rawdata import petsird as fmt
from petsim.rawdata import petsird_geometry, varints
from petsim.rawdata.events import EVENT, SINGLES, Block, DamagedError, Dose, Elements, Header, lost_fields

MMR, VISION = load_scanner("biograph_mmr"), load_scanner("biograph_vision_600")
ONE_LAYER = replace(generator.mtype0_def, num_crystals_per_module=(1, 4, 7))
FDG = Injection("F-18", "FDG", 212.3, 3600.5, 70.4)


def float32(*values):
    return np.array(values, np.float32)


def information(kinds, tof_bins=1):
    """A scanner of module types (modules, elements, energy bins), all at one place, with `tof_bins` for any pair."""
    here = petsird.RigidTransformation(matrix=np.eye(3, 4, dtype=np.float32))
    corners = [petsird.Coordinate(c=float32(x, y, z)) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    box = petsird.BoxSolidVolume(shape=petsird.BoxShape(corners=corners))
    made = []
    for modules, elements, _ in kinds:
        inside = petsird.ReplicatedBoxSolidVolume(object=box, transforms=[here] * elements)
        module = petsird.DetectorModule(detecting_elements=inside)
        made.append(petsird.ReplicatedDetectorModule(object=module, transforms=[here] * modules))
    edges = petsird.BinEdges(edges=np.linspace(-300, 300, tof_bins + 1, dtype=np.float32))
    return petsird.ScannerInformation(
        model_name="heap", scanner_geometry=petsird.ScannerGeometry(replicated_modules=made),
        tof_bin_edges=[[edges] * (t + 1) for t in range(len(kinds))],
        tof_resolution=[[9.0] * (t + 1) for t in range(len(kinds))],
        event_energy_bin_edges=[petsird.BinEdges(edges=np.linspace(400, 700, n + 1, dtype=np.float32)) for _, _, n in kinds],
        energy_resolution_at_511=[0.1] * len(kinds),
    )  # fmt: skip


def event_block(start, prompts, delayeds=(), stop=None, **others):
    """A time block of events (bin, bin, TOF bin) by pair of types."""

    def lists(rows):
        return [
            [[petsird.CoincidenceEvent(detection_bins=[int(a), int(b)], tof_idx=int(t)) for a, b, t in some] for some in row]
            for row in rows
        ]

    interval = petsird.TimeInterval(start=start, stop=start + 1 if stop is None else stop)
    return petsird.TimeBlock.EventTimeBlock(
        petsird.EventTimeBlock(
            time_interval=interval, prompt_events=lists(prompts), delayed_events=lists(delayeds), **others
        )
    )


def write_by_package(path, scanner, *streams, exam=None):
    """Time blocks of every stream; a list is written as one batch."""
    with path.open("wb") as file, petsird.BinaryPETSIRDWriter(file) as writer:
        writer.write_header(petsird.Header(scanner=scanner, exam=exam))
        for stream in streams:
            writer.write_time_blocks(stream)
    return path


def contents(path):
    """Header and time blocks by the package."""
    with path.open("rb") as file, petsird.BinaryPETSIRDReader(file) as reader:
        return reader.read_header(), list(reader.read_time_blocks())


def events_by_package(path):
    """All coincidences of pairs of types that exist, as `EVENT` has them without rings."""
    header, blocks = contents(path)
    scanner = header.scanner
    modules = [len(m.transforms) for m in scanner.scanner_geometry.replicated_modules]
    before, energies = np.cumsum([0, *modules]), max(e.number_of_bins() for e in scanner.event_energy_bin_edges) > 1
    found = []
    for block in blocks:
        if not isinstance(block, petsird.TimeBlock.EventTimeBlock):
            continue
        for delayed, lists in enumerate((block.value.prompt_events, block.value.delayed_events)):
            for row in range(min(len(lists), len(modules))):
                for column in range(row + 1):
                    for e in lists[row][column]:
                        ends, kev = [], []
                        for kind, detection in zip((row, column), e.detection_bins, strict=True):
                            place = expand_detection_bin(scanner, kind, detection)
                            edges = scanner.event_energy_bin_edges[kind].edges.astype(float)
                            ends += [place.element_index, place.module_index + before[kind]]
                            kev.append(edges[place.energy_index : place.energy_index + 2].mean() if energies else 0)
                        found.append((block.value.time_interval.start, *ends, e.tof_idx, delayed, 0, *kev))
    return np.array(found, EVENT)


def write(path, header, events, singles=None):
    with fmt.create(path, header) as put:
        for block in in_memory(header, events, singles).blocks():
            put(block)
    return path


def canonical(events, tof_bins=1):
    """Events with the higher crystal first, in an order that does not depend on how they were stored."""
    out = events.copy()
    out["label"] = 0
    turn = (events["crystal1"] < events["crystal2"]) | (
        (events["crystal1"] == events["crystal2"]) & (events["ring1"] < events["ring2"])
    )
    for a, b in (("crystal1", "crystal2"), ("ring1", "ring2"), ("energy1_kev", "energy2_kev")):
        out[a][turn], out[b][turn] = events[b][turn], events[a][turn]
    out["tof_bin"][turn] = tof_bins - 1 - events["tof_bin"][turn]
    return np.sort(out)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A file of the package's own generator, with fewer modules."""
    path = tmp_path_factory.mktemp("demo") / "demo.petsird"
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generator,
            "mtype0_def",
            replace(generator.mtype0_def, num_modules_along_ring=4, num_crystals_per_module=(2, 2, 3)),
        )
        patch.setattr(
            generator,
            "mtype1_def",
            replace(generator.mtype1_def, num_modules_along_ring=3, num_crystals_per_module=(1, 3, 4)),
        )
        patch.setattr(generator, "COUNT_RATE", 60.0)
        patch.setattr(generator.sys, "stdout", types.SimpleNamespace(buffer=buffer))
        generator.generate()
    path.write_bytes(buffer.getvalue())
    return path


def test_the_generators_file(demo):
    scan = fmt.read(demo)
    assert scan.header.scanner == Elements("PETSIRD_TEST", 12, 11)
    assert scan.header.fields == {"time", "tof", "energies", "injection"}
    assert (scan.header.tof_bins, scan.header.tof_bin_ps) == (11, 0.0)
    assert (scan.header.start_s, scan.header.duration_s) == (0.0, 0.006)
    assert scan.header.injection == Injection(tracer="unknown", weight_kg=65.0)
    events = all_events(scan)
    assert len(events) > 600 and np.array_equal(events, events_by_package(demo))
    # The generator writes the row of the second type twice.
    twice = sum(len(some) for block in contents(demo)[1] for some in block.value.prompt_events[2])
    assert scan.header.native.left_out == {"coincidences of module types that the scanner does not have": twice}
    assert "TOF bins are not the same" in scan.warnings[0] and f"{twice} coincidences" in scan.warnings[1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three module types, detection bins of one to five bytes, empty blocks, batches of several blocks."""
    kinds, random = [(30, 500, 400), (2, 7000, 250_000), (1, 3, 1)], np.random.default_rng(0)
    bins = [m * e * n for m, e, n in kinds]

    def some(row, column, count):
        low = random.uniform(0, 1, (2, count))
        ends = [(bins[t] ** low[k]).astype(np.int64) - 1 for k, t in enumerate((row, column))]
        ends[0][::3], ends[1][1::3] = bins[row] - 1 - np.arange(len(ends[0][::3])) % 2, 0
        return list(zip(*ends, random.integers(0, 300, count), strict=True))

    def lists(count):
        return [[[e for e in some(r, c, count) if not same(r, c, e)] for c in range(r + 1)] for r in range(3)]

    def same(row, column, e):
        return row == column and e[0] // kinds[row][2] == e[1] // kinds[column][2]

    blocks = [event_block(5 * k, lists(count), lists(count // 2)) for k, count in enumerate((0, 40, 1, 0, 130, 7, 300, 0))]
    path = tmp_path_factory.mktemp("many") / "many.petsird"
    return write_by_package(path, information(kinds, 300), blocks[:3], (), iter(blocks[3:5]), blocks[5:])


def test_large_numbers_empty_blocks_and_many_pairs_of_types(many, monkeypatch):
    expected = events_by_package(many)
    scan = fmt.read(many)
    assert len(expected) > 3000 and np.array_equal(all_events(scan), expected)
    assert scan.header.fields == {"time", "tof", "energies", "delayeds"}
    assert (scan.header.start_s, scan.header.duration_s) == (0.0, 0.036)
    assert scan.header.tof_bin_ps == pytest.approx(2 / tof_ps_to_mm(1.0))
    # However the file is cut into pieces and events into blocks; a pass may begin anew.
    monkeypatch.setattr(fmt, "AT_ONCE", 11)
    for chunk in (64, 101):
        monkeypatch.setattr(varints, "CHUNK", chunk)
        blocks = [block.events for block in fmt.read(many).blocks()]
        assert max(map(len, blocks)) <= 11 and np.array_equal(np.concatenate(blocks), expected)
    assert np.array_equal(all_events(scan), expected)


def test_what_is_no_coincidence_is_left_out_and_told(tmp_path):
    random = np.random.default_rng(1)
    move = petsird.RigidTransformation(matrix=random.random((3, 4), np.float32))
    span = petsird.TimeInterval(start=0, stop=300)
    ragged = np.empty((2,), object)
    ragged[:] = [[[0.5] * 40], [[0.1, 0.2], []]]
    alive = petsird.AliveTimeFractions(
        singles_alive_time_fractions=[random.random(300, np.float32)], module_pair_alive_time_fractions=[[ragged], []]
    )
    triple = petsird.TripleEvent(detection_bins=[300, 2, 1], tof_indices=[0, 70000])
    others = {
        "single_events": [[petsird.SingleEvent(detection_bin=300, time_offset_in_time_block=k << 20) for k in range(4000)]],
        "triple_events": [[[[triple] * 3]]], "quadruple_events": [[[[[triple] * 2]]]],
    }  # fmt: skip
    kinds = petsird.TimeBlock
    blocks = [
        kinds.BedMovementTimeBlock(petsird.BedMovementTimeBlock(time_interval=span, transform=move)),
        kinds.DeadTimeTimeBlock(petsird.DeadTimeTimeBlock(time_interval=span, alive_time_fractions=alive)),
        event_block(7, [[[(300, 2, 0)] * 9]], [], **others),
        kinds.ExternalSignalTimeBlock(
            petsird.ExternalSignalTimeBlock(time_interval=span, signal_id=300, signal_values=[0.5] * 5000)
        ),
        kinds.GantryMovementTimeBlock(petsird.GantryMovementTimeBlock(time_interval=span, transforms=[move] * 3)),
        event_block(9, [[[(299, 4, 0)] * 5]], [], **others),
    ]
    path = write_by_package(tmp_path / "all.petsird", information([(20, 20, 1)]), blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varints, "CHUNK", 128)
        scan = fmt.read(path)
        events = all_events(scan)
    assert np.array_equal(events, events_by_package(path)) and len(events) == 14
    assert scan.header.fields == {"time"}
    assert scan.header.native.left_out == {
        "single events": 8000, "triples": 6, "quadruples": 4, "external signal time blocks": 1,
        "bed movement time blocks": 1, "gantry movement time blocks": 1, "dead time time blocks": 1,
    }  # fmt: skip
    assert "left out are 8000 single events" in scan.warnings[0]


def test_singles_of_units_and_of_elements(tmp_path):
    scanner = information([(2, 2, 1), (3, 1, 2)])

    def singles(start, stop, units=(), elements=()):
        return petsird.TimeBlock.SinglesHistogramTimeBlock(
            petsird.SinglesHistogramTimeBlock(
                time_interval=petsird.TimeInterval(start=start, stop=stop),
                singles_per_singles_unit_histogram=list(units),
                singles_per_detection_bin_histogram=list(elements),
            )
        )

    units = [singles(0, 500, [[0], [3, 4], [0]]), singles(500, 1000, [[0], [0, 0], [1 << 40]])]
    path = write_by_package(tmp_path / "units.petsird", scanner, [event_block(0, [[[]], [[], []]], stop=1000), *units])
    found = np.concatenate([block.singles for block in fmt.read(path).blocks()])
    # No record before the first count of a unit, but one when it is silent later.
    assert found.tolist() == [(0, 1, 14.0), (500, 1, 0.0), (500, 2, 2.0 * (1 << 40))]
    elements = [singles(100, 200, (), [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10]])]
    path = write_by_package(tmp_path / "elements.petsird", scanner, [event_block(0, [[[]], [[], []]], stop=1000), *elements])
    scan = fmt.read(path)
    assert "singles" in scan.header.fields
    expected = [(100, m, 10.0 * n) for m, n in enumerate((3, 7, 11, 15, 19))]
    assert next(scan.blocks()).singles.tolist() == expected
    again = write(tmp_path / "again.petsird", scan.header, all_events(scan), next(scan.blocks()).singles)
    assert next(fmt.read(again).blocks()).singles.tolist() == expected


def test_a_file_with_one_time_block_has_no_times(tmp_path):
    path = write_by_package(
        tmp_path / "one.petsird", information([(2, 2, 1)]), [event_block(500, [[[(3, 0, 0)]]], stop=9000)]
    )
    scan = fmt.read(path)
    assert scan.header.fields == set() and (scan.header.start_s, scan.header.duration_s) == (0.5, 8.5)
    events = all_events(scan)
    assert events["time_ms"].tolist() == [0]
    again = write(tmp_path / "again.petsird", scan.header, events)
    assert contents(again)[1] == contents(path)[1]


ROUND_TRIPS = (
    (MMR, 1, 0.0, ("time", "delayeds", "singles", "injection")),
    (VISION, 264, 17.903875, ("time", "tof", "delayeds", "energies", "injection")),
    (load_scanner("discovery_mi_3ring"), 27, 180.0, ("tof", "time")),
)


@pytest.mark.parametrize(("scanner", "bins", "width_ps", "fields"), ROUND_TRIPS)
def test_round_trip(tmp_path, scanner, bins, width_ps, fields):
    events = sample_events(scanner, 3000, tof_bins=bins)
    if "energies" in fields:
        events["energy1_kev"], events["energy2_kev"] = events["energy1_kev"] // 1 + 0.5, events["energy2_kev"] // 1 + 0.5
    else:
        events["energy1_kev"] = events["energy2_kev"] = 0
    if "delayeds" not in fields:
        events["is_delayed"] = 0
    injection = FDG if "injection" in fields else Injection()
    header = Header(scanner, 1.5, 0.0, bins, width_ps, frozenset(fields), injection)
    singles = sample_singles(40) if "singles" in fields else None
    path = write(tmp_path / "a.petsird", header, events, singles)
    scan = fmt.read(path)
    assert scan.header.tof_bin_ps == pytest.approx(width_ps, rel=1e-6)
    assert replace(scan.header, tof_bin_ps=width_ps) == header and scan.warnings == ()
    blocks = list(scan.blocks())
    found = np.concatenate([block.events for block in blocks])
    assert np.array_equal(canonical(found, bins), canonical(events, bins))
    if singles is not None:
        kept = np.concatenate([block.singles for block in blocks])
        assert np.array_equal(kept[["time_ms", "block"]], singles[["time_ms", "block"]])
        assert np.abs(kept["cps"] - singles["cps"]).max() <= 5.0  # half a count in 100 ms
    # The package reads the same events, in order, in time blocks that fill the scan.
    has_delayeds = contents(path)[0].scanner.delayed_event_policy != petsird.CoincidencePolicy.NONE
    assert has_delayeds == ("delayeds" in fields)
    blocks = [b.value for b in contents(path)[1] if isinstance(b, petsird.TimeBlock.EventTimeBlock)]
    pairs = [
        e.detection_bins for b in blocks for lists in (b.prompt_events, b.delayed_events) for row in lists for e in row[0]
    ]
    assert len(pairs) == len(events) and all(a >= b for a, b in pairs)
    spans = [(b.time_interval.start, b.time_interval.stop) for b in blocks]
    assert spans[0][0] == 0 and spans[-1][1] == 1500 and all(a[1] == b[0] for a, b in pairwise(spans))
    # What was read is written again as it was.
    again = write(tmp_path / "b.petsird", scan.header, found, singles)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["biograph_mct", "discovery_mi_3ring"])
def test_elements_lie_where_crystals_do_and_tof_bins_on_the_same_side(tmp_path, name):
    scanner = load_scanner(name)
    bins = 27
    events = sample_events(scanner, 40, tof_bins=bins)
    events["is_delayed"] = 0
    header = Header(scanner, 1.0, 0.0, bins, 180.0, frozenset({"time", "tof"}))
    made, blocks = contents(write(tmp_path / "a.petsird", header, events))
    found = [e for b in blocks for row in b.value.prompt_events for e in row[0]]
    edges = made.scanner.tof_bin_edges[0][0].edges

    def center(detection):
        box = get_detecting_box(made.scanner, 0, expand_detection_bin(made.scanner, 0, detection))
        return np.mean([c.c for c in box.corners], axis=0)

    theirs = []
    for e in found:
        ends = [center(d) for d in e.detection_bins]
        along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
        # Their bins are of (t1 - t2) c/2: a positive one lies beyond the middle, toward the second.
        theirs.append([np.mean(ends, axis=0) + along * edges[e.tof_idx : e.tof_idx + 2].mean(), *sorted(map(tuple, ends))])

    ours = []
    middle = replace(scanner, interaction_depth_mm=scanner.crystal_size_mm[2] / 2)
    for e in events:
        ends = [
            np.array([*middle.crystal_xy_mm(np.array(c + 0.5)), middle.ring_z_mm(np.array(float(r)))])
            for c, r in ((int(e["crystal1"]), e["ring1"]), (int(e["crystal2"]), e["ring2"]))
        ]
        along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
        shift = (e["tof_bin"] - (bins - 1) / 2) * tof_ps_to_mm(180.0)
        ours.append([np.mean(ends, axis=0) + along * shift, *sorted(map(tuple, ends))])
    theirs, ours = (sorted(np.round(rows, 1).reshape(-1, 9).tolist()) for rows in (theirs, ours))
    assert np.allclose(theirs, ours, atol=0.2)


def test_a_file_of_the_package_is_written_again_with_its_scanner(demo, many, tmp_path):
    for source in (demo, many):
        scan = fmt.read(source)
        again = write(tmp_path / source.name, scan.header, all_events(scan))
        before, after = contents(source)[0].scanner, contents(again)[0].scanner
        for policy in ("prompt_event_policy", "delayed_event_policy"):
            setattr(before, policy, getattr(after, policy))
        assert after == before
        # Some ends of the second file are not in the order that PETSIRD demands.
        bins = scan.header.tof_bins
        assert np.array_equal(canonical(all_events(fmt.read(again)), bins), canonical(all_events(scan), bins))
        assert source is many or np.array_equal(all_events(fmt.read(again)), all_events(scan))
        assert fmt.read(again).header == scan.header


def test_fields_taken_out_are_taken_out_of_the_scanner_too(demo, tmp_path):
    scan = fmt.read(demo)
    header = replace(scan.header, fields=frozenset({"time"}), tof_bins=1)
    events = all_events(scan)
    for name in ("tof_bin", "energy1_kev", "energy2_kev"):
        events[name] = 0
    path = write(tmp_path / "less.petsird", header, events)
    less = fmt.read(path)
    assert less.header.fields == {"time"} and np.array_equal(canonical(all_events(less)), canonical(events))
    assert contents(path)[0].exam is None
    assert contents(path)[0].scanner.event_energy_bin_edges[0].edges.tolist() == [450.0, 650.0]


def test_labels_and_dose_have_no_place(tmp_path):
    header = Header(MMR, 1.0, fields=frozenset({"time", "labels", "dose"}), dose=Dose(10.0, "thin", 1))
    assert lost_fields(header, fmt) == ["labels", "dose"]
    path = write(tmp_path / "a.petsird", header, sample_events(MMR, 10))
    assert fmt.read(path).header.fields == {"time"}


def test_nobody_is_identified(tmp_path):
    exam = petsird.ExamInformation(
        study_instance_uid="1.2.3.4", start_of_study=petsird.yardl_types.DateTime(10**18),
        start_of_acquisition=petsird.yardl_types.DateTime(10**18 + 2 * 10**12),
        patient=petsird.DICOMPatientInformation(patient_id="someID", patients_sex="F", patients_weight=70.4),
        radiopharmaceuticals=[petsird.DICOMRadiopharmaceuticalInformation(
            radionuclide_total_dose=212.3, radiopharmaceutical_start_date_time=petsird.yardl_types.DateTime(10**18),
            radiopharmaceutical_administration_event_uid="5.6.7.8",
            radionuclide_code_sequence=petsird.DICOMBasicCodeSequence(code_value="35337001"),
            radiopharmaceutical_code_sequence=petsird.DICOMBasicCodeSequence(code_meaning="Ga PSMA for Jane Doe"),
        )],
    )  # fmt: skip
    scanner = information([(2, 2, 1)])
    scanner.detection_efficiencies.method_description = "measured by Jane Doe"
    path = write_by_package(tmp_path / "a.petsird", scanner, [event_block(0, [[[(3, 0, 0)]]], stop=900)], exam=exam)
    scan = fmt.read(path)
    assert scan.header.injection == Injection("Ga-68", "PSMA", 212.3, 2000.0, 70.4)
    again = write(tmp_path / "b.petsird", scan.header, all_events(scan))
    assert fmt.read(again).header == scan.header
    for word in (b"someID", b"Jane", b"1.2.3.4", b"5.6.7.8"):
        assert word in path.read_bytes() and word not in again.read_bytes()
    written = contents(again)[0].exam
    assert written.start_of_acquisition.numpy_value < np.datetime64("1970-01-02")
    # Not both times were given.
    exam.start_of_acquisition = petsird.yardl_types.DateTime(10**18 + 10**17)
    path = write_by_package(path, scanner, [event_block(0, [[[(3, 0, 0)]]], stop=900)], exam=exam)
    assert fmt.read(path).header.injection == Injection("Ga-68", "PSMA", 212.3, None, 70.4)
    exam.radiopharmaceuticals[0].radionuclide_code_sequence = petsird.DICOMBasicCodeSequence(code_meaning="^124^Iodine")
    exam.start_of_acquisition = petsird.yardl_types.DateTime(0)
    path = write_by_package(path, scanner, [event_block(0, [[[(3, 0, 0)]]], stop=900)], exam=exam)
    scan = fmt.read(path)
    assert scan.header.injection == Injection(tracer="unknown", weight_kg=70.4) and "isotope" in scan.warnings[0]


def cylinder(kind=ONE_LAYER, material="LSO", is_centered=True):
    """One type of modules of the package's generator, which puts crystals half a crystal beside the middle."""
    scanner = information([(1, 1, 1)])
    scanner.scanner_geometry = generator.get_scanner_geometry([kind])
    if is_centered:
        for corner in scanner.scanner_geometry.replicated_modules[0].object.detecting_elements.object.shape.corners:
            corner.c = corner.c - float32(0, kind.crystal_length[1] / 2, kind.crystal_length[2] / 2)
    scanner.bulk_materials = [petsird.BulkMaterial(id=kind.material_id, name=material)]
    return scanner


def test_a_polygon_of_the_package_is_a_scanner():
    scanner, crystal, ring = petsird_geometry.detectors("x", cylinder(), None)
    assert isinstance(scanner, Scanner)
    assert (scanner.crystals_per_ring, scanner.rings, scanner.transaxial_block, scanner.axial_block) == (80, 14, 4, 7)
    assert (scanner.inner_radius_mm, scanner.transaxial_pitch_mm, scanner.ring_spacing_mm) == (400.0, 4.0, 4.0)
    assert scanner.axial_gap_mm == 96.0 and scanner.crystal_size_mm == (4.0, 4.0, 20.0)
    assert scanner.crystal_material == "LSO" and scanner.tof_bins is None and scanner.energy_window_kev == (400.0, 700.0)
    assert 7 < scanner.interaction_depth_mm < 8
    # The generator turns its modules clockwise.
    assert len({(c, r) for c, r in zip(crystal.tolist(), ring.tolist(), strict=True)}) == 80 * 14
    assert crystal.reshape(20, 2, 4, 7)[1, 0, :, 0].tolist() == [76, 77, 78, 79]


def test_elements_beside_the_middle_of_their_module_are_on_a_circle_with_virtual_crystals():
    made = cylinder(is_centered=False)
    scanner, crystal, ring = petsird_geometry.detectors("x", made, None)
    assert isinstance(scanner, Scanner)
    assert scanner.transaxial_pitch_mm is None and scanner.transaxial_block_real == 4 and scanner.crystals_per_ring == 640
    middle = replace(scanner, interaction_depth_mm=scanner.crystal_size_mm[2] / 2)
    for element in (0, 9, 500, 1119):
        place = petsird.ExpandedDetectionBin(module_index=element // 28, element_index=element % 28)
        center = np.mean([c.c for c in get_detecting_box(made, 0, place).corners], axis=0)
        z = middle.ring_z_mm(np.array(float(ring[element]))) + 2.0
        assert np.allclose(center, [*middle.crystal_xy_mm(np.array(crystal[element] + 0.5)), z], atol=0.2)


def test_what_forms_no_rings_or_does_not_tell_its_material():
    shifted = cylinder()
    shifted.scanner_geometry.replicated_modules[0].transforms[3].matrix[2, 3] += 0.5
    lost = cylinder()
    del lost.scanner_geometry.replicated_modules[0].transforms[3]
    two_layers = cylinder(generator.mtype0_def)
    twice = cylinder()
    twice.scanner_geometry.replicated_modules[0].transforms.append(
        twice.scanner_geometry.replicated_modules[0].transforms[3]
    )
    for scanner in (shifted, lost, twice, two_layers, cylinder(material="plastic"), cylinder(generator.mtype1_def)):
        assert isinstance(petsird_geometry.detectors("x", scanner, None)[0], Elements)
    told = petsird_geometry.detectors("x", cylinder(), None)[0]
    assert isinstance(told, Scanner)
    assert petsird_geometry.detectors("x", cylinder(material="plastic"), told)[0] is told
    with pytest.raises(DataError, match=r"--scanner .*do not lie where the detecting elements of x do"):
        petsird_geometry.detectors("x", shifted, told)
    for wrong, scanner in ((cylinder(), replace(told, inner_radius_mm=401.0)), (lost, told), (twice, told)):
        with pytest.raises(DataError, match="do not lie"):
            petsird_geometry.detectors("x", wrong, scanner)


@pytest.mark.parametrize(
    "name", ["biograph_mmr", "biograph_mct", "biograph_vision_quadra", "discovery_mi_3ring", "vereos", "umi_550"]
)
def test_our_scanners_are_found_by_name_and_by_their_elements(name):
    scanner = load_scanner(name)
    made, crystal, ring = petsird_geometry.information_of(scanner)
    petsird_geometry.set_edges("x", made, Header(scanner, 1.0), scanner)
    virtual = scanner.crystals_per_ring * scanner.rings - scanner.transaxial_is_real().sum() * scanner.ring_is_real().sum()
    assert len(crystal) == scanner.crystals_per_ring * scanner.rings - virtual
    known = petsird_geometry.detectors("x", made, None)
    assert known[0] == scanner and np.array_equal(known[1], crystal) and np.array_equal(known[2], ring)
    made.model_name = "another"
    derived = petsird_geometry.detectors("x", made, None)[0]
    assert isinstance(derived, Scanner)
    assert derived.crystals_per_ring == scanner.crystals_per_ring and derived.inner_radius_mm == scanner.inner_radius_mm
    assert derived.view_offset_rad == pytest.approx(scanner.view_offset_rad, abs=1e-6)
    assert derived.ring_spacing_mm == pytest.approx(scanner.ring_spacing_mm, abs=1e-4)
    assert (
        derived.transaxial_block_real * (scanner.transaxial_block_real // derived.transaxial_block_real)
        == scanner.transaxial_block_real
    )


def test_a_virtual_ring_at_the_end_moves_nothing():
    scanner = replace(load_scanner("biograph_mct"), rings=56)
    made, crystal, ring = petsird_geometry.information_of(scanner)
    known = petsird_geometry.detectors("x", made, scanner)
    assert known[0] is scanner and np.array_equal(known[1], crystal) and np.array_equal(known[2], ring)


def some_blocks(count=30):
    return [event_block(2 * k, [[[(3 + 200 * k, k, 0), (5000, k, 2)]]], [[[(4999, 1, 1)]]]) for k in range(count)]


def test_a_truncated_file_gives_what_is_before(tmp_path):
    path = write_by_package(tmp_path / "a.petsird", information([(100, 100, 1)], 3), some_blocks())
    whole, expected = path.read_bytes(), all_events(fmt.read(path))
    counts = []
    for cut in (*range(1, 60), 300):
        path.write_bytes(whole[:-cut])
        found = []
        with pytest.raises(
            DamagedError, match=r"^a\.petsird: the file ends too early at byte \d+, after \d+ events"
        ) as error:
            for block in fmt.read(path).blocks():
                found.append(block.events)
        found = np.concatenate(found)
        assert np.array_equal(found, expected[: len(found)]) and error.value.events == len(found)
        place = int(str(error.value).split("at byte ")[1].split(",")[0])
        assert len(whole) - cut - 15 <= place <= len(whole) - cut
        counts.append(len(found))
    assert counts[0] == 90 and counts[-1] < 80 and sorted(counts, reverse=True) == counts


WRONG = (
    (event_block(60, [[[(10000, 1, 0)]]]), "detection bin 10000 is beyond"),
    (event_block(60, [[[(1, 1 << 31, 0)]]]), "detection bin 2147483648 is beyond"),
    (event_block(60, [[[(9, 1, 3)]]]), "TOF bin 3 is not one of 3"),
    (event_block(60, [[[(9, 9, 1)]]]), "crystals 9 and 9 of rings 0 and 0 are not a pair of heap"),
    (event_block(57, [[[(9, 1, 1)]]]), "time runs backwards to 57 ms"),
    (event_block(60, [[[(9, 1, 1)]]], stop=59), "time runs backwards to 59 ms"),
)


@pytest.mark.parametrize(("wrong", "what"), WRONG)
def test_wrong_events_are_told_with_their_place(tmp_path, wrong, what):
    path = tmp_path / "a.petsird"
    good = event_block(58, [[[(9, 1, 1)] * 2]])
    write_by_package(path, information([(100, 100, 1)], 3), [*some_blocks(20), good])
    place = path.stat().st_size - 1
    write_by_package(path, information([(100, 100, 1)], 3), [*some_blocks(20), good, wrong, good])
    scan, found = fmt.read(path), []
    with pytest.raises(DamagedError) as error:
        for block in scan.blocks():
            found.append(block.events)
    assert sum(map(len, found)) == 62 == error.value.events
    assert what in str(error.value) and "\n" not in str(error.value)
    told = int(str(error.value).split("at byte ")[1].split(",")[0])
    # The block begins with its kind and two times; lists with a length of one each come before the event.
    assert told - place in (0, 7)


def test_other_damage_is_one_clear_line(tmp_path):
    path = tmp_path / "a.petsird"
    write_by_package(path, information([(100, 100, 1)], 3), some_blocks())
    whole = path.read_bytes()
    for content, what in (
        (b"", "begin with 'yardl'"), (b"abcd" * 100, "begin with 'yardl'"), (b"dray" + whole[4:], "begin with 'yardl'"),
        (whole[:5] + b"\0\0\0\1" + whole[9:], "another model or version"), (whole[:3], "begin with 'yardl'"),
        (whole.replace(b"promptEvents", b"promptevents", 1), "another model or version"),
        (whole[:2000], "header is damaged or ends too early"),
        (whole[: whole.index(b"heap") + 500], "header is damaged or ends too early"),
        (whole.replace(b"heap", b"\xff\xff\xff\xff", 1), "header is damaged"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(DataError, match=what) as error:
            fmt.read(path)
        assert "\n" not in str(error.value) and str(error.value).startswith("a.petsird: ")
    path.write_bytes(whole[:-1] + b"\1\x09" + whole[-1:])
    with pytest.raises(DamagedError, match="9 is no kind of time block") as error:
        all_events(fmt.read(path))
    assert error.value.events == 90
    path.write_bytes(whole[:-1] + b"\1\0\x3c\x3d\0\1\1" + b"\xff" * 9 + whole[-1:])
    with pytest.raises(DamagedError, match="a length or number cannot be"):
        all_events(fmt.read(path))
    for begin in (b"\1\5\0\1\1", b"\1\1\0\1\0"):  # singles and a signal, of a length that cannot be
        path.write_bytes(whole[:-1] + begin + b"\xff" * 7 + b"\1" + whole[-1:])
        with pytest.raises(DamagedError, match=f"the file ends too early at byte {len(whole) - 1 + len(begin) + 8},"):
            all_events(fmt.read(path))
    write_by_package(path, information([(100, 100, 1)], 3), [])
    with pytest.raises(DataError, match="holds no time block of events"):
        fmt.read(path)
    for edges in ([], [[petsird.BinEdges(edges=float32(0))]], [[petsird.BinEdges(edges=float32(0, 2, 1))]]):
        broken = information([(100, 100, 1)], 3)
        broken.tof_bin_edges = edges
        write_by_package(path, broken, some_blocks())
        with pytest.raises(DataError, match="rising edges of energy or TOF bins"):
            fmt.read(path)
    with pytest.raises(DataError, match=r"gone\.petsird: No such file"):
        fmt.read(tmp_path / "gone.petsird")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.petsird"
    header = Header(VISION, 1.0, 0.0, 264, 17.9, frozenset({"time", "tof", "energies", "singles"}))
    events = sample_events(VISION, 100, tof_bins=264)

    def refused(what, singles=None, **columns):
        wrong = events.copy()
        for name, value in columns.items():
            wrong[name][50] = value
        with pytest.raises(DataError, match=what):
            write(path, header, wrong, singles)
        assert list(tmp_path.iterdir()) == []

    refused("crystals 20 and .* are not both detecting elements of biograph_vision_600", crystal1=20)
    refused("are not both detecting elements", ring2=80)
    refused("TOF bin 264 is not one of 264", tof_bin=264)
    refused("energies 0 and .* keV are not both in the window of 435 to 585 keV", energy1_kev=0)
    refused("singles block 400 is not one of 304 modules", np.array([(0, 400, 1.0)], SINGLES))
    with pytest.raises(UsageError, match="not known of heap"):
        write(path, Header(Elements("heap", 5, 5), 1.0), events)
    with pytest.raises(DataError, match="width of TOF bins"):
        write(path, replace(header, tof_bin_ps=0.0), events)
    assert list(tmp_path.iterdir()) == []


def test_uneven_energy_bins(tmp_path):
    scanner = information([(100, 100, 4)], 3)
    scanner.event_energy_bin_edges = [petsird.BinEdges(edges=float32(400, 401, 402, 600, 601))]
    blocks = [event_block(k, [[[(4000 + e, f, 1) for e in range(4) for f in range(4)]]]) for k in range(2)]
    path = write_by_package(tmp_path / "a.petsird", scanner, blocks)
    scan = fmt.read(path)
    events = all_events(scan)
    assert sorted(set(events["energy1_kev"].tolist())) == [400.5, 401.5, 501.0, 600.5]
    assert np.array_equal(all_events(fmt.read(write(tmp_path / "b.petsird", scan.header, events))), events)
    events["energy1_kev"][:4], events["energy2_kev"][:4] = (400, 401, 590, 601), 400.1
    again = all_events(fmt.read(write(tmp_path / "b.petsird", scan.header, events)))
    assert again["energy1_kev"][:4].tolist() == [400.5, 401.5, 501.0, 600.5]


def test_uneven_tof_bins_keep_their_numbers_but_cannot_be_turned(tmp_path):
    scanner = information([(100, 100, 1)], 3)
    scanner.tof_bin_edges = [[petsird.BinEdges(edges=float32(-100, 0, 100, 300))]]
    scan = fmt.read(write_by_package(tmp_path / "a.petsird", scanner, some_blocks()))
    assert (scan.header.tof_bins, scan.header.tof_bin_ps) == (3, 0.0) and "keep their numbers" in scan.warnings[0]
    events = all_events(scan)
    again = fmt.read(write(tmp_path / "b.petsird", scan.header, events))
    assert np.array_equal(all_events(again), events)
    events["crystal1"], events["crystal2"], events["ring1"], events["ring2"] = (
        events[name].copy() for name in ("crystal2", "crystal1", "ring2", "ring1")
    )
    with pytest.raises(DataError, match="ends must change places"):
        write(tmp_path / "c.petsird", scan.header, events)


def test_a_millisecond_may_come_in_pieces(tmp_path, monkeypatch):
    events = sample_events(MMR, 400, last_ms=20)
    header = Header(MMR, 0.021, fields=frozenset({"time", "delayeds"}))
    events["energy1_kev"] = events["energy2_kev"] = 0
    with fmt.create(tmp_path / "a.petsird", header) as put:
        put(Block(events))
    for at_once, encoded in ((7, 1 << 14), (1, 64), (50, 64), (400, 64)):
        monkeypatch.setattr(fmt, "ENCODED_AT_ONCE", encoded)
        with fmt.create(tmp_path / "b.petsird", header) as put:
            for start in range(0, 400, at_once):
                put(Block(events[start : start + at_once]))
        assert (tmp_path / "b.petsird").read_bytes() == (tmp_path / "a.petsird").read_bytes()
    monkeypatch.setattr(fmt, "ENCODED_AT_ONCE", 5)
    with fmt.create(tmp_path / "b.petsird", header) as put:
        put(Block(events))
    assert np.array_equal(canonical(all_events(fmt.read(tmp_path / "b.petsird"))), canonical(events))
