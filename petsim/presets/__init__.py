"""Presets and output grids, read from TOML files that cite a source for every field. Nothing heavy is imported here."""

import tomllib
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from typing import Any

ALGORITHMS = ("osem", "bsrem")
"""Reconstructions that a preset can ask for and that are there."""

LAYOUT = ("merge_transaxial", "merge_axial", "span", "merge_tof", "simulation_voxel_mm")
"""Fields of a preset that say how fine data are; the others say how they are reconstructed."""


@dataclass(frozen=True)
class Preset:
    """Sinogram layout and reconstruction that go together.

    Parameters
    ----------
    merge_transaxial, merge_axial : int
        Crystals merged into one, at most; `petsim.geometry.sinogram.preset_merges` says how many on which scanner.
    span : int
        Ring differences a segment, in merged rings.
    merge_tof : int
        Finest TOF bins summed into one, at most.
    voxel_mm : float
        Transaxial voxel; the axial one is the merged ring pitch over the smallest integer that makes it no larger.
    simulation_voxel_mm : float
        The same for the grid on which phantoms are projected.
    iterations, subsets : int
        Of the algorithm.
    filter_mm : float
        Full width at half maximum of the Gaussian post-filter.
    tof, psf : bool
        Use time of flight where the scanner has it, and model the point spread function.
    algorithm : str
        One of `ALGORITHMS`: OSEM, or BSREM with the relative difference prior.
    beta : float, optional
        Strength of the prior, see `petsim.reconstruct.prior_weight`.
    """

    merge_transaxial: int
    merge_axial: int
    span: int
    merge_tof: int
    voxel_mm: float
    simulation_voxel_mm: float
    iterations: int
    subsets: int
    filter_mm: float
    tof: bool = True
    psf: bool = True
    algorithm: str = "osem"
    beta: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Values by name; those that came later are left out at their default, so that hashes of older datasets hold."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default or f.default is MISSING}

    def described(self) -> dict[str, Any]:
        """Algorithm, iterations, subsets and, with a prior, its strength; JSON types."""
        known = {"algorithm": self.algorithm.upper(), "iterations": self.iterations, "subsets": self.subsets}
        return known if self.beta is None else {**known, "beta": self.beta}


@dataclass(frozen=True)
class Named:
    """An entry of a TOML file: what it is, its values, and the citation of each."""

    title: str
    values: dict[str, Any]
    sources: dict[str, str]


def read_entries(file: str) -> dict[str, Named]:
    """Entries of a file of this package, in its order.

    `[sources]` are texts by name; an entry is a table with `title`, fields `{ value, source }` and, for presets, `like`: the
    entry above it whose `LAYOUT` it shares.
    """
    doc = tomllib.loads((resources.files("petsim.presets") / file).read_text(encoding="utf-8"))
    texts, entries = doc.pop("sources"), {}
    for name, table in doc.items():
        title, like = table.pop("title"), table.pop("like", None)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if like is not None:
            values |= {key: entries[like].values[key] for key in LAYOUT}
            sources |= dict.fromkeys(LAYOUT, f"as in {like}")
        for key, entry in table.items():
            values[key], sources[key] = entry["value"], texts[entry["source"]]
        entries[name] = Named(title, values, sources)
    return entries


@dataclass(frozen=True)
class OutputGrid:
    """Voxels of a public data set.

    Parameters
    ----------
    shape : tuple of int
    spacing_mm : tuple of float
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


NAMED_PRESETS = read_entries("presets.toml")
PRESETS = {name: Preset(**entry.values) for name, entry in NAMED_PRESETS.items()}

NAMED_GRIDS = read_entries("grids.toml")
GRIDS = {
    name: OutputGrid(tuple(entry.values["shape"]), tuple(entry.values["spacing_mm"])) for name, entry in NAMED_GRIDS.items()
}

OWN_PRESETS = ("fast", "standard", "full")
"""Presets that differ by how fine they are, coarsest first."""


def preset_lines() -> list[str]:
    """Presets as a text, every field with its source."""
    lines = []
    for name, entry in NAMED_PRESETS.items():
        lines.append(f"{name}: {entry.title}")
        for source in dict.fromkeys(entry.sources.values()):
            given = [f"{key} = {entry.values[key]}" for key, own in entry.sources.items() if own == source]
            lines += [f"  {', '.join(given)}", f"      {source}"]
    return lines
