"""Scanner information of PETSIRD 0.12: its detecting elements as the rings of a `Scanner`, and a `Scanner` as such elements.

Lengths are in mm, the axis of the scanner is z, and elements are counted module by module. An element stands for a crystal
where its point at the scanner's depth of interaction lies within `TOLERANCE` of a crystal's size from the place of that
crystal. The middle of the rings may lie anywhere along the axis.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_recipes.errors import DataError
from petsim.geometry.scanner import CRYSTAL_MATERIALS, Scanner, load_scanner, scanner_names, tof_ps_to_mm
from petsim.physics.photons import crystal_attenuation
from petsim.rawdata.events import Elements, Header
from petsim.rawdata.varints import Tables

if TYPE_CHECKING:
    from petsird import RigidTransformation, ScannerInformation

TOLERANCE = 0.05
SAME_RAD = 1e-3
"""Crystals are parallel whose directions differ by less."""

MATERIAL = 1
"""Number of the crystals' material in what is written."""

HIGHEST_KEV = 1022.0
"""Energies up to here are written where a scanner has no window."""


def told(value: float) -> float | None:
    """A 32-bit number as the shortest decimal; None for 0, which stands for what is not told."""
    return float(str(np.float32(value))) if value > 0 else None


def modules_by_type(information: "ScannerInformation") -> list[int]:
    """Modules by type."""
    return [len(m.transforms) for m in information.scanner_geometry.replicated_modules]


def _elements(information: "ScannerInformation") -> list[int]:
    """Detecting elements of a module by type."""
    return [len(m.object.detecting_elements.transforms) for m in information.scanner_geometry.replicated_modules]


def _pairs(types: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(types) for column in range(row + 1)]


def check(name: str, information: "ScannerInformation") -> None:
    """`DataError` where a header does not describe its detecting elements, energy bins and TOF bins."""
    modules, elements = modules_by_type(information), _elements(information)
    try:
        edges = [information.event_energy_bin_edges[t].edges for t in range(len(modules))]
        edges += [information.tof_bin_edges[row][column].edges for row, column in _pairs(len(modules))]
    except IndexError:
        edges = []
    if not edges or not all(len(e) > 1 and (np.diff(e) > 0).all() for e in edges) or min(modules + elements) < 1:
        raise DataError(
            f"{name}: a module type lacks modules, elements, or rising edges of energy or TOF bins; mend its header"
        )
    if sum(modules) > 1 << 16 or max(elements) > 1 << 16:
        raise DataError(f"{name}: has more than 65536 modules, or elements of a module, which is not supported")


def detectors(
    name: str, information: "ScannerInformation", scanner: Scanner | None
) -> tuple[Scanner | Elements, np.ndarray, np.ndarray]:
    """What detects, and crystal and ring of every element, each uint16 (elements,).

    That is the scanner given by the user (`DataError` if elements lie elsewhere), the library's of that name if elements lie
    as there, or the one that they form by themselves. Else a crystal is an element of its module, and a ring a module.
    """
    model = " ".join(information.model_name.split())[:60] or "PETSIRD scanner"
    boxes = boxes_of(information)
    if boxes is not None:
        known = scanner or (load_scanner(model) if model in scanner_names() else None)
        found = None if known is None else places(known, boxes)
        if found is None and scanner is None:
            known = derived_scanner(information, boxes, model)
            found = None if known is None else places(known, boxes)
        if known is not None and found is not None:
            return known, *found
    if scanner is not None:
        raise DataError(
            f"--scanner {scanner.name}: its crystals do not lie where the detecting elements of {name} do; name another "
            "one, or leave the flag out"
        )
    modules, elements = modules_by_type(information), _elements(information)
    crystal = np.concatenate([np.tile(np.arange(e), m) for m, e in zip(modules, elements, strict=True)])
    ring = np.repeat(np.arange(sum(modules)), np.repeat(elements, modules))
    return Elements(model, max(elements), sum(modules)), crystal.astype(np.uint16), ring.astype(np.uint16)


@dataclass(frozen=True)
class Boxes:
    """Detecting elements that are equal boxes and look at the axis.

    Parameters
    ----------
    centers, outward : ndarray
        float64 (modules, elements, 3): centers in mm, and the unit vector along the depth.
    size_mm : tuple
        Transaxial, axial, and along the depth.
    """

    centers: np.ndarray
    outward: np.ndarray
    size_mm: tuple[float, float, float]

    def points(self, depth_mm: float) -> np.ndarray:
        """float64 (modules, elements, 3): points at a depth from the front faces."""
        return self.centers + self.outward * (depth_mm - self.size_mm[2] / 2)

    @property
    def tolerance_mm(self) -> float:
        """By how much a crystal may lie beside its place."""
        return TOLERANCE * min(self.size_mm[:2])


def boxes_of(information: "ScannerInformation") -> Boxes | None:
    """The detecting elements; None where module types differ, or elements are no boxes that look at the axis."""
    if len(information.scanner_geometry.replicated_modules) != 1:
        return None
    modules = information.scanner_geometry.replicated_modules[0]
    elements = modules.object.detecting_elements
    corners = np.array([c.c for c in elements.object.shape.corners], float)
    low, high = corners.min(0), corners.max(0)
    at_low, at_high = np.isclose(corners, low, atol=1e-3), np.isclose(corners, high, atol=1e-3)
    distinct = {tuple(c) for c in at_high.tolist()}
    if not (at_low ^ at_high).all() or len(distinct) != 8:
        return None
    outer = np.array([t.matrix for t in modules.transforms], float)[:, None]
    inner = np.array([t.matrix for t in elements.transforms], float)[None]
    axes = outer[..., :3] @ inner[..., :3]
    middle = inner[..., :3] @ ((low + high) / 2) + inner[..., 3]
    centers = (outer[..., :3] @ middle[..., None])[..., 0] + outer[..., 3]
    radial = centers * (1, 1, 0)
    lengths = np.linalg.norm(radial, axis=-1, keepdims=True)
    if not (np.isfinite(centers).all() and np.isfinite(axes).all() and lengths.min() > 0):
        return None
    toward = np.einsum("meji,mej->mei", axes, radial / lengths)
    depth, axial = np.abs(toward).argmax(-1), np.abs(axes[..., 2, :]).argmax(-1)
    d, a = int(depth.flat[0]), int(axial.flat[0])
    if (depth != d).any() or (axial != a).any() or d == a:
        return None
    outward = axes[..., d] * np.sign(toward[..., d, None])
    size = high - low
    across, along, deep = (told(size[k]) or 0.0 for k in (3 - d - a, a, d))
    return Boxes(centers, outward, (across, along, deep))


def places(scanner: Scanner, boxes: Boxes) -> tuple[np.ndarray, np.ndarray] | None:
    """Crystals and rings of all elements, each uint16 (elements,); None if they are not those of the scanner.

    Every real crystal of the scanner needs an element of its own.
    """
    from scipy.spatial import KDTree

    points = boxes.points(scanner.interaction_depth_mm).reshape(-1, 3)
    real, z = scanner.ring_is_real(), scanner.ring_z_mm(np.arange(scanner.rings, dtype=float))
    z = z - (z[real].min() + z[real].max()) / 2 + (points[:, 2].min() + points[:, 2].max()) / 2
    rings = np.searchsorted((z[1:] + z[:-1]) / 2, points[:, 2])
    tree = KDTree(scanner.crystal_xy_mm(np.arange(scanner.crystals_per_ring) + 0.5))
    beside, crystals = tree.query(points[:, :2])
    if max(np.abs(points[:, 2] - z[rings]).max(), beside.max()) > boxes.tolerance_mm:
        return None
    hits = np.zeros((scanner.rings, scanner.crystals_per_ring), int)
    np.add.at(hits, (rings, crystals), 1)
    if hits.max() > 1 or not hits[np.ix_(real, scanner.transaxial_is_real())].all():
        return None
    return np.asarray(crystals, np.uint16), rings.astype(np.uint16)


def derived_scanner(information: "ScannerInformation", boxes: Boxes, name: str) -> Scanner | None:
    """The scanner that elements form by themselves; None if they form no rings or the material of crystals is not told.

    Where crystals leave gaps on a circle, virtual ones fill them. The depth of interaction is the mean of 511 keV photons
    that enter the material at right angles. No ring difference is left out.
    """
    element = information.scanner_geometry.replicated_modules[0].object.detecting_elements.object
    named = [m.name for m in information.bulk_materials if m.id == element.material_id]
    if not named or named[0] not in CRYSTAL_MATERIALS:
        return None
    mu = sum(float(part) for part in crystal_attenuation(named[0], np.array(511.0))) / 10
    depth = boxes.size_mm[2]
    interaction = round(1 / mu - depth / math.expm1(mu * depth), 3)
    for rings in _arrangements(boxes, interaction):
        try:
            scanner = Scanner(
                name=name, title=name, interaction_depth_mm=interaction, crystal_size_mm=boxes.size_mm,
                crystal_material=named[0], max_ring_difference=rings["rings"] - 1, **rings, **_electronics(information),
            )  # fmt: skip
        except DataError:
            continue
        if places(scanner, boxes) is not None:
            return scanner
    return None


def _levels(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Distinct values, in order: those nearer than the tolerance count as one."""
    ordered = np.sort(values, axis=None)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=-np.inf) > tolerance)]


def _arrangements(boxes: Boxes, interaction: float) -> list[dict]:
    """How crystals may be arranged, on flat sides if they are parallel, or on a circle: fields of a `Scanner`, to try."""
    points, tolerance = boxes.points(interaction), boxes.tolerance_mm
    z = _levels(points[..., 2], tolerance)
    apart = np.diff(z)
    is_gap = apart > apart.min(initial=np.inf) + tolerance
    spacing = float(apart[~is_gap].mean()) if len(z) > 1 else boxes.size_mm[1]
    block = int(np.argmax(is_gap)) + 1 if is_gap.any() else len(z)
    rings = {
        "rings": len(z), "ring_spacing_mm": round(spacing, 5), "axial_block": block, "axial_block_real": block,
        "axial_gap_mm": round(float(apart[is_gap].mean()) - spacing, 3) if is_gap.any() else 0.0,
    }  # fmt: skip
    lowest = np.abs(points[..., 2] - z[0]) < tolerance
    ring, outward = points[lowest], boxes.outward[lowest]
    own = int(lowest[lowest.any(1)][0].sum())
    found = []
    middle = math.atan2(outward[0][1], outward[0][0])
    # Counted from a little before the first side, so that no side lies where the count ends.
    facing = (np.arctan2(outward[:, 1], outward[:, 0]) - middle + SAME_RAD) % (2 * math.pi)
    sides = len(_levels(facing, SAME_RAD))
    side = ring[facing < 2 * SAME_RAD]
    if len(side) > 1 and sides > 2:
        pitch = float(np.ptp(side @ (-math.sin(middle), math.cos(middle), 0))) / (len(side) - 1)
        radius = float((side @ (math.cos(middle), math.sin(middle), 0)).mean())
        found.append({"transaxial_block_real": len(side), "transaxial_block": len(side),
                      "crystals_per_ring": len(side) * sides, "transaxial_pitch_mm": round(pitch, 5),
                      "view_offset_rad": middle - math.pi / sides, "inner_radius_mm": radius - interaction})  # fmt: skip
    # On a circle crystal 0 is the first of its block and belongs, as in what we write, to the first module.
    first = math.atan2(ring[0, 1], ring[0, 0])
    turn = (np.arctan2(ring[:, 1], ring[:, 0]) - first + math.pi) % (2 * math.pi) - math.pi
    start = turn[:own].min()
    turn = np.sort(turn)
    steps = np.diff(turn, append=turn[0] + 2 * math.pi)
    step = float(steps.min())
    if step > 1e-5:
        real, gap, begins = own, 0, (np.flatnonzero(steps > 1.5 * step) + 1) % len(turn)
        if len(begins):
            real, gap = len(turn) // len(begins), round(float(steps.max()) / step) - 1
            start = turn[begins][turn[begins] <= start + step / 2].max(initial=turn[begins].max() - 2 * math.pi)
        found.append({"transaxial_block_real": real, "transaxial_block": real + gap, "transaxial_pitch_mm": None,
                      "crystals_per_ring": round(2 * math.pi / step), "view_offset_rad": first + float(start) - step / 2,
                      "inner_radius_mm": float(np.hypot(ring[:, 0], ring[:, 1]).mean()) - interaction})  # fmt: skip
    for fields in found:
        fields["view_offset_rad"] = round(math.remainder(fields["view_offset_rad"], 2 * math.pi), 6)
        fields["inner_radius_mm"] = round(fields["inner_radius_mm"], 3)
    return [rings | fields for fields in found]


def _electronics(information: "ScannerInformation") -> dict:
    """Energy and timing of a `Scanner` as far as they are told."""
    tof, width = information.tof_bin_edges[0][0].edges, tof_ps_to_mm(1.0)
    energy, bins = information.event_energy_bin_edges[0].edges, len(tof) - 1
    resolution, timing = told(information.energy_resolution_at_511[0]), information.tof_resolution[0][0]
    known: dict = {"energy_resolution": resolution} if resolution else {}
    if energy[0] > 0:
        known["energy_window_kev"] = (told(energy[0]), told(energy[-1]))
    span_ps = float(tof[-1] - tof[0]) / width
    if bins == 1:
        known["coincidence_window_ns"] = told(span_ps / 1000)
    elif timing > 0:
        known |= {"tof_fwhm_ps": told(timing / width), "tof_bin_ps": told(span_ps / bins), "tof_bins": bins}
    return known


def information_of(scanner: Scanner) -> tuple["ScannerInformation", np.ndarray, np.ndarray]:
    """A scanner's geometry and resolutions, and crystal and ring of each detecting element, uint16 (elements,).

    The modules are the readout blocks where these are told and have several crystals, else the blocks between gaps; virtual
    crystals take no element. Front faces lie at the inner radius. On a circle every crystal looks at the axis.
    """
    import petsird

    across, along = scanner.transaxial_block_real, scanner.axial_block_real
    if scanner.readout_block is not None and math.prod(scanner.readout_block) > 1:
        across, along = math.gcd(across, scanner.readout_block[0]), math.gcd(along, scanner.readout_block[1])
    rings = np.flatnonzero(scanner.ring_is_real())
    along = math.gcd(along, len(rings))
    crystals = np.flatnonzero(scanner.transaxial_is_real())
    z = scanner.ring_z_mm(rings.astype(float))
    width, height, depth = scanner.crystal_size_mm
    flat = scanner.transaxial_pitch_mm

    def transform(angle: float, shift: tuple[float, float, float]) -> "RigidTransformation":
        cos, sin = math.cos(angle), math.sin(angle)
        x, y, z = shift
        rows = ((cos, -sin, 0, cos * x - sin * y), (sin, cos, 0, sin * x + cos * y), (0, 0, 1, z))
        return petsird.RigidTransformation(matrix=np.array(rows, np.float32))

    def turned(place: float) -> float:
        return 2 * math.pi * place / scanner.crystals_per_ring + scanner.view_offset_rad

    box = petsird.BoxShape(corners=[
        petsird.Coordinate(c=np.array((x, y, z), np.float32))
        for x in (0, depth) for y in (-width / 2, width / 2) for z in (-height / 2, height / 2)
    ])  # fmt: skip
    elements, modules, numbers = [], [], []
    for t in range(across):
        for a in range(along):
            beside = t - (across - 1) / 2
            angle, shift = (0.0, beside * flat) if flat else (2 * math.pi * beside / scanner.crystals_per_ring, 0.0)
            elements.append(transform(angle, (scanner.inner_radius_mm, shift, float(z[a] - z[0]))))
    for t in range(0, len(crystals), across):
        for a in range(0, len(rings), along):
            place = crystals[t] + across / 2
            side = crystals[t] // scanner.transaxial_block
            middle = (side + 0.5) * scanner.transaxial_block
            shift = (place - middle) * (flat or 0.0)
            modules.append(transform(turned(middle if flat else place), (0.0, shift, float(z[a]))))
            numbers += [(crystals[t + i], rings[a + j]) for i in range(across) for j in range(along)]
    crystal, ring = np.ascontiguousarray(np.array(numbers, np.uint16).T)
    solid = petsird.BoxSolidVolume(shape=box, material_id=MATERIAL)
    module = petsird.DetectorModule(detecting_elements=petsird.ReplicatedBoxSolidVolume(object=solid, transforms=elements))
    geometry = petsird.ScannerGeometry(
        replicated_modules=[petsird.ReplicatedDetectorModule(object=module, transforms=modules)]
    )
    # Efficiencies without values count as 1; a level for the only module type is there, as helpers of petsird expect.
    ones = petsird.DetectionEfficiencies(
        calibration_factor=1.0, detection_bin_efficiencies=[[]], module_pair_sgidlut=[[[]]],
        module_pair_efficiencies_vectors=[[[]]],
    )  # fmt: skip
    information = petsird.ScannerInformation(
        model_name=scanner.name, scanner_geometry=geometry, collimator_type="NONE", detection_efficiencies=ones,
        bulk_materials=[petsird.BulkMaterial(id=MATERIAL, name=scanner.crystal_material)],
        tof_resolution=[[tof_ps_to_mm(scanner.tof_fwhm_ps or 0.0)]],
        energy_resolution_at_511=[scanner.energy_resolution or 0.0],
    )  # fmt: skip
    return information, crystal, ring


def tables(
    information: "ScannerInformation", crystal: np.ndarray, ring: np.ndarray, detectors: Scanner | Elements
) -> Tables:
    """What addresses in time blocks mean; `crystal` and `ring` as by `detectors`."""
    counts = np.multiply(modules_by_type(information), _elements(information)).tolist()
    edges = [b.edges for b in information.event_energy_bin_edges[: len(counts)]]
    energies = np.array([len(e) - 1 for e in edges], np.int64)
    tof_bins = np.zeros((len(counts), len(counts)), np.int64)
    for row, column in _pairs(len(counts)):
        tof_bins[row, column] = information.tof_bin_edges[row][column].number_of_bins()
    element = np.full((detectors.rings, detectors.crystals_per_ring), -1, np.int32)
    element[ring, crystal] = np.arange(len(crystal))
    return Tables(
        first=np.cumsum([0, *counts]).astype(np.int64), energies=energies,
        edges_from=np.cumsum([0, *energies + 1])[:-1].astype(np.int64), edges_kev=np.concatenate(edges, dtype=np.float32),
        tof_bins=tof_bins, crystal=crystal, ring=ring, element=element,
        module_type=np.repeat(np.arange(len(counts)), counts).astype(np.uint16),
        in_rings=isinstance(detectors, Scanner), has_energies=bool(energies.max() > 1),
    )  # fmt: skip


def tof(information: "ScannerInformation") -> tuple[int, float]:
    """Most bins of a pair of types, and their width in ps if they are even, symmetric and the same for all pairs."""
    edges = [information.tof_bin_edges[row][column].edges for row, column in _pairs(len(modules_by_type(information)))]
    bins = max(len(e) for e in edges) - 1
    width = float(edges[0][-1] - edges[0][0]) / bins
    even = (np.arange(bins + 1) - bins / 2) * width
    same = all(len(e) == bins + 1 and np.allclose(e, even, 0, 1e-3 * width) for e in edges)
    return bins, (told(width / tof_ps_to_mm(1.0)) or 0.0) if same and bins > 1 else 0.0


def is_symmetric(information: "ScannerInformation") -> bool:
    """Whether the TOF bins of all pairs of types are the same from either end."""
    edges = [information.tof_bin_edges[row][column].edges for row, column in _pairs(len(modules_by_type(information)))]
    return all(len(e) == 2 or np.allclose(e, -e[::-1], 0, 1e-3 * float(np.diff(e).min())) for e in edges)


def with_fields(information: "ScannerInformation", fields: frozenset[str]) -> "ScannerInformation":
    """The information that goes with data that hold these of `FIELDS`; of other events than coincidences there are none."""
    from petsird import BinEdges, CoincidencePolicy, DetectionEfficiencies, SinglesHistogramLevelType
    from petsird import QuadrupleEventPolicy as Quadruples
    from petsird import SingleEventPolicy as Singles
    from petsird import TripleEventPolicy as Triples

    def ends(bins: "BinEdges") -> "BinEdges":
        return BinEdges(edges=bins.edges[[0, -1]])

    new, modules = copy.copy(information), modules_by_type(information)
    types = range(len(modules))
    energies, tof = information.event_energy_bin_edges, information.tof_bin_edges
    if "tof" not in fields:
        new.tof_bin_edges = [[ends(tof[row][column]) for column in range(row + 1)] for row in types]
    if "energies" not in fields and any(e.number_of_bins() > 1 for e in energies):
        # Efficiencies are told for every energy bin.
        new.event_energy_bin_edges = [ends(e) for e in energies]
        new.detection_efficiencies = DetectionEfficiencies(
            calibration_factor=information.detection_efficiencies.calibration_factor,
            detection_bin_efficiencies=[[] for _ in types],
            module_pair_sgidlut=information.detection_efficiencies.module_pair_sgidlut,
            module_pair_efficiencies_vectors=[[[] for _ in range(row + 1)] for row in types],
        )
    has_units = information.singles_histogram_level == SinglesHistogramLevelType.MODULE
    new.singles_histogram_level, new.module_singles_unit_idx_lu_ts = SinglesHistogramLevelType.NONE, []
    new.singles_histogram_energy_bin_edges = []
    if "singles" in fields:
        own = np.split(np.arange(sum(modules)), np.cumsum(modules)[:-1])
        new.singles_histogram_level = SinglesHistogramLevelType.MODULE
        new.module_singles_unit_idx_lu_ts = (
            information.module_singles_unit_idx_lu_ts if has_units else [units.tolist() for units in own]
        )
        new.singles_histogram_energy_bin_edges = [
            ends(e) for e in information.singles_histogram_energy_bin_edges or energies
        ]
    none, other = CoincidencePolicy.NONE, CoincidencePolicy.OTHER
    new.prompt_event_policy = other if information.prompt_event_policy == none else information.prompt_event_policy
    new.delayed_event_policy = none
    if "delayeds" in fields:
        new.delayed_event_policy = other if information.delayed_event_policy == none else information.delayed_event_policy
    new.single_event_policy, new.triple_event_policy, new.quadruple_event_policy = (
        Singles.NONE,
        Triples.NONE,
        Quadruples.NONE,
    )
    return new


def set_edges(name: str, information: "ScannerInformation", header: Header, scanner: Scanner) -> None:
    """Energy and TOF bins of data of a scanner: energies in bins of at most 1 keV between its thresholds."""
    from petsird import BinEdges

    low, high = scanner.energy_window_kev or (0.0, HIGHEST_KEV)
    bins = math.ceil(high - low) if "energies" in header.fields else 1
    information.event_energy_bin_edges = [BinEdges(edges=np.linspace(low, high, bins + 1, dtype=np.float32))]
    if header.tof_bins > 1 and not header.tof_bin_ps > 0:
        raise DataError(f"{name}: PETSIRD needs the width of TOF bins, which is not known; choose another format")
    window_ps = header.tof_bins * header.tof_bin_ps or 1000 * (scanner.coincidence_window_ns or 0.0)
    half = tof_ps_to_mm(window_ps) / 2 or scanner.radius_mm
    information.tof_bin_edges = [[BinEdges(edges=np.linspace(-half, half, header.tof_bins + 1, dtype=np.float32))]]
