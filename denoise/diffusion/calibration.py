"""Anchors from folders: cases out of datasets or multi-dose scans, their match, and the file that keeps it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data_recipes.collections.multi_dose import find_multi_dose, read_dose
from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.whole_body import FIRST_LESION_LABEL
from denoise.data import Ladder, read_split
from denoise.diffusion.anchors import MATCHES, Match, chosen, digest_of, match, shares_of, warnings_of
from denoise.diffusion.method import Anchors
from denoise.diffusion.noise import ColoredNoise, measure_noise
from denoise.diffusion.schedule import Kind, NoiseSchedule
from denoise.diffusion.signature import Case, measure, ratios_of_doses
from denoise.noise_level import noise_level
from denoise.scaling import Scaling, Transform
from petsim.cache.store import SubjectFile, make_folder, whole_or_nothing
from petsim.noise import NO_FIGURE

FORMAT = "petsim-anchors 1"
Reference = Literal["noise-free", "full"]
Progress = Callable[[str, float], None]

CURVE_POINTS = 13
MEASURED_ON = 4
"""Subjects whose noise is measured."""


@dataclass(frozen=True)
class Calibration:
    """Anchors with all that they depend on.

    Parameters
    ----------
    schedule, scaling
    colored : ColoredNoise, optional
        None: white noise.
    reference : str
        "noise-free" or "full": x_0.
    pairs : str
        What was matched: "simulated pairs", "recorded pairs", or "pairs of a folder".
    matches : list of Match
        Of all subjects.
    by_scanner : dict
        Scanner -> its own, where there are several.
    ratios, curve, unit : ndarray, ndarray, float
        Mean 1 - SSIM of noise at ratios s / a, and NMAE for a ratio of 1.
    subjects : int
    by : str
        Which times are the anchors': "nmae", "ssim" or "both".
    warnings : tuple of str
    """

    schedule: NoiseSchedule
    scaling: Scaling
    colored: ColoredNoise | None
    reference: Reference
    pairs: str
    matches: list[Match]
    by_scanner: dict[str, list[Match]]
    ratios: np.ndarray
    curve: np.ndarray
    unit: float
    subjects: int
    by: str
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all that the times depend on besides the images."""
        return digest_of(self.schedule, self.scaling, self.colored, self.reference)


def cases_of_ladders(ladders: Sequence[Ladder], drfs: Sequence[float], reference: Reference) -> list[Case]:
    """Subjects of a dataset; their first realization."""
    cases = []
    for ladder in ladders:
        missing = [d for d in drfs if d not in ladder.drfs]
        if missing:
            raise UsageError(f"--drf: {ladder.name} holds {' '.join(f'{d:g}' for d in ladder.drfs)}, not {missing[0]:g}")
        if reference == "noise-free" and ladder.noise_free is None:
            raise DataError(f"{ladder.name}: measured data have no noise-free reference; calibrate with --target full")
        if ladder.truncated:
            raise DataError(f"{ladder.name}: {NO_FIGURE}; give a dataset without it")
        images = {d: partial(ladder.image, ladder.drfs.index(d)) for d in drfs}
        first = ladder.reference if reference == "noise-free" else partial(ladder.image, 0)
        cases.append(Case(ladder.name, ladder.scanner, first, images, partial(_organs, ladder.images.path)))
    return cases


def _organs(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    with SubjectFile(path) as f:
        labels = f.array("truth/labels")
        if labels is None:
            return np.zeros((1, 1, 1), np.uint8), {}
        return labels, {label: name for label, name in f.label_names.items() if label < FIRST_LESION_LABEL}


def cases_of_folder(folder: Path, drfs: Sequence[float], units: str | None) -> list[Case]:
    """Subjects of a folder with several doses; all its doses if none is named.

    Raises
    ------
    DataError
        A subject that lacks a dose, or images that cannot be read.
    """
    cases = []
    for subject in find_multi_dose(folder):
        wanted = [d for d in (drfs or subject.drfs) if d > 1]
        missing = [d for d in wanted if d not in subject.paths]
        if missing:
            raise DataError(f"{subject.name} of {folder.name}: no image at DRF {missing[0]:g}; choose others with --drf")

        def read(path: Path) -> np.ndarray:
            return read_dose(path, units).suv

        images = {d: partial(read, subject.paths[d]) for d in wanted}
        cases.append(Case(subject.name, subject.scanner, partial(read, subject.paths[1.0]), images))
    return cases


def noise_of_cases(cases: Sequence[Case], scaling: Scaling) -> ColoredNoise:
    """Noise measured at the highest DRF: the image less the reference."""
    pairs = []
    for case in cases[:MEASURED_ON]:
        low = scaling.numbers_of(case.images[max(case.images)]())
        pairs.append((low, low - scaling.numbers_of(case.reference())))
    return measure_noise(pairs)


def calibrate(
    cases: Sequence[Case], schedule: NoiseSchedule, scaling: Scaling, colored: ColoredNoise | None, reference: Reference,
    pairs: str, by: str = "both", seed: int = 0, progress: Progress = lambda what, fraction: None,
) -> Calibration:  # fmt: skip
    """Match the doses of cases to times.

    Parameters
    ----------
    cases : sequence of Case
        Training subjects, all with the same doses.
    schedule, scaling, colored, reference, pairs, by
        See `Calibration`.
    seed : int
        Of noise and bootstrap.
    progress : callable
    """
    if by not in MATCHES:
        raise UsageError(f"--by {by}: choose among {', '.join(MATCHES)}")
    drfs = sorted(d for d in cases[0].images if d > 1)
    found: list[float] = []
    for k, case in enumerate(cases):
        progress(case.name, 0.3 * k / len(cases))
        found += ratios_of_doses(case, scaling, colored, seed + k)
    if not min(found) > 0:
        raise DataError("a lower dose equals the full dose; give images of different doses")
    ratios = np.geomspace(0.4 * min(found), 2.5 * max(found), CURVE_POINTS)
    signatures = []
    for k, case in enumerate(cases):
        progress(case.name, 0.3 + 0.7 * k / len(cases))
        signatures.append(measure(case, scaling, colored, seed + k, ratios.tolist()))
    matches = match(signatures, ratios, schedule, drfs, seed)
    scanners = sorted({s.scanner for s in signatures})
    by_scanner = {
        name: match([s for s in signatures if s.scanner == name], ratios, schedule, drfs, seed) for name in scanners
    }
    return Calibration(
        schedule, scaling, colored, reference, pairs, matches, by_scanner if len(scanners) > 1 else {}, ratios,
        np.mean([s.curve for s in signatures], axis=0), float(np.mean([s.noise_nmae for s in signatures])), len(cases), by,
        tuple(warnings_of(matches, schedule, by, colored is not None)),
    )  # fmt: skip


def match_levels(
    levels: dict[float, Sequence[float]],
    references: Sequence[np.ndarray],
    schedule: NoiseSchedule,
    scaling: Scaling,
    seed: int = 0,
) -> dict[float, float]:
    """Times by noise level alone, without pairs: where x_0 with white noise shows the relative noise of unpaired images.

    Weaker than a match of pairs: it sees the finest structure only, in which correlated noise has less than white noise.

    Parameters
    ----------
    levels : dict
        DRF -> relative noise levels of images there, of whomever (`denoise.noise_level`).
    references : sequence of ndarray
        x_0, float32 (x, y, z) in SUV.
    schedule, scaling
    seed : int

    Raises
    ------
    UsageError
        A transform other than a linear one, in which noise has no one level.
    DataError
        A dose with less noise than the references.
    """
    if scaling.transform != "linear":
        raise UsageError(
            f"--transform {scaling.transform}: noise levels are matched on a linear scale; use --transform linear"
        )
    rng = np.random.default_rng(seed)
    ratios = np.geomspace(1e-3, 30, 25)
    curves = []
    for image in references:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(scaling.scale_suv)
        mean = noise_level(image).mean
        # In the body of the image itself, since much noise changes what is taken for the body.
        curves.append([noise_level(image + np.float32(r) * noise, image).sd / mean for r in ratios])
    curve = np.maximum.accumulate(np.mean(curves, axis=0)) * (1 + 1e-9 * np.arange(len(ratios)))
    times = {}
    for drf, own in levels.items():
        level = float(np.mean(own))
        if not curve[0] < level < curve[-1]:
            raise DataError(
                f"DRF {drf:g}: a noise level of {level:.3g} is not one of the references with noise; check the unit"
            )
        times[drf] = float(schedule.time_of(float(np.exp(np.interp(np.log(level), np.log(curve), np.log(ratios))))))
    return times


def write_calibration(path: Path, calibration: Calibration) -> dict[str, Any]:
    """Write the file of anchors; returns what it holds."""
    c = calibration
    anchors = [_line(m, c.by) for m in c.matches]
    values = {
        "format": FORMAT, "pairs": c.pairs, "subjects": c.subjects, "reference": c.reference, "digest": c.digest,
        "schedule": asdict(c.schedule), "scaling": asdict(c.scaling),
        "colored": None if c.colored is None else asdict(c.colored), "by": c.by, "anchors": anchors,
        "shares": shares_of([m.times[c.by] for m in c.matches], c.schedule.steps),
        "by_scanner": {name: [_line(m, c.by) for m in own] for name, own in c.by_scanner.items()},
        "signature": {
            "region": "body: mean of 5 x 5 x 5 voxels above a fifth of the mean above zero",
            "ssim": "Gaussian window, sigma 1.5 voxels, 11 wide, range: largest value of the reference in the body",
            "ratios": c.ratios.tolist(), "ssim_loss_of_noise": c.curve.tolist(), "nmae_of_unit_noise": c.unit,
        },
        "warnings": list(c.warnings),
    }  # fmt: skip
    _write(path, values)
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    make_folder(path.parent)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _line(m: Match, by: str) -> dict[str, Any]:
    return {
        "drf": m.drf, "time": m.times[by], "interval": list(m.intervals[by]), "nmae": m.nmae, "ssim_loss": m.ssim_loss,
        "times": m.times, "intervals": {k: list(v) for k, v in m.intervals.items()}, "organs": m.organs,
    }  # fmt: skip


@dataclass(frozen=True)
class StoredAnchors:
    """What training takes from a file of anchors."""

    anchors: Anchors
    schedule: NoiseSchedule
    scaling: Scaling
    colored: ColoredNoise | None
    reference: Reference


def read_calibration(path: Path, drfs: Sequence[float] = ()) -> StoredAnchors:
    """Anchors out of a file, all or those of some doses.

    Raises
    ------
    DataError
        Not such a file, a damaged one, or one whose digest is not that of its schedule, scaling, noise and reference.
    UsageError
        A dose that it lacks, or anchors that are not ordered.
    """
    if not path.is_file():
        raise DataError(f"{path.name}: no such file; make it with denoise calibrate-anchors")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DataError(f"{path.name}: format {values['format']}, not {FORMAT}; calibrate again")
        kind, reference = values["schedule"]["kind"], values["reference"]
        if kind not in get_args(Kind) or reference not in get_args(Reference):
            raise ValueError
        if values["scaling"]["transform"] not in get_args(Transform):
            raise ValueError
        schedule, scaling = NoiseSchedule(**values["schedule"]), Scaling(**values["scaling"])
        noise = values["colored"]
        colored = None if noise is None else ColoredNoise(tuple(noise["kernel"]), noise["power"], noise["mean"])
        times = {float(line["drf"]): float(line["time"]) for line in values["anchors"]}
        digest = str(values["digest"])
        if not all(0 < t <= schedule.steps and d > 1 for d, t in times.items()):
            raise ValueError
    except DataError:
        raise
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path.name}: not a file of anchors, or a damaged one; calibrate again") from None
    if digest != digest_of(schedule, scaling, colored, reference):
        raise DataError(f"{path.name}: was changed after the calibration; calibrate again")
    missing = [d for d in drfs if d not in times]
    if missing:
        raise UsageError(f"--anchors: {path.name} has {' '.join(f'{d:g}' for d in times)}, not {missing[0]:g}")
    used = sorted(drfs or times)
    return StoredAnchors(Anchors(tuple(used), tuple(times[d] for d in used), digest), schedule, scaling, colored, reference)


@dataclass(frozen=True)
class CalibrationRequest:
    """What `denoise calibrate-anchors` is asked for; see its flags."""

    data: Path | None
    real: Path | None
    target: Reference | None
    drf: tuple[float, ...]
    schedule: NoiseSchedule
    scaling: Scaling
    measured_noise: bool
    by: str
    seed: int
    units: str | None


def calibrate_folder(request: CalibrationRequest, progress: Progress = lambda what, fraction: None) -> Calibration:
    """Calibrate on the training subjects of a dataset, or on a folder with several doses.

    Raises
    ------
    UsageError, DataError
    """
    if (request.data is None) == (request.real is None):
        raise UsageError("--data: give the folder of a dataset, or --real with a folder of scans at several doses")
    if request.real is not None:
        if request.target == "noise-free":
            raise UsageError(
                "--target noise-free: scans have no noise-free image, and noise against a full dose is less by "
                "sqrt((D - 1) / D) than against the truth; use --target full"
            )
        cases, reference, pairs = cases_of_folder(request.real, request.drf, request.units), "full", "pairs of a folder"
    else:
        assert request.data is not None
        reference = request.target or "noise-free"
        ladders = read_split(request.data, "train", reference)
        drfs = request.drf or tuple(d for d in ladders[0].drfs if d > 1)
        cases = cases_of_ladders(ladders, [d for d in drfs if d > 1], reference)
        pairs = "recorded pairs" if ladders[0].recorded else "simulated pairs"
    if not cases[0].images:
        raise UsageError("--drf: give at least one dose reduction factor above 1")
    colored = noise_of_cases(cases, request.scaling) if request.measured_noise else None
    return calibrate(cases, request.schedule, request.scaling, colored, reference, pairs, request.by, request.seed, progress)


def times_without_pairs(request: CalibrationRequest, out: Path) -> dict[str, Any]:
    """Times by the noise level of unpaired scans, written to a file; see `match_levels`.

    Raises
    ------
    UsageError, DataError
    """
    if request.data is None or request.real is None:
        raise UsageError("--unpaired: give --data for the images that noise is added to, and --real for the scans")
    levels: dict[float, list[float]] = {}
    for subject in find_multi_dose(request.real, paired=False):
        for drf, path in subject.paths.items():
            if drf > 1 and (not request.drf or drf in request.drf):
                levels.setdefault(drf, []).append(noise_level(read_dose(path, request.units).suv).relative)
    if not levels:
        raise DataError(f"{request.real.name}: no image at the doses asked for; choose others with --drf")
    ladders = [x for x in read_split(request.data, "train", "full") if not x.truncated][:MEASURED_ON]
    if not ladders:
        raise DataError(f"{request.data.name}: {NO_FIGURE}, in every training subject; give whole images")
    full = request.target == "full"
    references = [ladder.image(0) if full else ladder.reference() for ladder in ladders]
    times = match_levels(dict(sorted(levels.items())), references, request.schedule, request.scaling, request.seed)
    reference: Reference = "full" if full else "noise-free"
    lines = [
        {"drf": drf, "time": time, "relative_noise": float(np.mean(levels[drf])), "images": len(levels[drf])}
        for drf, time in times.items()
    ]
    values = {
        "format": FORMAT, "pairs": "unpaired scans, by noise level alone", "reference": reference,
        "digest": digest_of(request.schedule, request.scaling, None, reference), "schedule": asdict(request.schedule),
        "scaling": asdict(request.scaling), "colored": None, "anchors": lines,
        "shares": shares_of(list(times.values()), request.schedule.steps),
        "warnings": ["matched by noise level alone, of which correlated noise has less than white noise: times are early"],
    }  # fmt: skip
    _write(out, values)
    return values


def anchors_of(calibration: Calibration) -> Anchors:
    """Its anchors.

    Raises
    ------
    UsageError
        Times that do not rise with the dose reduction.
    """
    return chosen(calibration.matches, calibration.by, calibration.digest)
