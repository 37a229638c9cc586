"""`--vary`: every subject scanned and reconstructed in its own way, since one recipe and one noise level do not transfer.

Ranges are assumptions, wide enough for what sites differ by in protocols and reconstructions; they and what was drawn are
stored with the subject. A value other than the default is left alone.
"""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_recipes.subject import Subject
from petsim.philox import stream_key
from petsim.settings import SimulationSettings


@dataclass(frozen=True)
class Ranges:
    """What is drawn for a subject.

    Parameters
    ----------
    duration, activity : tuple of float
        Factors on scan duration and injected activity, even on a logarithmic scale. The activity of a measured image is what
        it is, and the duration where that is the full dose.
    iterations, subsets : tuple of int
        One of these.
    filter_mm : tuple of float
        Evenly from this range, as those below.
    voxel : tuple of float
        Factor on the preset's voxel.
    no_psf : float
        Probability of a reconstruction without point spread function.
    mu_shift, drift : tuple of float
        As in `SimulationSettings`.
    respiratory_mm : tuple of float
        Likewise; 0 for a measured image, which has breathed.
    """

    duration: tuple[float, float] = (0.5, 2.0)
    activity: tuple[float, float] = (0.7, 1.4)
    iterations: tuple[int, ...] = (2, 3, 4)
    subsets: tuple[int, ...] = (5, 7, 10)
    filter_mm: tuple[float, float] = (0.0, 6.0)
    voxel: tuple[float, float] = (0.8, 1.3)
    no_psf: float = 0.3
    mu_shift: tuple[float, float] = (0.0, 2.0)
    drift: tuple[float, float] = (0.0, 0.03)
    respiratory_mm: tuple[float, float] = (0.0, 20.0)


RANGES = Ranges()

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SimulationSettings)}


def draw(subject: Subject, settings: SimulationSettings, duration_s: float) -> tuple[Subject, SimulationSettings]:
    """A subject's own injection and settings: a function of the settings' seed and the subject's name.

    Parameters
    ----------
    subject : Subject
    settings : SimulationSettings
    duration_s : float
        Usual scan duration, on which a factor is drawn.
    """
    rng = np.random.Generator(np.random.Philox(key=stream_key(settings.seed, subject.name, "vary")))
    known, r = settings.resolved_preset(), RANGES

    def even(low: float, high: float) -> float:
        return float(low + (high - low) * rng.random())

    def logarithmic(low: float, high: float) -> float:
        return float(low * (high / low) ** rng.random())

    duration, activity = logarithmic(*r.duration), logarithmic(*r.activity)
    drawn: dict[str, Any] = {
        # Noise below a measured full dose is that of its own scan.
        "duration_s": duration_s if settings.full_dose == "source" else round(duration_s * duration, 1),
        "iterations": int(rng.choice(r.iterations)),
        "subsets": int(rng.choice(r.subsets)),
        "filter_mm": round(even(*r.filter_mm), 2),
        "voxel_mm": round(known.voxel_mm * even(*r.voxel), 2),
        "psf": bool(rng.random() >= r.no_psf),
        "mu_shift": round(even(*r.mu_shift), 3),
        "drift": round(even(*r.drift), 4),
        "respiratory_mm": round(even(*r.respiratory_mm), 1),
    }
    own = replace(settings, **{name: value for name, value in drawn.items() if getattr(settings, name) == _DEFAULTS[name]})
    if subject.is_noisy:
        return subject, replace(own, respiratory_mm=0.0)
    return injected(subject, round(activity, 3)), own


def injected(subject: Subject, factor: float) -> Subject:
    """The subject after an injection of `factor` times the activity; its SUV are the same."""
    before = subject.injection.injected_mbq
    injection = replace(subject.injection, injected_mbq=None if before is None else before * factor)
    return replace(subject, activity_bqml=subject.activity_bqml * np.float32(factor), injection=injection)


def described(settings: SimulationSettings) -> dict[str, Any]:
    """What was drawn and from which ranges; JSON types."""
    names = ("duration_s", "iterations", "subsets", "filter_mm", "voxel_mm", "psf", "mu_shift", "drift", "respiratory_mm")
    return {"drawn": {name: getattr(settings, name) for name in names}, "ranges": dataclasses.asdict(RANGES)}
