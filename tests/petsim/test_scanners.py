"""The scanner library: every file loads, cites its fields, agrees with itself, and works with every preset."""

import dataclasses
import math
import tomllib
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.analytic import cylinder
from petsim.geometry.scanner import Scanner, load_scanner, parse_scanner, scanner_names
from petsim.geometry.sinogram import SinogramLayout, preset_layout, preset_merges
from petsim.physics.normalization import counts_per_activity
from petsim.plan import plan_subject
from petsim.presets import OWN_PRESETS, PRESETS
from petsim.settings import SimulationSettings

EXPECTED = {
    "biograph_mct", "biograph_mmr", "biograph_vision_450", "biograph_vision_600", "biograph_vision_quadra",
    "biograph_vision_quadra_322", "discovery_690", "discovery_mi_3ring", "discovery_mi_4ring", "discovery_mi_5ring",
    "omni_legend_32", "pennpet_3seg", "pennpet_6ring", "signa_pet_mr", "uexplorer", "umi_550", "umi_780",
    "umi_panorama_gs", "vereos",
}  # fmt: skip

CRYSTALS = {
    "biograph_mct": 32448, "biograph_mmr": 28672, "biograph_vision_450": 45600, "biograph_vision_600": 60800,
    "biograph_vision_quadra": 243200, "biograph_vision_quadra_322": 243200, "discovery_690": 13824,
    "discovery_mi_3ring": 14688, "discovery_mi_4ring": 19584, "discovery_mi_5ring": 24480,
    "omni_legend_32": 38016, "signa_pet_mr": 20160, "uexplorer": 564480, "vereos": 23040,
}  # fmt: skip
"""Published numbers of crystals (shared/reference/peers.md, section 4)."""

FOV_MM = 480.0


def text_of(name: str) -> str:
    return (resources.files("petsim.geometry") / "scanners" / f"{name}.toml").read_text(encoding="utf-8")


def test_the_library_is_complete():
    assert set(scanner_names()) >= EXPECTED


@pytest.mark.parametrize("name", scanner_names())
def test_every_field_has_a_source_and_every_source_a_field(name):
    scanner = load_scanner(name)
    defaults = {f.name: f.default for f in dataclasses.fields(Scanner) if f.name not in ("name", "title", "sources")}
    differing = {f for f, default in defaults.items() if getattr(scanner, f) != default}
    assert differing <= set(scanner.sources)
    assert all(len(text) > 20 for text in scanner.sources.values())
    document = tomllib.loads(text_of(name))
    assert {entry["source"] for entry in document["fields"].values()} == set(document["sources"])


@pytest.mark.parametrize("name", scanner_names())
def test_a_value_found_nowhere_says_so(name):
    """Sources that were read give a DOI, an address or a publication; the others are marked."""
    scanner = load_scanner(name)
    for field, source in scanner.sources.items():
        cites = any(word in source for word in ("doi ", "https://", "PMC", "PMID", "Interfile header", "headers", "GATE"))
        assert cites or not scanner.is_verified(field), (field, source)


def test_a_file_with_a_base_gives_what_differs():
    """The Quadra's second acceptance, published under its own figures: the hardware is one."""
    narrow, wide = load_scanner("biograph_vision_quadra"), load_scanner("biograph_vision_quadra_322")
    differing = {f.name for f in dataclasses.fields(Scanner) if getattr(narrow, f.name) != getattr(wide, f.name)}
    assert wide.max_ring_difference == wide.rings - 1
    assert differing == {
        "name",
        "title",
        "max_ring_difference",
        "sensitivity_cps_per_kbq",
        "scatter_fraction",
        "peak_necr_kcps",
    } | {"sources"}
    assert wide.sources["rings"] == narrow.sources["rings"]
    with pytest.raises(UsageError, match="did you mean"):
        parse_scanner("bad", 'base = "biograph_quadra"')


def test_what_counts_as_verified():
    quadra, umi = load_scanner("biograph_vision_quadra"), load_scanner("umi_780")
    assert quadra.is_verified("peak_necr_kcps") and not umi.is_verified("sensitivity_cps_per_kbq")
    assert not load_scanner("vereos").is_verified("coincidence_window_ns")
    assert not umi.is_verified("scatter_fraction")


@pytest.mark.parametrize("name", scanner_names())
def test_rings_fill_the_published_axial_field_of_view(name):
    scanner = load_scanner(name)
    z = scanner.ring_z_mm(np.arange(scanner.rings))
    assert z[-1] - z[0] + scanner.ring_spacing_mm == pytest.approx(scanner.axial_length_mm, abs=1e-6)
    assert scanner.axial_length_mm == pytest.approx(scanner.given("axial_fov_mm"), rel=0.01)


@pytest.mark.parametrize("name", scanner_names())
def test_crystals_fit_between_their_neighbors(name):
    """On the front face around the ring, and along the axis; virtual crystals leave their room to the real ones."""
    scanner = load_scanner(name)
    pitch = scanner.transaxial_pitch_mm or 2 * math.pi * scanner.inner_radius_mm / scanner.crystals_per_ring
    transaxial, axial, depth = scanner.crystal_size_mm
    assert scanner.transaxial_block * pitch >= scanner.transaxial_block_real * transaxial
    assert scanner.axial_block * scanner.ring_spacing_mm >= scanner.axial_block_real * axial
    assert pitch < 1.25 * transaxial and scanner.ring_spacing_mm < 1.25 * axial
    assert 0 < scanner.interaction_depth_mm < depth / 2
    if scanner.transaxial_pitch_mm is not None:
        sides = scanner.crystals_per_ring // scanner.transaxial_block
        face = 2 * scanner.inner_radius_mm * math.tan(math.pi / sides)
        assert (scanner.transaxial_block - 1) * pitch + transaxial <= face


@pytest.mark.parametrize(("name", "crystals"), CRYSTALS.items())
def test_real_crystals_are_as_many_as_published(name, crystals):
    scanner = load_scanner(name)
    assert scanner.transaxial_is_real().sum() * scanner.ring_is_real().sum() == crystals


@pytest.mark.parametrize("name", scanner_names())
def test_figures_are_in_their_units(name):
    """Percent for fractions, ns for ps or kcps for cps would fall out of these ranges."""
    scanner = load_scanner(name)
    ranges = {
        "energy_resolution": (0.08, 0.18), "coincidence_window_ns": (3.5, 7.0), "tof_fwhm_ps": (150, 600),
        "sensitivity_cps_per_kbq": (5, 200), "scatter_fraction": (0.3, 0.45), "peak_necr_kcps": (90, 3500),
        "peak_necr_kbqml": (10, 60), "protocol_mbq_per_kg": (1.5, 5), "protocol_duration_s": (60, 900),
    }  # fmt: skip
    for field, (low, high) in ranges.items():
        value = getattr(scanner, field)
        assert value is None or low <= value <= high, field
    low, high = scanner.given("energy_window_kev")
    assert 400 < low < 511 < high < 700
    assert all(2.5 < fwhm < 6 for fwhm in scanner.given("resolution_fwhm_mm"))
    if scanner.tof_bins is not None:
        assert scanner.tof_bins * scanner.given("tof_bin_ps") <= 2.01e3 * scanner.given("coincidence_window_ns")
    if scanner.readout_block is not None:
        around, along = scanner.readout_block
        assert scanner.transaxial_is_real().sum() % around == 0 and scanner.ring_is_real().sum() % along == 0


@pytest.mark.parametrize("name", scanner_names())
@pytest.mark.parametrize("preset", OWN_PRESETS)
def test_every_preset_works_with_every_scanner(name, preset):
    scanner = load_scanner(name)
    wanted = PRESETS[preset]
    layout = preset_layout(scanner, wanted, FOV_MM)
    assert scanner.crystals_per_ring % layout.merge_transaxial == 0
    assert wanted.merge_transaxial - 1 <= layout.merge_transaxial <= wanted.merge_transaxial
    assert 1 <= layout.merge_axial <= wanted.merge_axial
    assert layout.merge_axial * scanner.ring_spacing_mm <= 4.4 * scanner.given("resolution_fwhm_mm")[2]
    assert wanted.subsets <= layout.views
    assert layout.is_tof == (scanner.tof_fwhm_ps is not None)
    if layout.is_tof:
        assert 3 <= layout.tof_bins <= scanner.given("tof_bins")
        assert layout.merge_tof * scanner.given("tof_bin_ps") < 1.5 * scanner.given("tof_fwhm_ps")
    x1, y1, x2, y2 = np.moveaxis(layout.transaxial_ends(np.arange(0, layout.views, 7)), -1, 0)
    s = (x1 * y2 - x2 * y1) / np.hypot(x2 - x1, y2 - y1)
    assert np.all(s.min(axis=1) <= -FOV_MM / 2) and np.all(s.max(axis=1) >= FOV_MM / 2)


def test_presets_merge_what_they_name_on_the_scanners_they_are_made_for():
    for name, tof in (("biograph_vision_600", 1), ("biograph_vision_quadra", 1), ("biograph_mmr", 0)):
        for preset in PRESETS.values():
            expected = (preset.merge_transaxial, preset.merge_axial, tof * preset.tof * preset.merge_tof)
            assert preset_merges(load_scanner(name), preset) == expected


def test_presets_merge_less_on_coarser_scanners():
    """544 crystals are not divisible by 3; rings of 5.3 mm; TOF bins of 312 ps at a resolution of 555 ps."""
    assert preset_merges(load_scanner("discovery_mi_4ring"), PRESETS["fast"])[:2] == (2, 3)
    assert preset_merges(load_scanner("biograph_mct"), PRESETS["fast"]) == (3, 4, 2)
    assert preset_merges(load_scanner("biograph_mct"), PRESETS["full"]) == (1, 1, 1)
    one_ring = replace(load_scanner("biograph_mmr"), rings=1, axial_block=1, axial_block_real=1, max_ring_difference=0)
    assert preset_layout(one_ring, PRESETS["fast"], FOV_MM).span == 1


@pytest.mark.parametrize("name", scanner_names())
@pytest.mark.parametrize("preset", OWN_PRESETS)
def test_every_accepted_ring_pair_lies_in_exactly_one_plane(name, preset):
    scanner = load_scanner(name)
    layout = preset_layout(scanner, PRESETS[preset], FOV_MM)
    if layout.rings > 180:
        pytest.skip("the same code as for fewer rings")
    merged = np.arange(scanner.rings) // layout.merge_axial
    r1, r2 = np.meshgrid(merged, merged, indexing="ij")
    times = np.zeros(r1.shape, int)
    for seg in layout.segments():
        plane, rest = np.divmod(r1 + r2 - seg.first_sum, seg.step)
        inside = (r2 - r1 >= seg.lowest) & (r2 - r1 <= seg.highest)
        times += inside & (rest == 0) & (plane >= 0) & (plane < seg.planes)
    apart = np.abs(np.arange(scanner.rings)[None, :] - np.arange(scanner.rings)[:, None])
    assert np.all(times[apart <= scanner.max_ring_difference] == 1)
    assert times.max() == 1


def test_crystals_merged_around_a_corner_lie_at_their_middle():
    """35 crystals a side: every third merged crystal of 3 reaches around a corner, less than 1 mm behind a side."""
    scanner = load_scanner("uexplorer")
    single = SinogramLayout(scanner, radials=2)
    merged = SinogramLayout(scanner, radials=2, merge_transaxial=3)
    position = {c: xy for v in range(single.views) for c, xy in zip(
        single.crystal_pairs(v)[0][0], single.transaxial_ends(np.array([v]))[0, :, :2], strict=True)}  # fmt: skip
    position |= {c: xy for v in range(single.views) for c, xy in zip(
        single.crystal_pairs(v)[1][0], single.transaxial_ends(np.array([v]))[0, :, 2:], strict=True)}  # fmt: skip
    assert len(position) == 840
    for view in range(merged.views):
        first, second = (int(c[0, 1]) for c in merged.crystal_pairs(view))
        ends = merged.transaxial_ends(np.array([view]))[0, 1]
        for crystal, xy in ((first, ends[:2]), (second, ends[2:])):
            middle = np.mean([position[3 * crystal + k] for k in range(3)], axis=0)
            np.testing.assert_allclose(xy, middle, atol=1e-9)
            assert scanner.radius_mm - 1 < np.hypot(*xy) < scanner.radius_mm / math.cos(math.pi / 24)


@pytest.mark.parametrize("name", scanner_names())
def test_a_short_phantom_can_be_planned_on_every_scanner(name):
    plan = plan_subject(cylinder(60.0, 40.0, spacing_mm=(10.0, 10.0, 10.0)), SimulationSettings(scanner=name, preset="fast"))
    assert plan.scanner.name == name
    assert plan.grid.extent_mm[2] == pytest.approx(plan.scanner.axial_length_mm, rel=0.05)
    assert plan.views_at_once >= 1 and plan.duration_s > 0


@pytest.mark.parametrize(("field", "needs_it"), [
    ("sensitivity_cps_per_kbq", lambda s: counts_per_activity(s, 0.0)),
    ("resolution_fwhm_mm", None), ("protocol_duration_s", None),
])  # fmt: skip
def test_a_missing_figure_is_one_clear_line(field, needs_it, tmp_path):
    lines = [line for line in text_of("biograph_mmr").splitlines() if not line.startswith(field)]
    bare = parse_scanner("bare", "\n".join(lines))
    assert getattr(bare, field) is None and field not in bare.sources
    file = tmp_path / "bare.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    phantom = cylinder(60.0, 40.0, spacing_mm=(10.0, 10.0, 10.0))
    needs_it = needs_it or (lambda s: plan_subject(phantom, SimulationSettings(scanner=str(file), preset="fast")))
    with pytest.raises(DataError, match=f"bare.*{field}") as raised:
        needs_it(bare)
    assert "\n" not in str(raised.value)
    if field != "sensitivity_cps_per_kbq":
        plan_subject(phantom, SimulationSettings(scanner="biograph_mmr", preset="fast"))


@pytest.mark.parametrize(("change", "message"), [
    ({"scatter_fraction": 36.0}, "between 0 and 1"), ({"peak_necr_kbqml": None}, "go together"),
    ({"energy_window_kev": (650.0, 435.0)}, "thresholds"), ({"crystal_material": "LuAG"}, "LSO, LYSO, BGO"),
])  # fmt: skip
def test_a_wrong_figure_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        replace(load_scanner("biograph_mmr"), **change)
