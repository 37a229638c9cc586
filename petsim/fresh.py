"""Fresh realizations of the subjects of a dataset: a draw of the counts and a reconstruction, no forward projection."""

import dataclasses
import json
import math
import shutil
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.phantoms.families import REFERENCE
from data_recipes.resample import resample
from petsim.acquisition import AcquisitionModel
from petsim.cache.live import SCHEMA, Made, locked
from petsim.cache.store import SubjectFile, canonical_json, read_index, sha256_of
from petsim.counts import storage
from petsim.dataset import Job, ReadOptions, Request, configuration, load_subject, settings_for
from petsim.forward_store import Forward, read_forward, write_forward
from petsim.model import SAMPLED_VIEWS, at_doses, build_model, duration_scale, expected_total, find_photons
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


@dataclass(frozen=True)
class Origin:
    """How a subject of a dataset was made, so that it can be made again.

    Parameters
    ----------
    request : Request
        Its settings are the subject's own.
    job : Job
    source_sha256 : str
        Of what was simulated.
    """

    request: Request
    job: Job
    source_sha256: str

    def recipe(self) -> dict[str, Any]:
        """Everything that the subject's volumes depend on, besides dose and realization; JSON types."""
        known = configuration(self.request)
        return {k: v for k, v in known.items() if k not in ("drf", "realizations", "save")} | {"source": self.source_sha256}


def origins(folder: Path, paths: Paths, memory_gb: float = 8.0, split: str = "train") -> dict[str, Origin]:
    """How the subjects of a split of a dataset were made.

    Parameters
    ----------
    folder : Path
        Of the dataset.
    paths : Paths
    memory_gb : float
    split : str

    Raises
    ------
    DataError
        The same settings would give other numbers now, or a subject whose source is not among the paths.
    """
    entries = [s for s in read_index(folder)["subjects"] if s["split"] == split]
    if not entries:
        raise DataError(f"{folder.name}: no subject in the split '{split}'; make at least three subjects")
    found, sources = {}, None
    for entry in entries:
        with SubjectFile(folder / entry["file"]) as f:
            known, digest = f.json("configuration"), f.json("provenance")["source_sha256"]
        request = _request(folder, entry["name"], known, paths, memory_gb)
        if not request.sources:
            found[entry["name"]] = Origin(request, Job(entry["name"], seed=int(entry["name"].rsplit("-", 1)[1])), digest)
            continue
        if sources is None:
            sources = {load_subject(Job("source", path=p), request).content_sha256: p for p in request.sources}
        if digest not in sources:
            raise DataError(f"{folder.name}: the source of {entry['name']} is not known; name it with --source")
        found[entry["name"]] = Origin(request, Job(entry["name"], path=sources[digest]), digest)
    return found


def _request(folder: Path, subject: str, known: dict[str, Any], paths: Paths, memory_gb: float) -> Request:
    """The request that a subject was made with."""
    try:
        values = {f.name: known[f.name] for f in dataclasses.fields(SimulationSettings) if f.name in known}
        values |= {"drf": tuple(known["drf"]), "scanner": paths.scanner or known["scanner"]}
        if "projector" in known:
            values["backend"] = "parallelproj"
        kept = {f.name: known["read"][f.name] for f in dataclasses.fields(ReadOptions) if f.name in known["read"]}
        images, save = known["source"] == "image", tuple(known["save"])
    except KeyError as error:
        raise DataError(f"{subject}: its configuration has no {error}; make it again") from None
    if known["source"] == "raw":
        raise DataError(f"{folder.name}: recorded scans have one draw of the noise; fresh ones need simulated subjects")
    if known.get("beds") is not None or known.get("grid") is not None:
        raise DataError(
            f"{folder.name}: was made with --beds or --grid, of which there are no fresh realizations; make a dataset "
            "without, or with more --realizations"
        )
    if images and not paths.sources:
        raise DataError(
            f"{folder.name}: was made from images, of which it knows no path; name them with petsim serve-cache --source"
        )
    request = Request(
        str(folder), settings=SimulationSettings(**values), sources=paths.sources if images else (), save=save,
        read=ReadOptions(**kept, sidecar=paths.sidecar, ct=paths.ct, mu=paths.mu), memory_gb=memory_gb,
        **{name: known[name] for name in ("lesions", "insert_lesions") if name in known},
        **({} if images else {"family": known.get("family", REFERENCE.name)}),
    )  # fmt: skip
    now = json.loads(canonical_json(configuration(request)))
    # A setting that did not exist then meant what its default means.
    known = {f.name: f.default for f in dataclasses.fields(SimulationSettings) if f.name in now} | known
    changed = sorted(k for k in {*now, *known} if now.get(k) != known.get(k))
    if changed:
        raise DataError(
            f"{subject}: was made with other values of {', '.join(changed)}; give the files that it was made with "
            "(--scanner, --ct, --mu, --sidecar), or make it again"
        )
    return request


@dataclass
class _Ready:
    """A subject between two of its realizations."""

    plan: Plan
    settings: SimulationSettings
    forward: Forward
    model: AcquisitionModel
    level: float
    latest: tuple[tuple[float, ...], Realizations] | None = None

    @property
    def bytes(self) -> float:
        """Memory, about."""
        fine, voxels = math.prod(self.plan.simulation_grid.shape), math.prod(self.plan.grid.shape)
        whole = math.prod(self.plan.whole_subject.activity_bqml.shape)
        scatter = self.forward.photons.scatter
        table = 0 if scatter is None else scatter.values.nbytes
        return 4.0 * (2 * fine + voxels * (2 + 2 * self.plan.preset.subsets) + 3 * whole) + table


class Simulator:
    """Makes volumes of a dataset's subjects; what realizations share is found once, and kept on disk.

    Parameters
    ----------
    subjects : dict
        Name -> Origin.
    folder : Path
        For what is kept.
    kept_bytes : float
        Line integrals take no more disk space than this; those of further subjects are projected anew.
    memory_bytes : float
        Memory that may be used.
    """

    def __init__(self, subjects: dict[str, Origin], folder: Path, kept_bytes: float, memory_bytes: float) -> None:
        self._subjects, self._folder = subjects, folder
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
        settings = replace(ready.settings, drf=drfs)
        ladder = settings.ladder()
        if ready.latest is None or ready.latest[0] != ladder:
            check_memory(ready.plan, settings, self._memory_bytes, 1 - SUBJECTS_SHARE)
            model = at_doses(ready.model, ready.plan, settings, ready.forward.photons, ready.forward.scale)
            # Line integrals are on disk: expected counts are not to be held as well.
            one = replace(settings, realizations=1)
            store = storage(ready.plan, one, False, ready.level, self._memory_bytes * (1 - SUBJECTS_SHARE))
            ready.latest = ladder, Realizations(ready.plan, settings, model, store)
        draws = ready.latest[1]
        made = draws.make(realization)
        images = made.images
        if settings.full_dose == "source":
            images = insert_noise(self._truth(ready, draws), images[:, None])[:, 0]
        chosen = [ladder.index(drf) for drf in drfs]
        return [Made(images[k], {"prompts": int(made.prompts[k]), "nec": made.nec(k)}) for k in chosen]

    def _truth(self, ready: _Ready, draws: Realizations) -> np.ndarray:
        subject = ready.plan.subject
        inside = draws.reconstructor(1)[1].inside
        return resample(subject.activity_bqml, subject.grid, ready.plan.grid) * inside

    def _prepared(self, subject: str) -> _Ready:
        if subject in self._ready:
            self._ready.move_to_end(subject)
            return self._ready[subject]
        origin = self._subjects[subject]
        loaded = load_subject(origin.job, origin.request)
        if loaded.content_sha256 != origin.source_sha256:
            raise DataError(f"{subject}: its source is not what it was when the dataset was made; make the dataset again")
        loaded, settings = settings_for(loaded, origin.request)
        plan = plan_subject(loaded, settings)
        path, key = self._folder / f"{subject}.h5", sha256_of(["forward", SCHEMA, subject, origin.recipe()])
        with locked(self._folder / f"{subject}.lock", wait=True):
            forward = read_forward(path, key, plan.scanner)
            if forward is None or (forward.integrals is None and self._fits(path, plan)):
                forward = self._made(path, key, plan, settings)
        model = build_model(plan, replace(settings, counts=None), forward.photons)
        model = at_doses(model, plan, settings, forward.photons, forward.scale)
        if forward.integrals is not None:
            model = replace(model, projected=forward.line_integrals)
        level = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
        ready = _Ready(plan, settings, forward, model, level)
        self._ready[subject] = ready
        while len(self._ready) > 1 and sum(r.bytes for r in self._ready.values()) > SUBJECTS_SHARE * self._memory_bytes:
            self._ready.popitem(last=False)
        return ready

    def _made(self, path: Path, key: str, plan: Plan, settings: SimulationSettings) -> Forward:
        photons = find_photons(plan, settings)
        model = build_model(plan, settings, photons)
        scale = duration_scale(model, plan, settings, photons)
        path.unlink(missing_ok=True)
        views = np.arange(plan.layout.views)
        groups = np.split(views, views[plan.views_at_once :: plan.views_at_once]) if self._fits(path, plan) else ()
        write_forward(path, key, photons, scale, model, groups)
        forward = read_forward(path, key, plan.scanner)
        if forward is None:
            raise DataError(f"{path.name}: was written and cannot be read; check the disk")
        return forward

    def _fits(self, path: Path, plan: Plan) -> bool:
        """Whether the line integrals of a subject may be kept, after those of subjects of no one went."""
        for other in self._folder.glob("*.h5"):
            if other.stem not in self._subjects:
                other.unlink(missing_ok=True)
        taken = sum(p.stat().st_size for p in self._folder.glob("*.h5") if p != path)
        wanted = 4.0 * math.prod(plan.layout.shape)
        return taken + wanted <= self._kept_bytes and wanted < shutil.disk_usage(self._folder).free
