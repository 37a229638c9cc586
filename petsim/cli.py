"""The `petsim` command. Only what parsing needs is imported here; the rest when a command runs."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

import petsim
from data_recipes.errors import UsageError
from data_recipes.phantoms.families import DEFAULT
from petsim import command_line
from petsim.presets import NAMED_PRESETS, PRESETS, preset_lines
from petsim.settings import (
    DRF_SETS,
    CorrectionKind,
    DoseMode,
    FullDose,
    RandomsModel,
    ReadOptions,
    ScatterModel,
    SimulationSettings,
    check_drfs,
)

DEFAULT_SCANNER = "biograph_vision_quadra"


@dataclass(frozen=True)
class MakeDataset:
    """Make a dose ladder of every subject: counts and images at full and at low dose."""

    source: Positional[tuple[str, ...]] = ()
    """PET DICOM folder, NIfTI file or list-mode file (see petsim thin), several allowed. None: generated whole-body
    patients."""
    out: str = "petsim-dataset"
    """Folder of the dataset."""
    drf: tuple[str, ...] = ("4", "10", "20", "100")
    """Dose reduction factors; full dose (1) is always made."""
    drf_set: Literal["map-diff", "udpet", "unipet"] | None = None
    """A known set of factors instead: map-diff 2 4 10 20, udpet 4 10 20 50 100, unipet 2 3 6 12."""
    scanner: str | None = None
    """Scanner, see `petsim scanners`, or a TOML file. Default: biograph_vision_quadra; of list-mode files, their own."""
    mode: DoseMode = "thin"
    """How counts are reduced: thin = counts / DRF, binomially, at the rates of the full dose; window = counts / DRF, the
    middle of the scan; dose = injected dose / DRF, with fewer randoms and less dead time."""
    scatter: ScatterModel = "simulated"
    """Scatter in the data: simulated (single scatter and a model of multiple), monte-carlo, or none."""
    randoms: RandomsModel = "simulated"
    """Randoms, 176Lu background and dead time in the data: simulated or none."""
    corrections: CorrectionKind = "estimated"
    """Corrections in the reconstruction: estimated from the noisy data as a scanner would, or oracle for the true ones."""
    drift: float = 0.01
    """Relative standard deviation between true crystal efficiencies and those used."""
    mu_shift: float = 1.0
    """Scale of the random shift between true and used mu-map (1: 4.4 mm axially, 1 mm across; 0: none)."""
    truncation_mm: float | None = None
    """Diameter beyond which the mu-map in use is empty."""
    realizations: int = 1
    """Independent noise realizations a dose."""
    save: tuple[Literal["recon", "sinogram", "listmode"], ...] = ("recon",)
    """What is stored: images, also counts, also events with their labels (folder listmode, one file a dose)."""
    seed: int = 0
    """Seed of patients and noise."""
    subjects: int = 4
    """Number of generated patients."""
    family: str = DEFAULT
    """Family of generated patients: balanced, slender, heavy; warped and mirrored are for tests of transfer; reference is
    that of older datasets, whose activity does not add up to what was injected."""
    lesion_shape: Literal["round", "irregular", "necrotic"] = "round"
    """Shape of generated patients' lesions; necrotic is for tests of transfer."""
    insert_lesions: int = 0
    """Number of lesions to be put into every image, with labels."""
    preset: str | None = None
    """fast, standard, full or one of a vendor, see petsim reconstruct --list-presets. Default: fast for generated patients,
    standard for images."""
    full_dose: FullDose | None = None
    """source: DRF 1 is the image itself and noise is inserted for lower doses (default for images); simulated: DRF 1 is
    a new reconstruction (generated patients)."""
    voxel_mm: float | None = None
    """Transaxial voxel of the images."""
    iterations: int | None = None
    """Iterations of OSEM, or of what the preset reconstructs with."""
    subsets: int | None = None
    """Subsets of them."""
    filter_mm: float | None = None
    """FWHM of the Gaussian post-filter."""
    no_psf: bool = False
    """Reconstruct without the point spread function."""
    respiratory_mm: float = 0.0
    """Amplitude of breathing that blurs the data along the axis."""
    vary: bool = False
    """Draw duration, activity, iterations, subsets, filter, voxels, point spread function, mu-map mismatch, drift and
    breathing for every subject, as far as they have their defaults; what was drawn is stored."""
    duration_s: float | None = None
    """Scan duration. Default: the source's, else the scanner's protocol."""
    activity_mbq: float | None = None
    """Injected activity. Default: the source's, else the scanner's protocol."""
    uptake_s: float | None = None
    """Seconds from injection to scan start."""
    weight_kg: float | None = None
    """Body weight of an image's patient."""
    counts: float | None = None
    """Expected prompts at full dose, instead of what activity, duration and sensitivity give."""
    source_units: Literal["bqml", "suv"] | None = None
    """Units of images that do not say."""
    source_fwhm_mm: float | None = None
    """Resolution that the source image has. Default: 1.5 voxels, marked as estimated."""
    sidecar: str | None = None
    """JSON or CSV that goes with a NIfTI image (weight, activity, times)."""
    ct: str | None = None
    """CT of the subject (DICOM folder, or NIfTI in HU) for attenuation."""
    ct_kvp: float | None = None
    """Tube voltage of a CT that does not say."""
    ct_remove_table: bool = False
    """Take the couch out of the CT."""
    mu: str | None = None
    """mu-map of the subject, NIfTI in 1/cm. Of list-mode files in the scanner's coordinates, as the CT."""
    normalization: str | None = None
    """Crystal efficiencies for list-mode files, .npy (crystals a ring, rings), or estimate: from the delayeds."""
    fov_mm: float | None = None
    """Transaxial field of view. Default: 480 for generated patients, else what the body needs."""
    center_mm: float | None = None
    """Axial position of the subject (patient z) that lies at the scanner's center."""
    slab: float | None = None
    """Axial length in mm of a short part to simulate, as a preview."""
    beds: str | None = None
    """Bed positions for a subject longer than the scanner: a number, or auto for as many as hold it."""
    bed_overlap: float | None = None
    """Overlap of bed positions as a part of the axial field of view. Default: the scanner's usual one, else 0.25."""
    grid: str | None = None
    """Resample the images to the voxels of a public data set: quadra or uexplorer."""
    memory_gb: float = 8.0
    """Memory a worker may use; what does not fit is computed anew (slower, same numbers)."""
    workers: int = 1
    """Processes; results do not depend on it."""
    dask: str | None = None
    """Address of a dask scheduler, whose workers make the subjects instead; they must see the same files."""
    shard: str = "1/1"
    """I/N: make every N-th subject, starting with the I-th (for job arrays)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where projections and the photon Monte Carlo run; auto takes a GPU when there is one."""
    backend: Literal["auto", "numba", "cuda", "parallelproj"] = "auto"
    """What projects; parallelproj must be installed."""
    overwrite: bool = False
    """Replace a dataset that was made with other settings."""
    dry_run: bool = False
    """Write nothing; print how the source was read, counts, noise, time, memory and disk."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class ServeCache:
    """Make fresh noise realizations of a dataset's training subjects, over and over, for denoise train --live."""

    dataset: Positional[str]
    """Folder of the dataset."""
    cache: str | None = None
    """Folder of the cache. Default: live in the dataset's folder."""
    source: tuple[str, ...] = ()
    """Images that the dataset was made from; it knows no path of them."""
    sidecar: str | None = None
    """Sidecar that it was made with."""
    ct: str | None = None
    """CT that it was made with."""
    mu: str | None = None
    """mu-map that it was made with."""
    scanner: str | None = None
    """TOML file of the scanner, where it is not one of petsim's."""
    drf: tuple[float, ...] = ()
    """Dose reduction factors. Default: those of the dataset."""
    drf_range: tuple[float, float] | None = None
    """Draw factors from this range instead, evenly on a logarithmic scale."""
    draws: int = 3
    """With --drf-range: factors a realization."""
    budget_gb: float = 20.0
    """Disk space; half of it for line integrals, half for volumes, of which the least recently used go first."""
    memory_gb: float = 8.0
    """Memory that may be used."""
    realizations: int | None = None
    """Stop after so many. Default: go on until interrupted."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Verify:
    """Check a dataset (schema, hashes, finite values, count statistics) or a cache of petsim serve-cache."""

    dataset: Positional[str]
    """Folder of the dataset, or of the cache."""
    repair: bool = False
    """Put damaged files aside, remove leftovers and rebuild the index; damaged volumes of a cache are removed."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about a dataset, or about a cache of petsim serve-cache in use."""

    dataset: Positional[str]
    """Folder of the dataset, or of the cache."""
    out: str | None = None
    """HTML file. Default: report.html in that folder."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Export:
    """Write a dataset's images as NIfTI files."""

    dataset: Positional[str]
    """Folder of the dataset."""
    out: str
    """Folder for the NIfTI files."""
    unit: Literal["bqml", "suv"] = "bqml"
    """Unit of activity images."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Thin:
    """Make a dose ladder of recorded data: the same events of a list-mode file, or counts of a sinogram, fewer of them."""

    input: Positional[str]
    """List-mode file (PETLINK header, PETSIRD, CASToR header, GATE ROOT, petsim HDF5) or STIR sinogram header (.hs)."""
    out: str
    """Folder for the files of the doses."""
    drf: tuple[str, ...] = ("4", "10", "20", "100")
    """Dose reduction factors, any numbers of at least 1."""
    mode: DoseMode = "thin"
    """thin: an event is kept with probability 1 / DRF, by its index, so that doses are nested (counts / DRF; time stays);
    window: the middle 1 / DRF of the scan; dose: a model of injected dose / DRF, with fewer randoms and less dead time."""
    seed: int = 0
    """Seed of the choice."""
    complement: bool = False
    """Write what each dose leaves out too (mode thin)."""
    format: str | None = None
    """Ending of list-mode files to be written, such as .lm.h5 or .petsird. Default: that of the input."""
    scanner: str | None = None
    """Scanner of data that do not name theirs, see `petsim scanners`, or a TOML file."""
    salvage: bool = False
    """Keep what can be read of a damaged file."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Convert:
    """Write a list-mode file in another format, which the ending of its name tells."""

    input: Positional[str]
    """List-mode file, see `petsim thin`."""
    output: Positional[str]
    """File to be written: .lm.h5 (petsim), .petsird, .cdh (CASToR) or .l.hdr (PETLINK)."""
    scanner: str | None = None
    """Scanner of data that do not name theirs, see `petsim scanners`, or a TOML file."""
    salvage: bool = False
    """Keep what can be read of a damaged file."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct list-mode files or sinograms at full dose to NIfTI images."""

    source: Positional[tuple[str, ...]] = ()
    """List-mode file or sinogram (see petsim thin), several allowed."""
    preset: str = "standard"
    """How fine and how reconstructed; --list-presets lists all."""
    list_presets: bool = False
    """Print all presets with the source of every field, and stop."""
    out: str = "petsim-images"
    """Folder for the images, each with a JSON of the same name."""
    scanner: str | None = None
    """Scanner of data that do not name theirs, see `petsim scanners`, or a TOML file."""
    ct: str | None = None
    """CT (DICOM folder, or NIfTI in HU) in the scanner's coordinates, for attenuation and scatter."""
    ct_kvp: float | None = None
    """Tube voltage of a CT that does not say."""
    ct_remove_table: bool = False
    """Take the couch out of the CT."""
    mu: str | None = None
    """mu-map, NIfTI in 1/cm, in the scanner's coordinates."""
    normalization: str | None = None
    """Crystal efficiencies, .npy (crystals a ring, rings), or estimate: from the delayeds."""
    scatter: Literal["simulated", "none"] = "simulated"
    """Estimate scatter where there is attenuation, or leave it out."""
    voxel_mm: float | None = None
    """Transaxial voxel of the images, instead of the preset's."""
    iterations: int | None = None
    """Iterations, instead of the preset's."""
    subsets: int | None = None
    """Subsets, instead of the preset's."""
    filter_mm: float | None = None
    """FWHM of the Gaussian post-filter, instead of the preset's."""
    no_psf: bool = False
    """Reconstruct without the point spread function."""
    fov_mm: float | None = None
    """Transaxial field of view."""
    center_mm: float | None = None
    """Axial position in the coordinates of CT and mu-map of the scanner's center."""
    grid: str | None = None
    """Resample the images to the voxels of a public data set: quadra or uexplorer."""
    activity_mbq: float | None = None
    """Injected activity, where the data do not say."""
    uptake_s: float | None = None
    """Seconds from injection to scan start."""
    weight_kg: float | None = None
    """Body weight."""
    memory_gb: float = 8.0
    """Memory that may be used."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where projections run; auto takes a GPU when there is one."""
    backend: Literal["auto", "numba", "cuda", "parallelproj"] = "auto"
    """What projects; parallelproj must be installed."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Scanners:
    """List the scanners, or print one with the source of every field."""

    name: Positional[str | None] = None
    """Name of a scanner."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Nema:
    """Measure a scanner on the virtual NEMA NU 2 bench, beside its published figures."""

    scanner: str = DEFAULT_SCANNER
    """Scanner, see `petsim scanners`, or a TOML file."""
    test: Literal["sensitivity", "scatter", "count-rate", "image-quality", "resolution", "all"] = "all"
    """What is measured; all leaves out image-quality and resolution, which reconstruct images and take minutes."""
    decays: int | None = None
    """Simulated annihilations a test. Default: enough for 1 % or half a percentage point."""
    seed: int = 0
    """Seed of the simulation."""
    out: str | None = None
    """Folder for curves (CSV) and pictures (PNG)."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Calibrate:
    """Fit a simulation's count level and filter to real scans at several doses, by the noise of low minus full dose images;
    tell the effective DRF of real low-dose scans."""

    real: str
    """Folder with the same subjects at several doses (images named "Full_dose" and "1-20 dose", or "drf1" and "drf20"), or
    a dataset of make-dataset, whose figures are then marked as simulated pairs."""
    sim: str | None = None
    """Dataset of make-dataset to be fitted, of the same or other bodies and doses. None: real scans are measured only."""
    out: str = "calibration"
    """Folder for calibration.json and calibration.png."""
    independent: bool = False
    """Real low doses are scans of their own, no parts of the full dose."""
    source_units: Literal["bqml", "suv"] | None = None
    """Units of NIfTI images that do not say."""
    seed: int = 0
    """Seed of the bootstrap that gives intervals."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Compare:
    """Compare a real and a simulated image: noise by region, noise power spectrum, histogram, profiles."""

    real: Positional[str]
    """NIfTI file, PET DICOM folder, or a subject's file of a dataset (HDF5)."""
    sim: Positional[str]
    """The same; it may have other voxels."""
    drf: float = 1.0
    """Dose that is taken from a subject's file."""
    out: str = "comparison"
    """Folder for comparison.json and comparison.png."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class RecipesList:
    """List the recipes."""

    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class RecipesShow:
    """Print what a recipe expects, its license, and how to get the data."""

    name: Positional[str]
    """Recipe, see `petsim recipes list`."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class RecipesPrepare:
    """Check a folder, and make subjects for make-dataset from it, or datasets from real scans at several doses."""

    name: Positional[str]
    """Recipe, see `petsim recipes list`."""
    folder: Positional[str | None] = None
    """Folder that holds the data. None: open raw data, which are downloaded."""
    out: str = "prepared"
    """Folder for subjects (NAME.subject.h5, sources of make-dataset), datasets (one a scanner), or raw data."""
    weight_kg: float | None = None
    """Body weight where the data do not tell it, for all of them."""
    activity_mbq: float | None = None
    """Injected activity, likewise."""
    uptake_s: float | None = None
    """Seconds from injection to scan start, likewise."""
    ct_kvp: float | None = None
    """Tube voltage of CTs that do not tell it."""
    voxel_mm: float | None = None
    """Voxel of phantoms."""
    frames: tuple[int, int] | None = None
    """First and last frame, from 1 on, that are averaged of dynamic images."""
    skip: tuple[str, ...] = ()
    """Folders or files to be left out, by name."""
    json: bool = False
    """Last line on standard output is one JSON object."""


RecipesCommand = Annotated[
    Annotated[RecipesList, subcommand("list")]
    | Annotated[RecipesShow, subcommand("show")]
    | Annotated[RecipesPrepare, subcommand("prepare")],
    arg(name=""),
]


Command = Annotated[
    Annotated[MakeDataset, subcommand("make-dataset")]
    | Annotated[ServeCache, subcommand("serve-cache")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Thin, subcommand("thin")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Scanners, subcommand("scanners")]
    | Annotated[RecipesCommand, subcommand("recipes")]
    | Annotated[Nema, subcommand("nema")]
    | Annotated[Calibrate, subcommand("calibrate")]
    | Annotated[Compare, subcommand("compare")],
    FlagCreatePairsOff,
    OmitArgPrefixes,
    arg(name=""),
]


def main() -> None:
    """Entry point: parse, run, and turn errors into one line and an exit status."""
    command, result = command_line.run(
        "petsim", parse, _run, "what is finished stays; run the same command again to go on",
        "lower --memory-gb, use --preset fast or fewer --workers",
    )  # fmt: skip
    if isinstance(command, Verify) and result["problems"]:
        sys.exit(1)


def parse(argv: list[str]) -> Any:
    """Command line to one of the command dataclasses; a wrong one raises `UsageError` with a single line."""
    return command_line.parse(Command, "petsim", petsim.__doc__, argv)


def _run(command: Any) -> dict[str, Any]:
    if isinstance(command, MakeDataset):
        return _make_dataset(command)
    if isinstance(command, ServeCache):
        return _serve_cache(command)
    if isinstance(command, Verify):
        return _verify(command)
    if isinstance(command, Report):
        return _report(command)
    if isinstance(command, Export):
        return _export(command)
    if isinstance(command, Nema):
        return _nema(command)
    if isinstance(command, Calibrate):
        return _calibrate(command)
    if isinstance(command, Compare):
        return _compare(command)
    if isinstance(command, Thin):
        return _thin(command)
    if isinstance(command, Convert):
        return _convert(command)
    if isinstance(command, Reconstruct):
        return _reconstruct(command)
    if isinstance(command, RecipesList | RecipesShow | RecipesPrepare):
        return _recipes(command)
    return _scanners(command)


def parse_drfs(texts: tuple[str, ...]) -> tuple[float, ...]:
    """Dose reduction factors of the command line."""
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except ValueError:
            raise UsageError(f"--drf: '{text}' is not a number; give factors such as --drf 4 10 20 100") from None
    check_drfs(values)
    if not values:
        raise UsageError("--drf: no factor given; give factors such as --drf 4 10 20 100")
    return tuple(sorted(values))


def parse_shard(text: str) -> tuple[int, int]:
    """I/N with 1 <= I <= N."""
    first, slash, last = text.partition("/")
    if slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UsageError(f"--shard: '{text}' is not I/N with 1 <= I <= N, such as 1/8")


def parse_beds(text: str | None) -> int | Literal["auto"] | None:
    """auto, or a number of bed positions."""
    if text is None or text == "auto":
        return text
    if text.isdigit():
        return int(text)
    raise UsageError(f"--beds: '{text}' is not a number of bed positions; give auto or such as 5")


def request_of(command: MakeDataset) -> Any:
    """The request that a make-dataset command stands for."""
    from petsim.dataset import Request, are_measured, are_raw, check_request
    from petsim.projectors.choose import choose_backend

    images = bool(command.source)
    scanner = command.scanner or DEFAULT_SCANNER
    if are_raw(command.source):
        scanner = _recorded_scanner(command.source, command.scanner)
    elif images:
        images = are_measured(command.source)
    backend, _ = choose_backend(command.backend, command.device)
    drfs = parse_drfs(command.drf) if command.drf_set is None else DRF_SETS[command.drf_set]
    settings = SimulationSettings(
        drf=drfs, scanner=scanner, mode=command.mode,
        preset=command.preset or ("standard" if images else "fast"),
        seed=command.seed, realizations=command.realizations,
        full_dose=command.full_dose or ("source" if images else "simulated"),
        duration_s=command.duration_s, counts=command.counts, fov_mm=command.fov_mm, voxel_mm=command.voxel_mm,
        iterations=command.iterations, subsets=command.subsets, filter_mm=command.filter_mm,
        center_mm=command.center_mm, slab_mm=command.slab, backend=backend, scatter=command.scatter, randoms=command.randoms,
        corrections=command.corrections, drift=command.drift, mu_shift=command.mu_shift,
        truncation_mm=command.truncation_mm, psf=not command.no_psf, respiratory_mm=command.respiratory_mm,
        vary=command.vary, beds=parse_beds(command.beds), bed_overlap=command.bed_overlap, grid=command.grid,
    )  # fmt: skip
    read = ReadOptions(
        units=command.source_units, sidecar=command.sidecar, fwhm_mm=command.source_fwhm_mm, weight_kg=command.weight_kg,
        injected_mbq=command.activity_mbq, uptake_s=command.uptake_s, ct=command.ct, mu=command.mu, ct_kvp=command.ct_kvp,
        ct_without_table=command.ct_remove_table, normalization=command.normalization,
    )  # fmt: skip
    request = Request(command.out, command.source, command.subjects, settings, read, command.save, command.memory_gb,
                      command.family, command.lesion_shape, command.insert_lesions)  # fmt: skip
    check_request(request)
    return request


def _recorded_scanner(sources: tuple[str, ...], given: str | None) -> str:
    from pathlib import Path

    from petsim.recorded import scanner_of

    found = {scanner_of(Path(path), given) for path in sources}
    if len(found) > 1:
        raise UsageError(f"SOURCE: raw data of {' and '.join(sorted(found))}; take those of each scanner alone")
    return found.pop()


def _make_dataset(command: MakeDataset) -> dict[str, Any]:
    request = request_of(command)
    shard = parse_shard(command.shard)
    if command.dask is not None and command.workers > 1:
        raise UsageError("--workers: says nothing to a dask cluster; leave it out where --dask is given")
    if command.workers < 1:
        raise UsageError(f"--workers: must be at least 1, got {command.workers}")
    from petsim.geometry.scanner import load_scanner

    load_scanner(request.settings.scanner)
    if command.dry_run:
        result = _preview(request)
        _print_preview(result)
        return result
    from petsim.dataset import make_dataset
    from petsim.memory import keep_freed_memory
    from petsim.progress import progress_bar
    from petsim.projectors.choose import choose_backend

    keep_freed_memory()
    with progress_bar(len(range(shard[0] - 1, len(request.sources) or request.subjects, shard[1]))) as report:
        result = make_dataset(request, command.workers, shard, command.overwrite, command.dask, report)
    for subject in result["subjects"]:
        counts = ", ".join(f"DRF {d}: {n:,}" for d, n in subject.get("counts", {}).items())
        print(f"{subject['name']}: {counts or 'already there'}")
        if by_events := subject.get("from_events_drf"):
            print(f"  updated from events (list mode), which costs less: DRF {', '.join(f'{d:g}' for d in by_events)}")
        for warning in subject.get("warnings", []):
            print(f"  warning: {warning}")
    print("projections: {}, {}".format(*choose_backend(command.backend, command.device)))
    print(f"{result['in_dataset']} subjects in {command.out}, {result['seconds']:.0f} s")
    return result


def _preview(request: Any) -> dict[str, Any]:
    from pathlib import Path

    from petsim.dataset import are_raw
    from petsim.preview import preview
    from petsim.recorded import preview_recorded

    if are_raw(request.sources):
        return preview_recorded(Path(request.sources[0]), request.settings, request.read)
    return preview(request)


def _serve_cache(command: ServeCache) -> dict[str, Any]:
    from petsim.serve import ServeOptions, give_way, serve

    if command.realizations is not None and command.realizations < 1:
        raise UsageError(f"--realizations: must be at least 1, got {command.realizations}")
    options = ServeOptions(
        command.dataset, command.cache, command.source, command.sidecar, command.ct, command.mu, command.scanner,
        command.drf, command.drf_range, command.draws, command.budget_gb, command.memory_gb,
    )  # fmt: skip
    give_way()
    made = 0

    def told(state: dict[str, Any]) -> None:
        nonlocal made
        made = state["made"]
        print(
            f"{state['subject']} realization {state['realization']}: {made} made, {state['per_minute']:.1f} a minute, "
            f"{state['volumes']} volumes in {state['bytes'] / 1e9:.2f} GB", flush=True,
        )  # fmt: skip

    return serve(options, lambda: command.realizations is None or made < command.realizations, told)


def _print_preview(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for k, v in value.items():
                print(f"  {k}: {v}")
        else:
            print(f"{key}: {value}")


def _verify(command: Verify) -> dict[str, Any]:
    from pathlib import Path

    from petsim.serve import is_cache
    from petsim.verify import verify, verify_cache

    folder = Path(command.dataset)
    cache = is_cache(folder)
    result = verify_cache(folder, command.repair) if cache else verify(folder, command.repair)
    for repair in result["repairs"]:
        print(f"repaired: {repair}")
    for problem in result["problems"]:
        print(f"problem: {problem}")
    print(f"{result['volumes' if cache else 'subjects']} {'volumes' if cache else 'subjects'}, "
          f"{len(result['problems'])} problems")  # fmt: skip
    return result


def _report(command: Report) -> dict[str, Any]:
    from pathlib import Path

    from petsim.cache_report import write_cache_report
    from petsim.report import write_report
    from petsim.serve import is_cache

    folder, out = Path(command.dataset), None if command.out is None else Path(command.out)
    path = write_cache_report(folder, out) if is_cache(folder) else write_report(folder, out)
    print(path)
    return {"report": str(path)}


def _export(command: Export) -> dict[str, Any]:
    from pathlib import Path

    from petsim.export import export_nifti

    files = export_nifti(Path(command.dataset), Path(command.out), command.unit)
    print(f"{len(files)} files in {command.out}")
    return {"files": files}


def _nema(command: Nema) -> dict[str, Any]:
    from pathlib import Path

    from petsim.geometry.scanner import load_scanner
    from petsim.nema import SLOW, TESTS, as_json, run_tests, table

    scanner = load_scanner(command.scanner)
    tests = [t for t in TESTS if t not in SLOW] if command.test == "all" else [command.test]
    out = None if command.out is None else Path(command.out)
    figures = run_tests(scanner, tests, command.decays, command.seed, out)
    print(f"{scanner.name}: {scanner.title}")
    print(table(figures))
    return as_json(scanner, figures)


def _calibrate(command: Calibrate) -> dict[str, Any]:
    from pathlib import Path

    from petsim.calibrate import calibrate, result_of, table, write_calibration
    from petsim.progress import progress_bar

    simulated = None if command.sim is None else Path(command.sim)
    with progress_bar(1) as report:
        found = calibrate(
            Path(command.real), simulated, not command.independent, command.source_units, command.seed, report
        )  # fmt: skip
    result = result_of(found)
    files = write_calibration(found, result, Path(command.out))
    print(table(found, result))
    print(f"{' and '.join(files)} in {command.out}")
    return result


def _compare(command: Compare) -> dict[str, Any]:
    from pathlib import Path

    from petsim.compare import compare, read_image, table, write_comparison

    real, simulated = (read_image(Path(path), command.drf) for path in (command.real, command.sim))
    result = compare(real, simulated)
    files = write_comparison(result, Path(command.out))
    print(table(result))
    print(f"{' and '.join(files)} in {command.out}")
    return result


def _thin(command: Thin) -> dict[str, Any]:
    from petsim.progress import progress_bar
    from petsim.rawdata.ladder_files import thin_file

    with progress_bar(1) as report:
        result = thin_file(
            command.input, command.out, parse_drfs(command.drf), command.mode, command.seed, command.complement,
            command.format, command.scanner, command.salvage, lambda what, fraction: report("events", what, fraction),
        )  # fmt: skip
    for drf, count in result["prompts"].items():
        delayeds = result["delayeds"].get(drf)
        print(f"DRF {drf}: {count:,} prompts" + (f", {delayeds:,} delayeds" if delayeds is not None else ""))
    for warning in result["warnings"]:
        print(f"  warning: {warning}")
    print(f"{len(result['files'])} files in {command.out}")
    return result


def _convert(command: Convert) -> dict[str, Any]:
    from petsim.rawdata.ladder_files import convert_file

    result = convert_file(command.input, command.output, command.scanner, command.salvage)
    print(f"{result['prompts']:,} prompts, {result['delayeds']:,} delayeds")
    for warning in result["warnings"]:
        print(f"  warning: {warning}")
    return result


def _reconstruct(command: Reconstruct) -> dict[str, Any]:
    if command.list_presets:
        print("\n".join(preset_lines()))
        return {"presets": {name: {"title": p.title, "fields": p.values, "sources": p.sources}
                            for name, p in NAMED_PRESETS.items()}}  # fmt: skip
    from pathlib import Path

    from petsim.memory import keep_freed_memory, memory_budget
    from petsim.progress import progress_bar
    from petsim.projectors.choose import choose_backend
    from petsim.rawdata.formats import is_listmode
    from petsim.reconstruct_files import reconstruct_files

    raw = bool(command.source) and all(is_listmode(Path(path)) for path in command.source)
    backend, reason = choose_backend(command.backend, command.device)
    settings = SimulationSettings(
        drf=(), scanner=_recorded_scanner(command.source, command.scanner) if raw else DEFAULT_SCANNER,
        preset=command.preset, full_dose="source", fov_mm=command.fov_mm, voxel_mm=command.voxel_mm,
        iterations=command.iterations, subsets=command.subsets, filter_mm=command.filter_mm, center_mm=command.center_mm,
        backend=backend, scatter=command.scatter, psf=not command.no_psf, grid=command.grid,
    )  # fmt: skip
    read = ReadOptions(
        weight_kg=command.weight_kg, injected_mbq=command.activity_mbq, uptake_s=command.uptake_s, ct=command.ct,
        mu=command.mu, ct_kvp=command.ct_kvp, ct_without_table=command.ct_remove_table, normalization=command.normalization,
    )  # fmt: skip
    keep_freed_memory()
    with progress_bar(max(1, len(command.source))) as report:
        result = reconstruct_files(
            command.source, Path(command.out), settings, read, memory_budget(command.memory_gb), report
        )  # fmt: skip
    for image in result["images"]:
        way = "list mode" if image["from_events"] else "the sinogram"
        print(f"{image['file']}: {image['prompts']:,} prompts, updated from {way}, which costs less")
        for warning in image["warnings"]:
            print(f"  warning: {warning}")
    print(f"projections: {backend}, {reason}")
    return result


def _scanners(command: Scanners) -> dict[str, Any]:
    import dataclasses

    from petsim.geometry.scanner import load_scanner, scanner_names

    if command.name is None:
        for name in scanner_names():
            scanner = load_scanner(name)
            print(f"{name:26s} {scanner.title}, {scanner.axial_length_mm:.0f} mm axial field of view")
        return {"scanners": scanner_names(), "presets": sorted(PRESETS)}
    scanner = load_scanner(command.name)
    fields = {k: v for k, v in dataclasses.asdict(scanner).items() if k not in ("sources", "name", "title")}
    print(f"{scanner.name}: {scanner.title}")
    for key, value in fields.items():
        if key in scanner.sources:
            print(f"  {key} = {value}\n      {scanner.sources[key]}")
    return {"name": scanner.name, "title": scanner.title, "fields": fields, "sources": scanner.sources}


def _recipes(command: RecipesList | RecipesShow | RecipesPrepare) -> dict[str, Any]:
    from petsim.recipes import listed, shown

    if isinstance(command, RecipesPrepare):
        return _prepare(command)
    if isinstance(command, RecipesShow):
        told = shown(command.name)
        print(f"{told['name']}: {told['title']}\n\n{told['layout']}\n\nlicense: {told['license']}\n\n{told['access']}")
        for file in told["downloads"]:
            print(f"\n{file['url']}\n  {file['checksum']}" + (f", {file['bytes']:,} bytes" if file["bytes"] else ""))
        return told
    recipes = listed()
    for name, title in recipes.items():
        print(f"{name:14s} {title}")
    return {"recipes": recipes}


def _prepare(command: RecipesPrepare) -> dict[str, Any]:
    from pathlib import Path

    from data_recipes.collections.recipe import Wishes
    from petsim.progress import progress_bar
    from petsim.recipes import prepare

    wishes = Wishes(
        command.weight_kg, command.activity_mbq, command.uptake_s, command.ct_kvp, command.voxel_mm, command.frames,
        command.skip,
    )  # fmt: skip
    folder = None if command.folder is None else Path(command.folder)
    with progress_bar(1) as report:
        result = prepare(command.name, folder, Path(command.out), wishes, report)
    print(", ".join(f"{count} {what}" for what, count in result["counts"].items()))
    for note in result["notes"]:
        print(f"  note: {note}")
    for name, splits in result.get("datasets", {}).items():
        print(f"{name}: " + ", ".join(f"{count} {split}" for split, count in splits.items()))
        if not all(splits.values()):
            print("  note: a split is empty; training needs train and val, so at least three patients")
    print(f"{len(result['files'])} files in {command.out}")
    return result
