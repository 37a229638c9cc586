"""make-dataset: from sources to a folder of subjects' files. Wiring only, no physics."""

import dataclasses
import functools
import platform
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.families import DEFAULT, REFERENCE, family_named
from data_recipes.phantoms.lesion_shapes import LesionShape
from data_recipes.subject import Subject
from petsim.presets import GRIDS
from petsim.settings import ReadOptions, SimulationSettings
from petsim.workers import Report, in_processes, on_dask

LISTMODE = "listmode"
"""Folder of a dataset that holds list-mode files."""
ANATOMY = 2
"""Goes up when seeds of a family come to give other patients, so that no dataset mixes both. "reference" never changes."""


@dataclass(frozen=True)
class Job:
    """One subject to be made: a generated one (`seed`) or a source on disk (`path`)."""

    name: str
    seed: int | None = None
    path: str | None = None


@dataclass(frozen=True)
class Request:
    """Everything that make-dataset was asked for.

    Parameters
    ----------
    out : str
        Folder of the dataset.
    sources : tuple of str
        Paths; empty for generated whole-body patients.
    subjects : int
        Number of generated patients.
    settings : SimulationSettings
    read : ReadOptions
    save : tuple of str
        "recon", "sinogram" for the counts too, and "listmode" for their events (folder listmode).
    memory_gb : float
        Memory that one worker may use.
    family, lesions : str
        Of generated patients, see `data_recipes.phantoms.whole_body`.
    insert_lesions : int
        Number of lesions put into every image.
    """

    out: str
    sources: tuple[str, ...] = ()
    subjects: int = 4
    settings: SimulationSettings = field(default_factory=SimulationSettings)
    read: ReadOptions = field(default_factory=ReadOptions)
    save: tuple[str, ...] = ("recon",)
    memory_gb: float = 8.0
    family: str = DEFAULT
    lesions: LesionShape = "round"
    insert_lesions: int = 0


def jobs_of(request: Request) -> list[Job]:
    """Subjects of a request, in a fixed order."""
    if request.sources:
        return [Job(name=f"source-{k + 1}", path=path) for k, path in enumerate(request.sources)]
    from data_recipes.phantoms.whole_body import phantom_name

    first = request.settings.seed * 10_000
    names = [phantom_name(first + k, request.family, request.lesions) for k in range(request.subjects)]
    return [Job(name=name, seed=first + k) for k, name in enumerate(names)]


def load_subject(job: Job, request: Request) -> Subject:
    """Read or generate a job's subject, with attenuation."""
    from data_recipes.contour import with_mu

    options = request.read
    if job.path is not None:
        from data_recipes.readers.read import read_source

        subject = read_source(
            job.path, units=options.units, sidecar=options.sidecar, fwhm_mm=options.fwhm_mm, weight_kg=options.weight_kg,
            injected_mbq=options.injected_mbq, uptake_s=options.uptake_s, duration_s=request.settings.duration_s,
        )  # fmt: skip
        subject = with_mu(
            subject, ct=options.ct, mu=options.mu, kvp=options.ct_kvp, without_table=options.ct_without_table
        )  # fmt: skip
        if not request.insert_lesions:
            return subject
        from data_recipes.lesions import insert_lesions

        return insert_lesions(subject, request.insert_lesions, request.settings.seed)
    from data_recipes.phantoms.whole_body import whole_body
    from petsim.geometry.scanner import load_scanner

    assert job.seed is not None
    scanner = load_scanner(request.settings.scanner)
    uptake = scanner.given("protocol_uptake_s") if options.uptake_s is None else options.uptake_s
    person = functools.partial(whole_body, job.seed, family=request.family, lesions=request.lesions)
    if options.injected_mbq is None:
        return person(mbq_per_kg=scanner.given("protocol_mbq_per_kg"), uptake_s=uptake)
    weight = person().injection.weight_kg
    assert weight is not None
    return person(mbq_per_kg=options.injected_mbq / weight, uptake_s=uptake)


def settings_for(subject: Subject, request: Request) -> tuple[Subject, SimulationSettings]:
    """A subject and the settings it is simulated with: its own where these vary."""
    if not request.settings.vary:
        return subject, request.settings
    from petsim.plan import scan_duration_s
    from petsim.vary import draw

    return draw(subject, request.settings, scan_duration_s(subject, request.settings))


def configuration(request: Request) -> dict[str, Any]:
    """What changes numbers, as JSON: settings, how sources are read, the scanner's content. No path, host or worker."""
    from petsim.geometry.scanner import CONTRAST_FIELDS, load_scanner

    scanner = load_scanner(request.settings.scanner)
    files = request.read.files()
    read = {k: v for k, v in dataclasses.asdict(request.read).items() if k not in ("sidecar", "ct", "mu", *files)}
    read["attenuation"] = "ct" if request.read.ct else "given" if request.read.mu else "default"
    for k, path in files.items():
        read[f"{k}_sha256"] = _content_sha256(Path(path))
    settings = request.settings.as_json()
    settings["drf"] = list(request.settings.ladder())
    settings["scanner"] = scanner.name
    # Our own backends give the same numbers; parallelproj does not at the border of the image.
    if settings.pop("backend") == "parallelproj":
        from petsim.projectors.parallelproj import load_library

        settings["projector"] = f"parallelproj {load_library().version}"
    if request.settings.vary:
        from petsim.vary import RANGES

        settings["vary_ranges"] = dataclasses.asdict(RANGES)
    fields = {k: v for k, v in dataclasses.asdict(scanner).items() if k not in ("sources", "title", *CONTRAST_FIELDS)}
    if request.settings.beds is None:
        # It came later, and means nothing without bed positions.
        del fields["protocol_bed_overlap"]
    usual = Request(out="")
    subjects: dict[str, Any] = {n: getattr(request, n) for n in ("lesions", "insert_lesions")
                                if getattr(request, n) != getattr(usual, n)}  # fmt: skip
    if not request.sources and request.family != REFERENCE.name:
        # Datasets without it are older than the other families.
        subjects |= {"family": request.family, "anatomy": ANATOMY}
    return {
        **settings,
        **subjects,
        "preset_values": request.settings.resolved_preset().as_json(),
        "scanner_fields": fields,
        "read": read,
        "source": "raw" if are_raw(request.sources) else "image" if request.sources else "whole-body",
        "save": sorted(request.save),
    }


def _content_sha256(path: Path) -> str:
    """Hash of a file, or of all files of a folder in the order of their own hashes (names do not count)."""
    import hashlib

    if not path.exists():
        raise DataError(f"{path.name}: no such file or folder; check the name")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digests = sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def make_dataset(
    request: Request,
    workers: int = 1,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    dask: str | None = None,
    report: Report = lambda subject, what, fraction: None,
) -> dict[str, Any]:
    """Make every subject that is not there yet, and the index.

    Parameters
    ----------
    request : Request
    workers : int
        Processes; results do not depend on it.
    shard : tuple of int
        (I, N): make every N-th subject, starting with the I-th.
    overwrite : bool
        Remove a dataset made with other settings first.
    dask : str, optional
        Address of a dask scheduler, whose workers make the subjects instead.
    report : callable

    Returns
    -------
    dict
        subjects (name, whether made or found, counts by DRF), seconds.

    Raises
    ------
    UsageError, DataError
    """
    from petsim.cache.store import sha256_of, write_index

    started = time.monotonic()
    if dask is not None:
        # Workers have other working directories.
        request = _with_absolute_paths(request)
    out = Path(request.out)
    digest = sha256_of(configuration(request))
    jobs = jobs_of(request)[shard[0] - 1 :: shard[1]]
    _open_folder(out, digest, overwrite, request.family)
    pieces, work = {job.name: job for job in jobs}, functools.partial(_make, request, digest)
    if dask is not None:
        done = list(on_dask(pieces, work, dask, report).values())
        missing = [one["name"] for one in done if not (out / f"{one['name']}.h5").exists()]
        if missing:
            raise DataError(f"--dask {dask}: the file of {missing[0]} is not here; its workers must see the same folders")
    elif workers == 1:
        done = [work(job, report) for job in jobs]
    else:
        done = list(in_processes(pieces, work, workers, report).values())
    index = write_index(out)
    return {"subjects": done, "in_dataset": len(index["subjects"]), "seconds": round(time.monotonic() - started, 2)}


def _open_folder(out: Path, digest: str, overwrite: bool, family: str) -> None:
    """Create the folder; refuse or clear one that holds a dataset made with other settings."""
    from petsim.cache.store import INDEX, SubjectFile, subject_files

    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"--out {out.name}: {error.strerror}; choose a folder that can be written") from None
    for path in subject_files(out):
        with SubjectFile(path) as f:
            same, known = f.attribute("configuration_sha256") == digest, f.json("configuration")
        if not same and not overwrite:
            older = known.get("source") == "whole-body" and "family" not in known and family != REFERENCE.name
            raise DataError(
                f"--out {out.name}: {path.name} was made with other settings; choose another folder, or add --overwrite to "
                "remove that dataset" + (f"; its patients are those of --family {REFERENCE.name}" if older else "")
            )
        if not same:
            path.unlink()
            (out / INDEX).unlink(missing_ok=True)
            for events in (out / LISTMODE).glob(f"{path.stem}_r*"):
                events.unlink()


def _with_absolute_paths(request: Request) -> Request:
    settings = request.settings
    if settings.scanner.endswith(".toml"):
        settings = replace(settings, scanner=str(Path(settings.scanner).absolute()))
    return replace(
        request, out=str(Path(request.out).absolute()), settings=settings,
        sources=tuple(str(Path(p).absolute()) for p in request.sources),
        read=replace(request.read, **{name: str(Path(path).absolute()) for name, path in request.read.files().items()}),
    )  # fmt: skip


def _make(request: Request, digest: str, job: Job, report: Report) -> dict[str, Any]:
    return make_subject(job, request, digest, report)


def make_subject(job: Job, request: Request, digest: str, report: Report) -> dict[str, Any]:
    """Simulate one subject and write its file, unless that is there."""
    from petsim.bed_simulation import simulate_beds
    from petsim.beds import BedPlan, plan_beds
    from petsim.cache.store import SubjectFile, write_subject
    from petsim.memory import memory_budget
    from petsim.plan import plan_subject
    from petsim.simulation import simulate_plan

    out = Path(request.out)
    if job.path is not None and are_raw((job.path,)):
        return _make_recorded(job, request, digest, report)
    if job.seed is not None and (out / f"{job.name}.h5").exists():
        return {"name": job.name, "made": False}
    report(job.name, "reading", 0.0)
    subject = load_subject(job, request)
    path = out / f"{subject.name}.h5"
    if path.exists():
        with SubjectFile(path):
            return {"name": subject.name, "made": False}
    subject, settings = settings_for(subject, request)
    plan = plan_subject(subject, settings) if settings.beds is None else plan_beds(subject, settings)
    _check_room(out, plan, request)
    budget = memory_budget(request.memory_gb)

    def told(what: str, fraction: float) -> None:
        report(job.name, what, fraction)

    if isinstance(plan, BedPlan):
        result = simulate_beds(plan, settings, budget, told)
    else:
        result = simulate_plan(plan, settings, budget, "sinogram" in request.save, told, _listmode_folder(request))
    result = _on_output_grid(result, plan.subject, request)
    report(job.name, "writing", 1.0)
    if settings.vary:
        from petsim.vary import described

        result.provenance["vary"] = described(settings)
    write_subject(path, _record(plan.subject, result, request, digest))
    return _told(subject, result)


def _on_output_grid(result: Any, subject: Subject, request: Request) -> Any:
    """The result on the grid that was asked for, if any."""
    from petsim.output_grid import on_grid

    name = request.settings.grid
    return result if name is None else on_grid(result, subject, name)


def _listmode_folder(request: Request) -> Path | None:
    if "listmode" not in request.save:
        return None
    folder = Path(request.out) / LISTMODE
    folder.mkdir(exist_ok=True)
    return folder


def are_measured(sources: tuple[str, ...]) -> bool:
    """Whether sources are measured images rather than phantoms' subject files; a mixture is refused."""
    from data_recipes.subject_file import ENDING, is_noisy_file

    measured = [not path.endswith(ENDING) or is_noisy_file(Path(path)) for path in sources]
    if any(measured) and not all(measured):
        raise UsageError("SOURCE: measured images and phantoms were given together; make a dataset of each")
    return any(measured)


def are_raw(sources: tuple[str, ...]) -> bool:
    """Whether sources are raw data rather than images; a mixture is refused."""
    from petsim.rawdata.formats import is_listmode

    raw = [is_listmode(Path(path)) for path in sources]
    if any(raw) and not all(raw):
        raise UsageError("SOURCE: images and raw data were given together; make a dataset of each")
    return any(raw)


def _make_recorded(job: Job, request: Request, digest: str, report: Report) -> dict[str, Any]:
    from petsim.cache.store import SubjectFile, write_subject
    from petsim.memory import memory_budget
    from petsim.rawdata.formats import open_listmode
    from petsim.recorded import plan_recorded, reconstruct_recorded

    out, settings = Path(request.out), request.settings
    assert job.path is not None
    report(job.name, "reading", 0.0)
    source = open_listmode(Path(job.path), settings.scanner)
    plan = plan_recorded(source, settings, request.read)
    path = out / f"{plan.subject.name}.h5"
    if path.exists():
        with SubjectFile(path):
            return {"name": plan.subject.name, "made": False}
    _check_room(out, plan, request)
    subject, result = reconstruct_recorded(
        source, plan, settings, request.read, memory_budget(request.memory_gb), "sinogram" in request.save,
        lambda what, fraction: report(job.name, what, fraction),
    )  # fmt: skip
    result = _on_output_grid(result, subject, request)
    report(job.name, "writing", 1.0)
    write_subject(path, _record(subject, result, request, digest))
    return _told(subject, result)


def _told(subject: Subject, result: Any) -> dict[str, Any]:
    return {
        "name": subject.name,
        "made": True,
        "counts": {f"{row['drf']:g}": row["prompts"] for row in result.counts if row["realization"] == 0},
        "from_events_drf": result.provenance["reconstruction"]["from_events_drf"],
        "warnings": result.provenance["warnings"],
    }


def bytes_on_disk(plan: Any, request: Request) -> float:
    """Size of a subject's file."""
    import math

    doses, realizations = len(request.settings.ladder()), request.settings.realizations
    shape = plan.grid.shape if request.settings.grid is None else GRIDS[request.settings.grid].shape
    voxels = math.prod(shape)
    padded = math.prod(32 * math.ceil(n / 32) for n in shape)
    sinogram = 2 * doses * realizations * math.prod(plan.layout.shape) if "sinogram" in request.save else 0
    return 2 * padded * doses * realizations + 7 * max(voxels, padded) + sinogram + 1e5


def _check_room(out: Path, plan: Any, request: Request) -> None:
    """Refuse what disk, or memory for the output grid, does not hold, before the work."""
    settings = request.settings
    if settings.grid is not None:
        from petsim.memory import memory_budget
        from petsim.output_grid import check_output

        check_output(settings.grid, len(settings.ladder()) * settings.realizations, memory_budget(request.memory_gb))
    free, needed = shutil.disk_usage(out).free, bytes_on_disk(plan, request)
    if needed > free:
        raise DataError(
            f"--out {out.name}: a subject needs {needed / 1e6:.0f} MB but {free / 1e6:.0f} MB are free; free some space or "
            "choose another disk"
        )


def _record(subject: Subject, result: Any, request: Request, digest: str) -> Any:
    """What is stored of a simulation."""
    import numpy as np

    from petsim.cache.schema import FLOAT_ROWS, INTEGER_ROWS, SubjectRecord

    shape = result.images.shape[:2]
    doses = {name: np.full(shape, np.nan) for name in FLOAT_ROWS} | {n: np.zeros(shape, np.int64) for n in INTEGER_ROWS}
    for row in result.counts:
        where = result.drfs.index(row["drf"]), row["realization"]
        for name, values in doses.items():
            if row[name] is not None:
                values[where] = row[name]
    source = dict(subject.provenance)
    return SubjectRecord(
        name=subject.name,
        shape=result.grid.shape,
        spacing_mm=result.grid.spacing_mm,
        origin_mm=result.grid.origin_mm,
        suv_factor=subject.suv_factor(),
        drfs=result.drfs,
        images=result.images,
        noise_free=result.noise_free,
        activity=result.activity_bqml,
        mu=result.mu_per_cm,
        labels=result.labels,
        sinogram=None if result.sinograms is None else np.stack(result.sinograms, axis=1),
        doses=doses,
        label_names=subject.label_names,
        mode=request.settings.mode,
        seed=request.settings.seed,
        configuration=configuration(request),
        configuration_sha256=digest,
        provenance={
            **result.provenance,
            "source": source,
            "source_sha256": subject.content_sha256,
            "injection": dataclasses.asdict(subject.injection),
        },
        versions=versions(),
        license=str(source.get("license", "unknown: ask whoever gave the source")),
        origin=str(source.get("kind", "unknown")),
    )


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    from importlib.metadata import version

    packages = ("petsim", "numpy", "numba", "scipy", "h5py")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def check_request(request: Request) -> None:
    """Refuse flags that do not go together."""
    settings = request.settings
    if settings.beds is not None and set(request.save) != {"recon"}:
        raise UsageError("--save: counts and events of several bed positions cannot be stored; leave out sinogram and "
                         "listmode, or --beds")  # fmt: skip
    if "listmode" in request.save and (settings.mode != "thin" or are_raw(request.sources)):
        what = (
            f"in mode {settings.mode} comes from petsim thin" if settings.mode != "thin" else "of raw data is there already"
        )
        raise UsageError(f"--save listmode: list mode {what}; leave it out")
    if request.insert_lesions < 0:
        raise UsageError(f"--insert-lesions: must be 0 or more, got {request.insert_lesions}")
    if request.subjects < 1:
        raise UsageError(f"--subjects: must be at least 1, got {request.subjects}")
    if settings.full_dose == "source" and not request.sources:
        raise UsageError("--full-dose source: generated patients have no measured image; leave the flag out")
    if settings.full_dose == "source" and not are_raw(request.sources) and not are_measured(request.sources):
        raise UsageError("--full-dose source: phantoms have no measured image; leave the flag out")
    if are_raw(request.sources):
        _check_raw(request)
        return
    if request.read.normalization is not None:
        raise UsageError("--normalization: belongs to raw data; images and generated patients need none")
    if request.sources:
        if (request.family, request.lesions) != (DEFAULT, "round"):
            raise UsageError("--family, --lesion-shape: are of generated patients; leave them out where a SOURCE is given")
        return
    family_named(request.family)
    if request.insert_lesions:
        raise UsageError("--insert-lesions: needs a SOURCE; generated patients have lesions of their own")
    for flag, value in (("--ct", request.read.ct), ("--mu", request.read.mu), ("--source-units", request.read.units),
                        ("--sidecar", request.read.sidecar), ("--source-fwhm-mm", request.read.fwhm_mm)):  # fmt: skip
        if value is not None:
            raise UsageError(f"{flag}: needs a SOURCE; generated patients bring their own")
    if request.read.ct_without_table:
        raise UsageError("--ct-remove-table: needs a SOURCE and its --ct")


def _check_raw(request: Request) -> None:
    """Refuse what says nothing about recorded data."""
    usual = SimulationSettings()
    if request.insert_lesions:
        raise UsageError("--insert-lesions: raw data hold their counts already; leave it out")
    names = ("counts", "duration_s", "slab_mm", "randoms", "corrections", "drift", "mu_shift", "truncation_mm",
             "respiratory_mm", "vary", "beds", "bed_overlap")  # fmt: skip
    flags = [f"--{'slab' if n == 'slab_mm' else n.replace('_', '-')}" for n in names
             if getattr(request.settings, n) != getattr(usual, n)]  # fmt: skip
    flags += ["--scatter monte-carlo"] if request.settings.scatter == "monte-carlo" else []
    read = request.read
    flags += [f"--{flag}" for flag, value in (("source-units", read.units), ("sidecar", read.sidecar),
                                              ("source-fwhm-mm", read.fwhm_mm)) if value is not None]  # fmt: skip
    if flags:
        raise UsageError(f"{', '.join(flags)}: tells how to simulate or to read images; leave it out for raw data")
