"""Simulation from a notebook."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_recipes.contour import with_mu
from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.subject import Injection, Subject
from petsim.bed_simulation import simulate_beds
from petsim.beds import plan_beds
from petsim.memory import memory_budget
from petsim.output_grid import check_output, on_grid
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import Simulation, simulate_plan


def simulate(
    subject: Subject | np.ndarray,
    scanner: str = "biograph_vision_quadra",
    drf: Sequence[float] = (4, 20),
    preset: str = "fast",
    seed: int = 0,
    *,
    voxel_mm: Sequence[float] | None = None,
    mu_per_cm: np.ndarray | None = None,
    keep_sinograms: bool = False,
    memory_gb: float = 8.0,
    **settings: Any,
) -> Simulation:
    """Simulate one subject.

    Parameters
    ----------
    subject : Subject or ndarray
        A subject, or noise-free activity in Bq/mL at scan start, (x, y, z) in RAS+ order.
    scanner : str
        Name (`petsim scanners` lists them) or TOML file.
    drf : sequence of float
        Dose reduction factors; 1 is always made.
    preset : str
        "fast", "standard", "full" or one of a vendor, see `petsim.presets`.
    seed : int
    voxel_mm : sequence of float
        Voxel edges (x, y, z) of an array.
    mu_per_cm : ndarray, optional
        Attenuation map of an array in 1/cm; None derives it from the activity.
    keep_sinograms : bool
        Return counts too.
    memory_gb : float
        Memory that may be used.
    **settings
        Further fields of `petsim.settings.SimulationSettings`.

    Returns
    -------
    petsim.simulation.Simulation
        `images` (dose, realization, x, y, z) in Bq/mL, `noise_free`, `counts`, `grid`, `provenance`.

    Raises
    ------
    UsageError, DataError
        With one line that says what is wrong.
    """
    if isinstance(subject, np.ndarray):
        if voxel_mm is None:
            raise UsageError("voxel_mm: an array needs its voxel edges (x, y, z) in mm")
        x, y, z = (float(v) for v in voxel_mm)
        nx, ny, nz = subject.shape if subject.ndim == 3 else (0, 0, 0)
        subject = Subject(
            name="array",
            activity_bqml=np.asarray(subject, np.float32),
            grid=Grid.centered((nx or 1, ny or 1, nz or 1), (x, y, z)),
            injection=Injection(),
            mu_per_cm=None if mu_per_cm is None else np.asarray(mu_per_cm, np.float32),
            mu_source=None if mu_per_cm is None else "given",
        )
    subject = with_mu(subject)
    chosen = SimulationSettings(drf=tuple(map(float, drf)), scanner=scanner, preset=preset, seed=seed, **settings)
    budget = memory_budget(memory_gb)
    if chosen.grid is not None:
        check_output(chosen.grid, len(chosen.ladder()) * chosen.realizations, budget)
    if chosen.beds is None:
        plan = plan_subject(subject, chosen)
        subject, result = plan.subject, simulate_plan(plan, chosen, budget, keep_sinograms)
    elif keep_sinograms:
        raise UsageError("keep_sinograms: counts of several bed positions are not kept; leave it out, or beds")
    else:
        result = simulate_beds(plan_beds(subject, chosen), chosen, budget)
    return result if chosen.grid is None else on_grid(result, subject, chosen.grid)
