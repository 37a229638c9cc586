"""The list-mode formats, and which of them a file is."""

import importlib
from pathlib import Path
from typing import cast

from data_recipes.errors import DataError, UsageError
from petsim.geometry.scanner import load_scanner
from petsim.rawdata.events import FIELDS, Format, Header, Listmode, lost_fields

NAMES = ("petlink", "petsird", "castor", "root", "hdf5", "sinogram")
"""Modules of this package that are formats; the last reads sinograms as events."""


def formats() -> dict[str, Format]:
    """All formats by the name of their module."""
    return {name: cast(Format, importlib.import_module(f"petsim.rawdata.{name}")) for name in NAMES}


def _ending(path: Path) -> tuple[str, Format] | None:
    """The longest ending of a name that a format knows (".l.hdr.STIR" before another's ".STIR"), and that format."""
    name = path.name.lower()
    fitting = [(s, format) for format in formats().values() for s in format.SUFFIXES if name.endswith(s.lower())]
    return max(fitting, key=lambda e: len(e[0]), default=None)


def format_of(path: Path) -> Format:
    """The format of a file, by the ending of its name."""
    found = _ending(path)
    if found is not None:
        return found[1]
    listed = "; ".join(f"{format.TITLE}: {', '.join(format.SUFFIXES)}" for format in formats().values())
    raise UsageError(f"{path.name}: no list-mode format has this ending; known are {listed}")


def is_listmode(path: Path) -> bool:
    """Whether a name ends like that of a list-mode file."""
    return _ending(path) is not None


def suffix_of(path: Path) -> str:
    """The ending of a list-mode file's name, which its format is known by."""
    found = _ending(path)
    assert found is not None
    return found[0]


def open_listmode(path: Path, scanner: str | None = None) -> Listmode:
    """Open a list-mode file of any format.

    Parameters
    ----------
    path : Path
        File, or header of files.
    scanner : str, optional
        Name or TOML file of the scanner, for formats that do not tell.

    Raises
    ------
    UsageError, DataError
        Unknown ending, a missing file, or one that cannot be read.
    """
    format = format_of(path)
    if not path.is_file():
        raise DataError(f"{path.name}: no such file; check the name")
    return format.read(path, None if scanner is None else load_scanner(scanner))


def loss(header: Header, path: Path) -> tuple[list[str], str]:
    """Fields that a file of this name would lose, and one line about it ("" for none)."""
    format = format_of(path)
    lost = lost_fields(header, format)
    if not lost:
        return lost, ""
    kept = ", ".join(name for name in FIELDS if name in format.HOLDS) or "nothing but crystals"
    return lost, f"{format.TITLE} cannot hold {', '.join(lost)} (it holds {kept}); left out of what is written"
