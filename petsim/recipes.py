"""petsim recipes: what collections there are, what a folder holds, and subjects or datasets made from it."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_recipes.collections.download import download
from data_recipes.collections.folders import unpack
from data_recipes.collections.recipe import Case, DoseCase, Recipe, Wishes
from data_recipes.collections.registry import RECIPES, recipe_named
from data_recipes.errors import DataError, UsageError
from data_recipes.splits import bucket_of
from data_recipes.subject_file import ENDING, write_subject_file
from petsim.cache.store import SubjectFile, make_folder, subject_files, whole_or_nothing, write_index, write_subject
from petsim.import_doses import import_doses

Report = Callable[[str, str, float], None]


def listed() -> dict[str, str]:
    """Name and title of every recipe."""
    return {name: recipe.title for name, recipe in RECIPES.items()}


def shown(name: str) -> dict[str, Any]:
    """Everything about a recipe, JSON types."""
    recipe = recipe_named(name)
    files = [{"url": d.url, "checksum": d.checksum, "bytes": d.bytes} for d in recipe.downloads]
    return {
        "name": name, "title": recipe.title, "gives": recipe.gives, "layout": recipe.layout, "license": recipe.license,
        "access": recipe.access, "downloads": files,
    }  # fmt: skip


def prepare(name: str, folder: Path | None, out: Path, wishes: Wishes, report: Report) -> dict[str, Any]:
    """Make subjects, a dataset a scanner, or a folder of raw data from a recipe.

    What is there already is left; the same command goes on where an interrupted one stopped.

    Parameters
    ----------
    name : str
        Of the recipe.
    folder : Path, optional
        The user's data; None for raw data, which are downloaded.
    out : Path
    wishes : Wishes
    report : callable
        Told (subject, what is being done, fraction).

    Returns
    -------
    dict
        files (names below `out`), counts, notes, splits by dataset.

    Raises
    ------
    UsageError, DataError
        One line; nothing half-written is left.
    """
    recipe = recipe_named(name)
    if recipe.find is None:
        return _prepare_raw(recipe, folder, out, report)
    if folder is None:
        raise UsageError(
            f"FOLDER: {name} needs the folder that holds the data; petsim recipes show {name} tells how to get it"
        )
    found = recipe.find(folder, wishes)
    make_folder(out)
    result: dict[str, Any] = {"counts": found.counts, "notes": list(found.notes)}
    doses = [case for case in found.cases if isinstance(case, DoseCase)]
    subjects = [case for case in found.cases if isinstance(case, Case)]
    if doses:
        return result | _prepare_doses(recipe, doses, out, report)
    return result | {"files": [_prepare_subject(recipe, k, case, out, report) for k, case in enumerate(subjects)]}


def _prepare_subject(recipe: Recipe, number: int, case: Case, out: Path, report: Report) -> str:
    report(f"{number + 1}", "reading", 0.0)
    subject = case.load()
    told = (
        {"license": recipe.license} | subject.provenance | {"recipe": recipe.name, "split_bucket": bucket_of(case.patient)}
    )
    path = out / f"{subject.name}{ENDING}"
    if not path.exists():
        report(f"{number + 1}", "writing", 0.5)
        with whole_or_nothing(path) as temporary:
            write_subject_file(temporary, replace(subject, provenance=told))
    report(f"{number + 1}", "done", 1.0)
    return path.name


def _prepare_doses(recipe: Recipe, cases: Sequence[DoseCase], out: Path, report: Report) -> dict[str, Any]:
    files, folders = [], []
    for number, case in enumerate(cases):
        subject = f"{number + 1}"
        record = import_doses(case, recipe.name, recipe.license, lambda what, part, s=subject: report(s, what, part))
        folder = out / record.configuration["scanner"]
        if folder not in folders:
            folders.append(folder)
            make_folder(folder)
            _check_dataset(folder, recipe.name)
        path = folder / f"{record.name}.h5"
        files.append(f"{folder.name}/{path.name}")
        if path.exists():
            continue
        _check_disk(out, record.images.nbytes)
        write_subject(path, record)
        report(subject, "done", 1.0)
    splits = {}
    for folder in folders:
        entries = write_index(folder)["subjects"]
        splits[folder.name] = {s: sum(e["split"] == s for e in entries) for s in ("train", "val", "test")}
    return {"files": files, "datasets": splits}


def _check_dataset(folder: Path, recipe: str) -> None:
    """Refuse a folder that holds another dataset."""
    for path in subject_files(folder):
        with SubjectFile(path) as f:
            if f.json("configuration").get("recipe") != recipe:
                raise DataError(f"--out {folder.name}: {path.name} is of another dataset; choose another folder")


def _check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"--out {out.name}: a subject needs {needed / 1e6:.0f} MB but {free / 1e6:.0f} MB are free; free some space or "
            "choose another disk"
        )


def _prepare_raw(recipe: Recipe, folder: Path | None, out: Path, report: Report) -> dict[str, Any]:
    if folder is not None:
        raise UsageError(
            f"FOLDER: {recipe.name} is raw data, which petsim thin and make-dataset read as they are; leave it out"
        )
    if not recipe.downloads:
        raise UsageError(
            f"NAME: {recipe.name} is not downloaded by petsim; petsim recipes show {recipe.name} tells how to get it"
        )
    make_folder(out)
    target = out / recipe.name
    files = []
    for wanted in recipe.downloads:
        path = download(
            wanted, out, lambda there, total, w=wanted: report(w.file, _size(there, total), there / (total or there))
        )
        files += [str(p.relative_to(out)) for p in unpack(path, target)] if path.suffix == ".zip" else [path.name]
    return {"counts": {"files": len(files)}, "notes": [], "files": files}


def _size(there: int, total: int | None) -> str:
    return f"{there / 1e6:.0f} MB" + (f" of {total / 1e6:.0f}" if total else "")
