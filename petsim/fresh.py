"""Fresh realizations of the subjects of a dataset: a draw of the counts and a reconstruction, no forward projection."""

import dataclasses
import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.resample import resample
from petsim.acquisition import AcquisitionModel
from petsim.cache.live import Made
from petsim.cache.store import SubjectFile, canonical_json, read_index, sha256_of
from petsim.counts import storage
from petsim.dataset import Job, ReadOptions, Request, configuration, load_subject
from petsim.forward_store import Forward, read_forward, write_forward
from petsim.model import SAMPLED_VIEWS, Photons, at_doses, build_model, duration_scale, expected_total, find_photons
from petsim.plan import Plan, plan_subject
from petsim.realizations import Realizations
from petsim.settings import SimulationSettings
from petsim.simulation import check_memory, insert_noise

FIRST = 1_000_000
"""Number of the first fresh realization: those below belong to the dataset."""

SUBJECTS_SHARE = 0.4
"""Part of the memory that subjects between their realizations may take."""


@dataclass(frozen=True)
class Paths:
    """What a dataset was made from, of which it knows no path.

    Parameters
    ----------
    sources : tuple of str
        Images, in any order; none for generated patients.
    sidecar, ct, mu : str, optional
        Files beside them.
    scanner : str, optional
        TOML file, where the scanner is not one of petsim's.
    """

    sources: tuple[str, ...] = ()
    sidecar: str | None = None
    ct: str | None = None
    mu: str | None = None
    scanner: str | None = None


def dataset_request(folder: Path, paths: Paths, memory_gb: float = 8.0) -> Request:
    """The request that a dataset was made with.

    Parameters
    ----------
    folder : Path
        Of the dataset.
    paths : Paths
    memory_gb : float

    Raises
    ------
    DataError
        The same settings would give other numbers now.
    """
    index = read_index(folder)
    known = index["configuration"]
    try:
        values = {f.name: known[f.name] for f in dataclasses.fields(SimulationSettings) if f.name in known}
        values |= {"drf": tuple(known["drf"]), "scanner": paths.scanner or known["scanner"]}
        kept = {f.name: known["read"][f.name] for f in dataclasses.fields(ReadOptions) if f.name in known["read"]}
        images, save = known["source"] == "image", tuple(known["save"])
    except KeyError as error:
        raise DataError(f"{folder.name}: its configuration has no {error}; make it again") from None
    if images and not paths.sources:
        raise DataError(f"{folder.name}: was made from images, of which it knows no path; name them with --source")
    request = Request(
        str(folder), settings=SimulationSettings(**values), sources=paths.sources if images else (), save=save,
        read=ReadOptions(**kept, sidecar=paths.sidecar, ct=paths.ct, mu=paths.mu), memory_gb=memory_gb,
    )  # fmt: skip
    now = json.loads(canonical_json(configuration(request)))
    changed = sorted(k for k in {*now, *known} if now.get(k) != known.get(k))
    if changed:
        raise DataError(
            f"{folder.name}: was made with other values of {', '.join(changed)}; give the files that it was made with "
            "(--scanner, --ct, --mu, --sidecar), or make it again"
        )
    return request


def dataset_jobs(folder: Path, request: Request, split: str = "train") -> dict[str, Job]:
    """Where the subjects of a split come from.

    Parameters
    ----------
    folder : Path
        Of the dataset.
    request : Request
        See `dataset_request`.
    split : str

    Returns
    -------
    dict
        Subject -> job.

    Raises
    ------
    DataError
        A subject whose source is not among them.
    """
    entries = {s["name"]: s for s in read_index(folder)["subjects"] if s["split"] == split}
    if not entries:
        raise DataError(f"{folder.name}: no subject in the split '{split}'; make at least three subjects")
    if not request.sources:
        return {name: Job(name, seed=int(name.rsplit("-", 1)[1])) for name in entries}
    jobs = {}
    for path in request.sources:
        subject = load_subject(Job("source", path=path), request)
        if subject.name in entries:
            with SubjectFile(folder / entries[subject.name]["file"]) as f:
                if f.json("provenance")["source_sha256"] == subject.content_sha256:
                    jobs[subject.name] = Job(subject.name, path=path)
    missing = sorted(set(entries) - set(jobs))
    if missing:
        raise DataError(f"{folder.name}: the source of {missing[0]} is not known; name it with --source")
    return jobs


def recipe(request: Request, source_sha256: str) -> dict[str, Any]:
    """Everything that volumes of a subject depend on, besides dose and realization; JSON types."""
    known = configuration(request)
    return {k: v for k, v in known.items() if k not in ("drf", "realizations", "save")} | {"source": source_sha256}


def recipes(folder: Path, request: Request, names: Sequence[str]) -> dict[str, Any]:
    """`recipe` of some subjects of a dataset."""
    found = {}
    for name in names:
        with SubjectFile(folder / f"{name}.h5") as f:
            found[name] = recipe(request, f.json("provenance")["source_sha256"])
    return found


@dataclass
class _Ready:
    """A subject between two of its realizations."""

    plan: Plan
    photons: Photons
    scale: float
    model: AcquisitionModel
    level: float
    latest: tuple[tuple[float, ...], Realizations] | None = None

    @property
    def bytes(self) -> float:
        """Memory, about."""
        fine, voxels = math.prod(self.plan.simulation_grid.shape), math.prod(self.plan.grid.shape)
        whole = math.prod(self.plan.whole_subject.activity_bqml.shape)
        table = 0 if self.photons.scatter is None else self.photons.scatter.values.nbytes
        return 4.0 * (2 * fine + voxels * (2 + 2 * self.plan.preset.subsets) + 3 * whole) + table


class Simulator:
    """Makes volumes of a dataset's subjects; what realizations share is found once, and kept on disk.

    Parameters
    ----------
    request : Request
        See `dataset_request`.
    jobs : dict
        Subject -> job.
    folder : Path
        For what is kept.
    kept_bytes : float
        Line integrals take no more disk space than this; those of further subjects are projected anew.
    memory_bytes : float
        Memory that may be used.
    """

    def __init__(self, request: Request, jobs: dict[str, Job], folder: Path, kept_bytes: float, memory_bytes: float) -> None:
        self._request, self._jobs, self._folder = request, jobs, folder
        self._kept_bytes, self._memory_bytes = kept_bytes, memory_bytes
        self._ready: OrderedDict[str, _Ready] = OrderedDict()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder.name}: {error.strerror}; choose a folder that can be written") from None

    def __call__(self, subject: str, drfs: tuple[float, ...], realization: int) -> list[Made]:
        """Volumes of a realization, as `petsim.cache.live.DoseCache` asks for them.

        Counts at a dose do not depend on the other doses. Where noise is inserted below a measured full dose, a realization
        of DRF 1 is that measurement.
        """
        ready = self._prepared(subject)
        settings = replace(self._request.settings, drf=drfs)
        ladder = settings.ladder()
        if ready.latest is None or ready.latest[0] != ladder:
            model = at_doses(ready.model, ready.plan, settings, ready.photons, ready.scale)
            store = storage(ready.plan, settings, False, ready.level, self._memory_bytes * (1 - SUBJECTS_SHARE))
            ready.latest = ladder, Realizations(ready.plan, settings, model, store)
        draws = ready.latest[1]
        made = draws.make(realization)
        images = made.images
        if settings.full_dose == "source":
            images = insert_noise(self._truth(ready, draws), images[:, None])[:, 0]
        chosen = [ladder.index(drf) for drf in drfs]
        rows = [_counts(int(made.prompts[k]), made.expected[k]) for k in chosen]
        return [Made(images[k], row) for k, row in zip(chosen, rows, strict=True)]

    def _truth(self, ready: _Ready, draws: Realizations) -> np.ndarray:
        subject = ready.plan.subject
        inside = draws.reconstructor(1)[1].inside
        return resample(subject.activity_bqml, subject.grid, ready.plan.grid) * inside

    def _prepared(self, subject: str) -> _Ready:
        if subject in self._ready:
            self._ready.move_to_end(subject)
            return self._ready[subject]
        settings = self._request.settings
        loaded = load_subject(self._jobs[subject], self._request)
        plan = plan_subject(loaded, settings)
        check_memory(plan, settings, self._memory_bytes * (1 - SUBJECTS_SHARE))
        known = recipe(self._request, loaded.content_sha256)
        path, key = self._folder / f"{subject}.h5", sha256_of(["forward", subject, known])
        forward = read_forward(path, key, plan.scanner)
        if forward is None:
            forward = self._made(path, key, plan, settings)
        model = build_model(plan, replace(settings, counts=None), forward.photons)
        model = at_doses(model, plan, settings, forward.photons, forward.scale)
        if forward.integrals is not None:
            model = replace(model, projected=forward.line_integrals)
        level = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
        ready = _Ready(plan, forward.photons, forward.scale, model, level)
        self._ready[subject] = ready
        while len(self._ready) > 1 and sum(r.bytes for r in self._ready.values()) > SUBJECTS_SHARE * self._memory_bytes:
            self._ready.popitem(last=False)
        return ready

    def _made(self, path: Path, key: str, plan: Plan, settings: SimulationSettings) -> Forward:
        photons = find_photons(plan, settings)
        model = build_model(plan, settings, photons)
        scale = duration_scale(model, plan, settings, photons)
        path.unlink(missing_ok=True)
        taken = sum(p.stat().st_size for p in self._folder.glob("*.h5"))
        wanted = 4.0 * math.prod(plan.layout.shape)
        fits = taken + wanted <= self._kept_bytes and wanted < shutil.disk_usage(self._folder).free
        views = np.arange(plan.layout.views)
        groups = np.split(views, views[plan.views_at_once :: plan.views_at_once]) if fits else ()
        write_forward(path, key, photons, scale, model, groups)
        forward = read_forward(path, key, plan.scanner)
        if forward is None:
            raise DataError(f"{path.name}: was written and cannot be read; check the disk")
        return forward


def _counts(prompts: int, expected: np.ndarray) -> dict[str, Any]:
    """Prompts as drawn, and noise-equivalent counts T^2 / (T + S + R) as expected (NEMA NU 2-2018, k = 1)."""
    trues, total = float(expected[0]), float(expected.sum())
    return {"prompts": prompts, "nec": trues**2 / total if total > 0 else 0.0}
