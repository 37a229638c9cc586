"""CASToR's scanner files: NAME.lut with NAME.hscan (positions of elements), or NAME.geom (a cylinder in numbers).

Keys, units and the order of elements: CASToR general documentation, section "Scanner system integration" (CASToR 3.1.1).
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim.geometry.scanner import Scanner, load_scanner, scanner_names
from petsim.rawdata.events import Elements
from petsim.rawdata.positions import CrystalFinder

ELEMENT = np.dtype([("center_mm", "<f4", 3), ("axis", "<f4", 3)])
"""An element of a .lut file: where it is, and the unit vector along its depth."""

FIELD_OF_VIEW = 0.8
"""Diameter of CASToR's default image as a part of the bore."""

FITTED = 5000
"""Elements by which an angle is found that fits."""


@dataclass(frozen=True)
class Keys:
    """An ASCII header of CASToR.

    Like CASToR's own reader, a key is found in the first line that holds it anywhere, and `#` begins a comment.
    """

    name: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, name: str, content: bytes) -> "Keys":
        """Keys of a file's content; `DataError` where it is no text."""
        if b"\0" in content:
            raise DataError(f"{name}: no ASCII header of CASToR; give the header, not the data file that belongs to it")
        return cls(name, tuple(content.decode("latin-1").splitlines()))

    def get(self, key: str) -> str | None:
        """Text of a key; None where it is absent."""
        for line in self.lines:
            stripped = line.split("#")[0]
            if key in stripped:
                return stripped.partition(":")[2].strip(" !\t\r")
        return None

    def text(self, key: str) -> str:
        """Text of a key; `DataError` where it is absent or empty."""
        value = self.get(key)
        if not value:
            raise DataError(f"{self.name}: '{key}' is missing; give a whole header of CASToR")
        return value

    def numbers(self, key: str, count: int, default: float | None = None) -> list[float]:
        """The first `count` numbers of a key; `DataError` where they are absent and there is no default."""
        value = self.text(key) if default is None else self.get(key)
        if not value:
            return [default or 0.0] * count
        try:
            values = [float(part) for part in value.split(",")]
            if not all(map(math.isfinite, values)):
                raise ValueError
        except ValueError:
            raise DataError(f"{self.name}: '{key}' is '{value}', not a number; correct it") from None
        if len(values) < count:
            raise DataError(f"{self.name}: '{key}' has {len(values)} of {count} values; add the others")
        return values[:count]

    def number(self, key: str, default: float | None = None) -> float:
        """Number of a key."""
        return self.numbers(key, 1, default)[0]

    def note(self, key: str) -> Any:
        """What petsim wrote into a comment, which CASToR does not read; None without it."""
        start = f"# petsim {key}: "
        for line in self.lines:
            if line.startswith(start):
                try:
                    return json.loads(line.removeprefix(start))
                except json.JSONDecodeError:
                    raise DataError(f"{self.name}: the line '{start.strip()}' is damaged; take the line out") from None
        return None


def note_line(key: str, value: Any) -> str:
    """The line that `Keys.note` reads."""
    return f"# petsim {key}: {json.dumps(value)}"


@dataclass(frozen=True, eq=False)
class Geometry:
    """The elements of a scanner in the order of their IDs.

    Parameters
    ----------
    name : str
        Of the scanner: the files' name without its ending.
    files : dict
        Content by ending.
    xyz_mm : ndarray
        float64 (elements, 3): centers.
    layers : tuple of int
        Elements of each layer.
    rings : int
        Rings of all layers that IDs count one after the other; 0 where that is not known.
    scanner : Scanner, optional
        What petsim noted: its real crystals are the elements, ring after ring.
    """

    name: str
    files: dict[str, bytes]
    xyz_mm: np.ndarray
    layers: tuple[int, ...]
    rings: int = 0
    scanner: Scanner | None = None

    def elements(self) -> Elements:
        """The detectors without a `Scanner`: an ID is module x elements of a module + element."""
        count = len(self.xyz_mm)
        size = count // self.rings if self.rings and count % self.rings == 0 else min(count, 0xFFFF)
        return Elements(self.name, size, -(-count // size))

    def element_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Element and module, uint16, of the IDs."""
        module, element = np.divmod(np.arange(len(self.xyz_mm)), self.elements().crystals_per_ring)
        return element.astype(np.uint16), module.astype(np.uint16)


def read_geometry(folder: Path, name: str) -> Geometry | None:
    """The scanner files beside a data file; None without any. Like CASToR, .geom comes before .lut."""
    geom, hscan, lut = (folder / f"{name}{suffix}" for suffix in (".geom", ".hscan", ".lut"))
    if geom.is_file():
        content = geom.read_bytes()
        keys = Keys.of(geom.name, content)
        xyz, layers, rings = _cylinder(keys)
        return Geometry(name, {".geom": content}, xyz, layers, rings)
    if not hscan.is_file():
        return None
    if not lut.is_file():
        raise DataError(f"{hscan.name}: {lut.name} is missing; put both into one folder")
    files = {".hscan": hscan.read_bytes(), ".lut": lut.read_bytes()}
    keys = Keys.of(hscan.name, files[".hscan"])
    layers = tuple(int(n) for n in keys.numbers("number of crystals in layer", int(keys.number("number of layers"))))
    count = sum(layers)
    if count < 2 or len(files[".lut"]) != count * ELEMENT.itemsize:
        raise DataError(
            f"{lut.name}: has {len(files['.lut'])} bytes but {count} elements of {ELEMENT.itemsize} are in its header; "
            "copy both files again"
        )
    xyz = np.frombuffer(files[".lut"], ELEMENT)["center_mm"].astype(np.float64)
    # Byte-swapped floats are mostly tiny or huge.
    if not np.isfinite(xyz).all() or not 1 < np.abs(xyz).max() < 1e5:
        raise DataError(f"{lut.name}: its positions are not in mm; the file must be little-endian 32-bit floats")
    scanner = _noted_scanner(keys)
    if scanner is not None and scanner.transaxial_is_real().sum() * scanner.ring_is_real().sum() != count:
        raise DataError(f"{hscan.name}: holds {count} elements, which {scanner.name} has not; make the file anew")
    return Geometry(name, files, xyz, layers, int(keys.number("number of rings in scanner", 0)), scanner)


def _noted_scanner(keys: Keys) -> Scanner | None:
    note = keys.note("scanner")
    if note is None:
        return None
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in note.items()}
        scanner = Scanner(**values)
    except (TypeError, AttributeError):
        raise DataError(f"{keys.name}: petsim's note of the scanner is damaged; name it with --scanner") from None
    # The library's has the sources of its fields.
    known = load_scanner(scanner.name) if scanner.name in scanner_names() else scanner
    return known if known == scanner else scanner


def _cylinder(keys: Keys) -> tuple[np.ndarray, tuple[int, ...], int]:
    """Centers (mm), elements of each layer and rings of all layers of a .geom file.

    Sectors (rsectors) stand around the axis, the first one above it; they hold modules, these submodules, these crystals.
    """
    layers = int(keys.number("number of layers"))
    shifts_mm = keys.numbers("rsectors ZShift", max(1, int(keys.number("rsectors nbZShift", 0))), 0)
    # Clockwise, seen with x to the right and y up, unless the file says otherwise.
    hand = -1.0 if (keys.get("rotation direction") or "").upper() == "CCW" else 1.0
    centers, rings = [], 0
    for layer in range(layers):

        def get(key: str, default: float | None = None, layer: int = layer) -> float:
            return keys.numbers(key, layers, default)[layer]

        across = _repeated(get, "transaxial", get("crystals size trans"), ("crystal", "submodule", "module"))
        along = _repeated(get, "axial", get("crystals size axial"), ("crystal", "submodule", "module", "rsector"))
        sectors = int(get("number of rsectors"))
        angle = np.radians(get("rsectors first angle", 0) + np.arange(sectors) * get("rsectors angular span", 360) / sectors)
        cos, sin = np.cos(angle)[:, None], hand * np.sin(angle)[:, None]
        x, y = hand * across, get("scanner radius") + get("crystals size depth") / 2
        xyz = np.empty((len(along), sectors, len(across), 3))
        xyz[..., 0], xyz[..., 1] = cos * x + sin * y, cos * y - sin * x
        xyz[..., 2] = along[:, None, None] + np.resize(shifts_mm, sectors)[:, None]
        centers.append(xyz.reshape(-1, 3))
        rings += len(along)
    return np.concatenate(centers), tuple(map(len, centers)), rings


def _repeated(get: Callable[..., float], direction: str, size_mm: float, levels: tuple[str, ...]) -> np.ndarray:
    """Centers of crystals along a direction, mm from the middle of the outermost level."""
    centers, length = np.zeros(1), size_mm
    for level in levels:
        # Crystals are always stated, the levels above them may be left out.
        count = int(get(f"number of {level}s {direction}", None if level == "crystal" else 1))
        gap = get(f"{level} gap {direction}", 0)
        centers = (((np.arange(count) - (count - 1) / 2) * (length + gap))[:, None] + centers).reshape(-1)
        length = count * length + (count - 1) * gap
    return centers


def own_order(scanner: Scanner) -> tuple[np.ndarray, np.ndarray]:
    """Crystal and ring, uint16, of petsim's IDs: real crystals only, those of ring 0 first."""
    crystals, rings = np.flatnonzero(scanner.transaxial_is_real()), np.flatnonzero(scanner.ring_is_real())
    return np.tile(crystals, len(rings)).astype(np.uint16), np.repeat(rings, len(crystals)).astype(np.uint16)


def order_by_position(geometry: Geometry, scanner: Scanner) -> tuple[np.ndarray, np.ndarray]:
    """Crystal and ring, uint16, that the elements are in a scanner; layers of a crystal become one.

    Raises
    ------
    DataError
        The elements are not the crystals of this scanner.
    """
    finder = CrystalFinder.of(scanner)
    crystal, ring, offset_mm = finder.nearest(*geometry.xyz_mm.T)
    wrong = int(finder.is_outside(offset_mm).sum())
    place, first = np.int64(ring) * scanner.crystals_per_ring + crystal, 0
    for count in geometry.layers:
        wrong += count - len(np.unique(place[first : first + count]))
        first += count
    if wrong:
        some = geometry.xyz_mm[:: max(1, len(place) // FITTED)]
        raise DataError(
            f"{geometry.name}: {wrong} of its {len(place)} elements are no crystals of their own in {scanner.name}; name "
            f"another --scanner, or a copy with the right view_offset_rad ({finder.fitting_view_offset_rad(*some.T):.5f} "
            "fits best)"
        )
    return crystal, ring


def geometry_of(scanner: Scanner) -> Geometry:
    """Scanner files of a `Scanner`, its virtual crystals left out. CASToR's image axes are then those of petsim."""
    finder, (crystal, ring) = CrystalFinder.of(scanner), own_order(scanner)
    elements = np.zeros(len(crystal), ELEMENT)
    along, (across_mm, axial_mm, depth_mm) = finder.along[crystal], scanner.crystal_size_mm
    elements["axis"][:, 0], elements["axis"][:, 1] = along[:, 1], -along[:, 0]
    # LOR ends lie at the mean depth of interaction, CASToR's positions in the middle of crystals.
    xy = finder.xy_mm[crystal] + elements["axis"][:, :2] * (depth_mm / 2 - scanner.interaction_depth_mm)
    elements["center_mm"][:, :2], elements["center_mm"][:, 2] = xy, scanner.ring_z_mm(ring)
    field_mm, planes = FIELD_OF_VIEW * 2 * scanner.inner_radius_mm, 2 * int(scanner.ring_is_real().sum()) - 1
    note = dataclasses.asdict(scanner)
    del note["sources"]
    lines = [
        "modality: PET", f"scanner name: {scanner.name}",
        "description: written by petsim; x, y and z are those of its images",
        f"number of elements: {len(elements)}", "number of layers: 1", f"number of crystals in layer: {len(elements)}",
        f"number of rings in scanner: {scanner.ring_is_real().sum()}", f"scanner radius: {scanner.inner_radius_mm:.10g}",
        f"crystals size depth: {depth_mm:.10g}", f"crystals size trans: {across_mm:.10g}",
        f"crystals size axial: {axial_mm:.10g}", f"mean depth of interaction: {scanner.interaction_depth_mm:.10g}",
        f"voxels number transaxial: {math.ceil(field_mm / (across_mm / 2))}", f"voxels number axial: {planes}",
        f"field of view transaxial: {field_mm:.10g}", f"field of view axial: {scanner.axial_length_mm:.10g}",
        note_line("scanner", note),
    ]  # fmt: skip
    files = {".hscan": ("\n".join(lines) + "\n").encode(), ".lut": elements.tobytes()}
    return Geometry(scanner.name, files, elements["center_mm"].astype(np.float64), (len(elements),), scanner=scanner)
