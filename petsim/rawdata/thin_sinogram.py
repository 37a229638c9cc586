"""Dose ladders of sinogram files: exact binomial thinning of recorded counts.

Only the number of a bin, its index in (view, radial, tof, plane), decides which of its counts stay, so that files that store
the same data in another order give the same counts. A sinogram has no times and no energies: other modes than thinning are
impossible.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim.cache.store import make_folder
from petsim.dose import DoseLadder
from petsim.geometry.scanner import Scanner
from petsim.rawdata.events import Dose
from petsim.rawdata.interfile_sinogram import SUFFIXES, SinogramFile, create_sinogram, integer_counts, read_sinogram
from petsim.settings import check_drfs


def thin_sinogram(
    path: Path,
    drfs: tuple[float, ...],
    out_dir: Path,
    seed: int,
    complement: bool = False,
    scanner: Scanner | None = None,
) -> dict[str, Any]:
    """Write the doses of a sinogram file, `<stem>_drf4.hs` and so on, in the number format of the file.

    The doses are nested: every count at 20 is also at 10. Delayeds (Siemens) are thinned by numbers of their own, into
    `<stem>_drf4_delayeds.hs`. Duration and calibration factor stay those of the full dose.

    Parameters
    ----------
    path : Path
        Header of a sinogram, see `read_sinogram`.
    drfs : tuple of float
        Dose reduction factors; 1, which is the file itself, is not written.
    out_dir : Path
        Is made if it does not exist.
    seed : int
    complement : bool
        Write what each dose leaves out too, `<stem>_drf4_complement.hs`.
    scanner : Scanner, optional
        See `read_sinogram`.

    Returns
    -------
    dict
        prompts, delayeds: counts by DRF ("1" is the file); files: names of the headers.

    Raises
    ------
    UsageError
        A wrong factor.
    DataError
        As `read_sinogram` and `integer_counts`, or data that are thinned already.
    """
    check_drfs(drfs)
    file = read_sinogram(path, scanner)
    if file.facts.dose is not None:
        raise DataError(
            f"{file.name}: is at DRF {file.facts.dose.drf:g} already; thin the full dose, so that all levels are nested"
        )
    ladder = DoseLadder((1, *sorted(d for d in drfs if d != 1)), seed, "sinogram", 0)
    sources = {"prompts": (file, ladder)}
    if file.delayeds is not None:
        sources["delayeds"] = file.delayeds, replace(ladder, stream="delayeds")
    largest = {kind: integer_counts(source) for kind, (source, _) in sources.items()}
    if max(largest.values()) > 0xFFFFFFFF:
        raise DataError(
            f"{file.name}: a bin holds {max(largest.values()):.3g} counts, more than 32 bits; these are no counts"
        )
    make_folder(out_dir)
    stem = next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), path.stem)
    result: dict[str, Any] = {"prompts": {}, "delayeds": {}, "files": []}
    for kind, (source, own) in sources.items():
        ending = "" if kind == "prompts" else f"_{kind}"
        targets = [
            (level, left_out, out_dir / f"{stem}_drf{drf:g}{'_complement' * left_out}{ending}.hs")
            for level, drf in enumerate(own.drfs)
            for left_out in ((False, True) if complement else (False,))
            if level
        ]
        kept = _thin(source, own, np.dtype(np.uint16 if largest[kind] <= 0xFFFF else np.uint32), targets)
        result[kind] = {f"{drf:g}": count for drf, count in zip(own.drfs, kept, strict=True)}
        result["files"] += [target.name for _, _, target in targets]
    return result


def _thin(source: SinogramFile, ladder: DoseLadder, dtype: np.dtype, targets: list[tuple[int, bool, Path]]) -> list[int]:
    """Write targets (dose, whether what it leaves out, header) in one pass; returns the counts at every dose."""
    bins = int(np.prod(source.layout.shape[1:]))
    totals = np.zeros(len(ladder.drfs), np.int64)
    with ExitStack() as stack:
        writes = []
        for level, left_out, target in targets:
            facts = replace(source.facts, dose=Dose(ladder.drfs[level], "thin", ladder.seed, left_out))
            writes.append(stack.enter_context(create_sinogram(target, source.layout, source.dtype, facts)))
        for first, read in source.blocks():
            counts = read.astype(dtype)
            kept = ladder.thin(counts, first * bins)
            totals += kept.sum(axis=(1, 2, 3, 4), dtype=np.int64)
            for (level, left_out, _), write in zip(targets, writes, strict=True):
                write(first, (counts - kept[level] if left_out else kept[level]).astype(source.dtype))
    return totals.tolist()
