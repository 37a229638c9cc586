"""Files of recorded data in, files out: what `petsim thin` and `petsim convert` do."""

from pathlib import Path
from typing import Any

from data_recipes.errors import DataError, UsageError
from petsim.cache.store import make_folder
from petsim.rawdata.events import Block, without_fields
from petsim.rawdata.formats import format_of, loss, open_listmode, suffix_of
from petsim.rawdata.interfile_sinogram import SUFFIXES as SINOGRAMS
from petsim.rawdata.thin import Ladder, Progress, salvaged, thin


def thin_file(
    input: str, out: str, drfs: tuple[float, ...], mode: str, seed: int, complement: bool = False,
    format: str | None = None, scanner: str | None = None, salvage: bool = False,
    progress: Progress = lambda what, fraction: None,
) -> dict[str, Any]:  # fmt: skip
    """Dose ladder of a file, in a folder: `<name>_drf<D>` and `<name>_drf<D>_complement` with the ending of the format.

    Parameters
    ----------
    input, out : str
    drfs : tuple of float
        Dose reduction factors; 1 is the input and not written again.
    mode : str
        "thin", "window" or "dose"; a sinogram knows "thin" only.
    seed : int
    complement : bool
    format : str, optional
        Ending of the files; None: that of the input.
    scanner : str, optional
    salvage : bool
    progress : callable

    Returns
    -------
    dict
        prompts, delayeds: counts by DRF; files; warnings.

    Raises
    ------
    UsageError, DataError
    """
    path, folder = Path(input), Path(out)
    if max(drfs, default=1.0) == 1:
        raise UsageError("--drf: give at least one factor above 1; full dose is the input itself")
    if format is None and path.name.lower().endswith(SINOGRAMS):
        return _thin_sinogram(path, folder, drfs, mode, seed, complement, scanner)
    source = open_listmode(path, scanner)
    suffix = suffix_of(path) if format is None else f".{format.lstrip('.')}"
    stem = path.name[: -len(suffix_of(path))]
    ladder = Ladder((1.0, *(d for d in sorted(set(drfs)) if d > 1)), mode, seed, complement)

    def name(drf: float, is_complement: bool) -> Path:
        return folder / f"{stem}_drf{drf:g}{'_complement' if is_complement else ''}{suffix}"

    format_of(name(2.0, False))
    make_folder(folder)
    return thin(source, ladder, name, salvage, progress)


def _thin_sinogram(
    path: Path, folder: Path, drfs: tuple[float, ...], mode: str, seed: int, complement: bool, scanner: str | None
) -> dict[str, Any]:
    from petsim.geometry.scanner import load_scanner
    from petsim.rawdata.thin_sinogram import thin_sinogram

    if mode != "thin":
        raise UsageError(f"--mode {mode}: a sinogram holds neither times nor singles; use --mode thin")
    make_folder(folder)
    wanted = tuple(d for d in sorted(set(drfs)) if d > 1)
    chosen = None if scanner is None else load_scanner(scanner)
    return {**thin_sinogram(path, wanted, folder, seed, complement, chosen), "warnings": []}


def convert_file(input: str, output: str, scanner: str | None = None, salvage: bool = False) -> dict[str, Any]:
    """Write a list-mode file in the format that the ending of `output` names.

    Returns
    -------
    dict
        prompts, delayeds: how many were written; warnings: also what the format cannot hold.
    """
    source, target = open_listmode(Path(input), scanner), Path(output)
    if target.resolve() == Path(input).resolve():
        raise UsageError(f"{target.name}: is the input itself; choose another name")
    source = salvaged(source) if salvage else source
    lost, line = loss(source.header, target)
    warnings = [*source.warnings, *([line] if line else [])]
    if not target.parent.is_dir():
        raise DataError(f"{target.name}: its folder does not exist; make it first")
    counts = [0, 0]
    with format_of(target).create(target, without_fields(source.header, lost)) as write:
        for block in source.blocks():
            events = block.events
            if "delayeds" in lost:
                events = events[events["is_delayed"] == 0]
            delayed = int((events["is_delayed"] > 0).sum())
            counts = [counts[0] + len(events) - delayed, counts[1] + delayed]
            write(Block(events, block.singles))
    return {"prompts": counts[0], "delayeds": counts[1], "warnings": warnings}
