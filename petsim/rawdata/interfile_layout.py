"""Which sinogram bin of ours a number in an Interfile sinogram is.

Sources, all of STIR (https://github.com/UCL/STIR): InterfileHeader.cxx and interfile.cxx (keys, orders of storage),
ProjDataInfoCylindricalNoArcCorr.cxx (crystals of a view and a tangential position), ProjDataInfoCylindrical.cxx and .inl
(ring difference = ring2 - ring1; axial positions ascend with ring1 + ring2), ProjDataInfo.cxx (numbers of timing positions),
ProjMatrixByBin.inl and InputStreamFromROOTFileForCylindricalPET.cxx (a positive timing position is nearer to detector 1),
InterfileHeaderSiemens.cxx and stir_ecat_common.cxx (Siemens' orders), Scanner.cxx (names).

Crystals, rings, views and tangential positions are taken by their numbers, which mean the same as in `SinogramLayout`; the
sign of TOF does not: our bins ascend towards the second crystal. Where STIR puts crystal 0 (`Facts.view_offset_deg`) and
ring 0 (the far side of the gantry, so the head of a patient who lies head first) is not applied to the layout: an image that
is reconstructed from such data with our projectors is mirrored along z against what `interfile_image` reads. Nor are
crystals renumbered where a vendor puts the virtual one of a block first (mMR) and we last: the outermost bin of a view would
be lost.
"""

import math
from dataclasses import dataclass

from data_recipes.errors import DataError, UsageError
from petsim.geometry.scanner import Scanner, load_scanner, scanner_names
from petsim.geometry.sinogram import Segment, SinogramLayout
from petsim.rawdata.interfile_header import InterfileHeader, Line

_SYSTEMS = {
    "biograph_mmr": ("Siemens mMR", "mMR", "2008"),
    "biograph_mct": ("Siemens mCT", "mCT", "2011", "1104", "1094"),
    "biograph_vision_600": ("Siemens Vision 600", "Vision 600", "1208"),
    "biograph_vision_quadra": ("Siemens Quadra", "Quadra", "1232"),
    "signa_pet_mr": ("GE Signa PET/MR", "PET/MR Signa", "Signa PET/MR"),
    "discovery_690": ("GE Discovery 690", "Discovery 690", "GE Discovery 710", "Discovery 710"),
    "discovery_mi_3ring": ("GE Discovery MI 3 rings", "Discovery MI3", "Discovery MI"),
    "discovery_mi_4ring": ("GE Discovery MI 4 rings", "Discovery MI4", "Discovery MI"),
    "discovery_mi_5ring": ("GE Discovery MI 5 rings", "Discovery MI5", "Discovery MI"),
}
"""Names that "originating system" has for our scanners; the first is written."""

_VARIANTS = {"biograph_vision_quadra": "biograph_vision_quadra_322"}
"""Scanners that differ in their acceptance only."""

_SIEMENS_OFFSET_DEG = {"biograph_vision_600": math.degrees(0.0324), "biograph_vision_quadra": math.degrees(0.0324)}
"""View offsets that STIR has for scanners whose own headers do not tell; 0 for others."""

_CLOSE = 0.01
"""Lengths that differ by no more than this, relatively, describe the same scanner."""


@dataclass(frozen=True)
class Order:
    """How a file stores the bins of a layout: TOF bins, in them segments, in them views of axial positions or the reverse.

    Parameters
    ----------
    layout : SinogramLayout
    tof : tuple of int
        Our TOF bins in the order of the file.
    segments : tuple of Segment
        Our segments in the order of the file.
    is_by_view : bool
        A segment holds its axial positions view by view; False: its views position by position.
    """

    layout: SinogramLayout
    tof: tuple[int, ...]
    segments: tuple[Segment, ...]
    is_by_view: bool

    @classmethod
    def written(cls, layout: SinogramLayout) -> "Order":
        """The order of files that are written: timing positions and segments ascending, by view."""
        segments = sorted(layout.segments(), key=lambda s: s.ring_difference)
        return cls(layout, tuple(reversed(range(layout.tof_bins))), tuple(segments), True)


def read_order(header: InterfileHeader, scanner: Scanner | None) -> Order:
    """Layout and order of a header of STIR's.

    Raises
    ------
    DataError
        A scanner that is unknown or differs, or bins that `SinogramLayout` cannot express.
    """
    dimensions = min(header.integer("number of dimensions"), 6)
    axes = [header.word("matrix axis label", index=k) for k in range(1, dimensions + 1)]
    is_by_view = {"axial coordinate view": True, "view axial coordinate": False}.get(" ".join(axes[1:3]))
    known = [["tangential coordinate", "segment"], ["tangential coordinate", "segment", "timing positions"]]
    if is_by_view is None or axes[:1] + axes[3:] not in known:
        raise DataError(
            f"{header.name}: its axes are {', '.join(axes)}; only tangential coordinate, axial coordinate and view in "
            "either order, segment and timing positions (with TOF) are read"
        )
    sizes = {axis: header.sizes(k) for k, axis in enumerate(axes, 1)}
    segments, planes = sizes["segment"][0], sizes["axial coordinate"]
    ends = [header.integers(f"{which} ring difference per segment") for which in ("minimum", "maximum")]
    if {len(ends[0]), len(ends[1]), len(planes)} != {segments}:
        raise DataError(
            f"{header.name}: states {segments} segments, {len(ends[0])} minimum and {len(ends[1])} maximum ring differences "
            f"and {len(planes)} numbers of axial positions; all must be as many"
        )
    spans = [(min(pair), max(pair)) for pair in zip(*ends, strict=True)]
    middle = next((high for low, high in spans if low == -high), None)
    if middle is None:
        raise DataError(
            f"{header.name}: no segment has ring differences from -n to n, as the middle one of an odd span has; write the "
            "sinogram with an odd span"
        )
    farthest = max(high for _, high in spans)
    scanner = _scanner(header, scanner, farthest)
    timing = sizes.get("timing positions", [0])[0]
    tof = _merge_tof(header, scanner, timing), timing
    bins = sizes["view"][0], sizes["tangential coordinate"][0]
    layout = _layout(header, scanner, bins, (2 * middle + 1, farthest), tof)
    order = _timing_order(header, layout.tof_bins)
    return Order(layout, order, _segments(header, layout, spans, planes), is_by_view)


def read_siemens_order(header: InterfileHeader, scanner: Scanner | None) -> Order:
    """Layout and order of a sinogram header of Siemens' (`.s.hdr`); raises as `read_order`."""
    if header.word("compression") == "on":
        raise DataError(f"{header.name}: its data are compressed; uncompress them with the vendor's tools")
    axes = [header.word("matrix axis label", index=k) for k in (1, 2, 3)]
    if axes not in (["bin", "projection", "plane"], ["sinogram projections", "sinogram views", "number of sinograms"]):
        raise DataError(f"{header.name}: its axes are {', '.join(axes)}; only bin, projection and plane are read")
    spans = header.integer("axial compression"), header.integer("maximum ring difference")
    scanner = _scanner(header, scanner, spans[1])
    timing = max(1, header.find_integer("number of TOF time bins", header.find_integer("matrix size", 1, 4)))
    merge = header.find_integer("TOF mashing factor", max(1, (scanner.tof_bins or 0) // timing)) if timing > 1 else 0
    bins = header.sizes(2)[0], header.sizes(1)[0]
    layout = _layout(header, scanner, bins, spans, (merge, timing))
    ours = {s.ring_difference: s for s in layout.segments()}
    outward = sorted(ours, key=lambda d: (abs(d), d))
    planes = [ours[d].planes for d in outward]
    for what, stated, own in (
        ("segment table", header.integers("segment table"), planes),
        ("matrix size [3]", header.sizes(3), [layout.planes]),
    ):
        if stated and stated != own:
            raise DataError(
                f"{header.name}: '{what}' is {_some(stated)}, but span {spans[0]} up to ring difference {spans[1]} on "
                f"{layout.rings} rings gives {_some(own)}; name another --scanner"
            )
    middle = layout.tof_bins // 2
    steps = [0, *(sign * k for k in range(1, middle + 1) for sign in (1, -1))]
    return Order(layout, tuple(middle - k for k in steps), tuple(ours[d] for d in outward), False)


def view_offset_deg(header: InterfileHeader, layout: SinogramLayout, is_siemens: bool) -> float:
    """Where STIR has detector 0 of a file, see `Facts.view_offset_deg`."""
    if is_siemens:
        return _SIEMENS_OFFSET_DEG.get(_known_as(layout.scanner), 0.0)
    return header.find_number("view offset (degrees)") or 0.0


def layout_lines(order: Order, view_offset_deg: float | None) -> list[Line]:
    """Header lines of the axes and of the scanner, for STIR.

    Raises
    ------
    UsageError
        An odd number of crystals a ring, which STIR cannot express.
    """
    layout = order.layout
    s, n = layout.scanner, layout.crystals
    if n % 2:
        raise UsageError(
            f"Interfile sinograms need an even number of crystals a ring, {s.name} has {n}; merge them otherwise"
        )
    if view_offset_deg is None:
        # STIR counts from the top to the center of detector 0, we from the right to where crystal 0 begins.
        view_offset_deg = (math.degrees(s.view_offset_rad) + 180 / n + 90) % 360 - 180
    lines: list[Line] = [("number of dimensions", 5 if layout.is_tof else 4)]
    if layout.is_tof:
        lines += [("matrix axis label [5]", "timing positions"), ("!matrix size [5]", layout.tof_bins)]
    lines += [
        ("matrix axis label [4]", "segment"), ("!matrix size [4]", len(order.segments)),
        ("matrix axis label [3]", "view"), ("!matrix size [3]", layout.views),
        ("matrix axis label [2]", "axial coordinate"), ("!matrix size [2]", [g.planes for g in order.segments]),
        ("matrix axis label [1]", "tangential coordinate"), ("!matrix size [1]", layout.radials),
    ]  # fmt: skip
    if layout.is_tof:
        lines.append(("TOF mashing factor", layout.merge_tof))
    merged = layout.merge_transaxial * layout.merge_axial > 1
    lines += [
        ("minimum ring difference per segment", [g.lowest for g in order.segments]),
        ("maximum ring difference per segment", [g.highest for g in order.segments]),
        ("Scanner parameters", None),
        ("Scanner type", written_name(s, merged)),
        ("Number of rings", layout.rings),
        ("Number of detectors per ring", n),
        ("Inner ring diameter (cm)", 2 * s.inner_radius_mm / 10),
        ("Average depth of interaction (cm)", s.interaction_depth_mm / 10),
        ("Distance between rings (cm)", layout.ring_pitch_mm / 10),
        ("View offset (degrees)", view_offset_deg),
        ("Maximum number of non-arc-corrected bins", max(layout.radials, 0 if merged else s.radial_bins or 0)),
    ]
    if merged or s.name not in _SYSTEMS:
        # STIR knows its own for the others.
        lines += [
            ("Default bin size (cm)", math.pi * s.radius_mm / n / 10),
            ("Default number of arc-corrected bins", layout.radials),
        ]
    if s.energy_resolution is not None:
        lines += [("Energy resolution", s.energy_resolution), ("Reference energy (in keV)", 511)]
    if layout.is_tof:
        lines += [
            ("Maximum number of (unmashed) TOF time bins", layout.tof_bins * layout.merge_tof),
            ("Size of unmashed TOF time bins (ps)", s.given("tof_bin_ps")),
            ("TOF timing resolution (ps)", s.given("tof_fwhm_ps")),
        ]
    return [
        *lines,
        ("Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)", "Cylindrical"),
        ("End scanner parameters", None),
    ]


def written_name(scanner: Scanner, is_merged: bool) -> str:
    """ "originating system" of a scanner: STIR's name where it has one and the crystals are those of the scanner."""
    return scanner.name if is_merged else _SYSTEMS.get(scanner.name, (scanner.name,))[0]


def _some(values: list[int]) -> str:
    shown = ", ".join(str(v) for v in values[:4])
    return f"{shown}, ... ({len(values)} numbers)" if len(values) > 4 else shown


def _known_as(scanner: Scanner) -> str:
    return next((name for name, variant in _VARIANTS.items() if variant == scanner.name), scanner.name)


def _scanner(header: InterfileHeader, given: Scanner | None, farthest: int) -> Scanner:
    """The scanner that was given, or that of "originating system" which fits; `DataError` says what differs."""
    if given is not None:
        candidates = [given]
    else:
        system = header.word("originating system")
        plain = " ".join(system.split())
        names = [name for name, known in _SYSTEMS.items() if plain in {k.lower() for k in known}]
        names += [name for name in scanner_names() if name.replace("_", " ") == plain]
        names += [_VARIANTS[name] for name in names if name in _VARIANTS]
        if not names:
            raise DataError(f"{header.name}: its scanner is not known by 'originating system'; name it with --scanner")
        candidates = sorted((load_scanner(name) for name in names), key=lambda s: s.max_ring_difference < farthest)
    reasons = [_difference(header, scanner) for scanner in candidates]
    for scanner, reason in zip(candidates, reasons, strict=True):
        if reason is None:
            return scanner
    raise DataError(f"{header.name}: {reasons[0]}; name the scanner of these data with --scanner")


def _merges(header: InterfileHeader, scanner: Scanner) -> tuple[int, int]:
    """Crystals and rings that a header counts as one; 0 where that cannot be."""
    crystals = header.find_integer("number of detectors per ring", scanner.crystals_per_ring)
    rings = header.find_integer("number of rings", scanner.rings)
    transaxial = scanner.crystals_per_ring // crystals if crystals > 0 and scanner.crystals_per_ring % crystals == 0 else 0
    fits = (m for m in range(1, scanner.rings + 1) if -(-scanner.rings // m) == rings)
    pitch = header.find_number("distance between rings (cm)")
    return transaxial, next((m for m in fits if pitch is None or _is_pitch(10 * pitch, scanner, m)), 0)


def _is_pitch(pitch_mm: float, scanner: Scanner, merge: int) -> bool:
    """Whether rings may be this far apart: on average, or within a block."""
    mean = SinogramLayout(scanner, 1, merge_axial=merge).ring_pitch_mm
    return any(math.isclose(pitch_mm, p, rel_tol=_CLOSE) for p in (mean, scanner.ring_spacing_mm * merge))


def _difference(header: InterfileHeader, scanner: Scanner) -> str | None:
    """What a header says of its scanner that is not so, None if it all fits."""
    transaxial, axial = _merges(header, scanner)
    if not transaxial:
        stated = header.integer("number of detectors per ring")
        return f"the header has {stated} detectors per ring but {scanner.name} {scanner.crystals_per_ring}"
    if not axial:
        pitch = header.find_number("distance between rings (cm)")
        apart = "" if pitch is None else f" {10 * pitch:g} mm apart"
        stated = header.find_integer("number of rings", scanner.rings)
        return (
            f"the header has {stated} rings{apart} but {scanner.name} {scanner.rings}, {scanner.ring_spacing_mm:g} mm apart"
        )
    inner = header.find_number("inner ring diameter (cm)")
    depth = header.find_number("average depth of interaction (cm)")
    if inner is not None:
        radius = 5 * inner + (scanner.interaction_depth_mm if depth is None else 10 * depth)
        if not math.isclose(radius, scanner.radius_mm, rel_tol=_CLOSE):
            own = scanner.radius_mm
            return f"crystals of the header lie {radius:g} mm from the axis but those of {scanner.name} {own:g} mm"
    if header.find_integer("number of detector layers", 1) != 1:
        return f"the header has several layers of detectors but {scanner.name} one"
    return _block_difference(header, scanner)


def _block_difference(header: InterfileHeader, scanner: Scanner) -> str | None:
    geometry = header.word("Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)", "cylindrical")
    if geometry == "cylindrical":
        return None
    if geometry != "blocksoncylindrical" or scanner.transaxial_pitch_mm is None:
        shape = "on a circle" if scanner.transaxial_pitch_mm is None else "on flat blocks"
        return f"the header's scanner geometry is '{geometry}' but {scanner.name} has its crystals {shape}"
    block = scanner.axial_block * scanner.ring_spacing_mm + scanner.axial_gap_mm
    for what, own in (
        ("crystals in transaxial direction", scanner.transaxial_pitch_mm),
        ("crystals in axial direction", scanner.ring_spacing_mm),
        ("blocks in axial direction", block),
    ):
        stated = header.find_number(f"distance between {what} (cm)")
        if stated is not None and not math.isclose(10 * stated, own, rel_tol=_CLOSE):
            return f"{what} are {10 * stated:g} mm apart in the header but {own:g} mm in {scanner.name}"
    return None


def _merge_tof(header: InterfileHeader, scanner: Scanner, timing: int) -> int:
    """Finest TOF bins of the scanner in a timing position, 0 without TOF."""
    if not timing:
        return 0
    if scanner.tof_bin_ps is None:
        raise DataError(
            f"{header.name}: holds {timing} timing positions but {scanner.name} has no TOF; name another --scanner"
        )
    fine = header.find_number("Size of unmashed TOF time bins (ps)") or header.find_number("Size of timing bin (ps)")
    width = header.find_integer("TOF mashing factor", 1) * (fine or scanner.tof_bin_ps)
    merge = round(width / scanner.tof_bin_ps)
    if merge < 1 or not math.isclose(merge * scanner.tof_bin_ps, width, rel_tol=1e-3):
        raise DataError(
            f"{header.name}: its TOF bins of {width:g} ps are no multiple of the {scanner.tof_bin_ps:g} ps of "
            f"{scanner.name}; name another --scanner"
        )
    return merge


def _timing_order(header: InterfileHeader, bins: int) -> tuple[int, ...]:
    """Our TOF bins in the order of a file that lists STIR's timing positions, or does not: then they ascend."""
    half = bins // 2
    positions = header.integers("TOF bin order") or list(range(-half, half + 1))
    if sorted(positions) != list(range(-half, half + 1)):
        raise DataError(f"{header.name}: 'TOF bin order' is {_some(positions)}; it must list {-half} to {half} once each")
    return tuple(half - p for p in positions)


def _layout(
    header: InterfileHeader, scanner: Scanner, bins: tuple[int, int], spans: tuple[int, int], tof: tuple[int, int]
) -> SinogramLayout:
    """The layout of these views and radial bins, span and farthest ring difference, merged and number of TOF bins."""
    (views, radials), (span, farthest), (merge_tof, timing) = bins, spans, tof
    transaxial, axial = _merges(header, scanner)
    half = scanner.crystals_per_ring // transaxial / 2
    if views < 1 or half % views:
        raise DataError(
            f"{header.name}: {views} views do not divide half of the {2 * half:g} detectors per ring; name another --scanner"
        )
    if merge_tof * timing > (scanner.tof_bins or 0):
        raise DataError(
            f"{header.name}: holds {timing} TOF bins, each {merge_tof} of the {scanner.tof_bins or 0} of {scanner.name}; "
            "name another --scanner"
        )
    if merge_tof and timing % 2 == 0:
        raise DataError(f"{header.name}: has {timing} TOF bins, only odd numbers are read; mash them to an odd number")
    blocks = header.word("Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)") == "blocksoncylindrical"
    try:
        return SinogramLayout(
            scanner, radials, transaxial, axial, int(half // views), span, farthest, merge_tof, timing if merge_tof else 1,
            even_rings=scanner.axial_gap_mm > 0 and not blocks,
        )  # fmt: skip
    except UsageError as error:
        raise DataError(f"{header.name}: {error}; write the sinogram so that it does, or name another --scanner") from None


def _segments(
    header: InterfileHeader, layout: SinogramLayout, spans: list[tuple[int, int]], planes: list[int]
) -> tuple[Segment, ...]:
    """Our segments in the order of a file that states their ring differences and numbers of axial positions."""
    ours = {(s.lowest, s.highest): s for s in layout.segments()}
    expected = f"span {layout.span} up to ring difference {layout.max_ring_difference}"
    for (low, high), stated in zip(spans, planes, strict=True):
        own = ours.get((low, high))
        if own is None:
            raise DataError(
                f"{header.name}: a segment sums ring differences {low} to {high}, which {expected} does not have (even and "
                "mixed spans are not read); write the sinogram with one odd span"
            )
        if stated != own.planes:
            raise DataError(
                f"{header.name}: the segment of ring differences {low} to {high} has {stated} axial positions, "
                f"{layout.rings} rings give {own.planes}; write all of them, or name another --scanner"
            )
    if set(spans) != set(ours) or len(spans) != len(ours):
        raise DataError(f"{header.name}: holds {len(spans)} segments, {expected} has {len(ours)}; write each of them once")
    return tuple(ours[pair] for pair in spans)
