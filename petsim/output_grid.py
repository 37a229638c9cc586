"""Images on the voxel grid of a public data set, so that networks meet voxels they know.

Interpolation mixes neighboring voxels: noise becomes smoother and more correlated than that of a reconstruction on the same
grid, and its variance changes with the place between the original voxels. Where that matters, reconstruct with `--voxel-mm`.
"""

import math
from dataclasses import replace

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.resample import resample, resample_labels
from data_recipes.subject import Subject
from petsim.presets import GRIDS, NAMED_GRIDS
from petsim.projectors.contract import support_mask
from petsim.simulation import Simulation, add_figures


def output_grid(name: str, grid: Grid) -> Grid:
    """A named grid around the middle of another one."""
    chosen = GRIDS[name]
    return Grid.centered(chosen.shape, chosen.spacing_mm, grid.center_mm)


def check_output(name: str, images: int, budget_bytes: float) -> None:
    """Refuse a grid on which so many images do not fit the memory: as float32, and once more while they are written."""
    needed = 4.0 * math.prod(GRIDS[name].shape) * (2 * images + 4)
    if needed > budget_bytes:
        raise DataError(
            f"--grid {name}: {images} images take about {needed / 1e9:.2g} GB of memory but {budget_bytes / 1e9:.2g} GB may "
            f"be used; use --memory-gb {math.ceil(needed / 1e8) / 10:g}, or fewer doses or realizations"
        )


def on_grid(result: Simulation, subject: Subject, name: str) -> Simulation:
    """A simulation or reconstruction on a named grid.

    Parameters
    ----------
    result : Simulation
    subject : Subject
        Its truth, which is resampled directly; so is a measured full dose.
    name : str
        Key of `petsim.presets.GRIDS`.

    Returns
    -------
    Simulation
        With `output_grid` in its provenance. Counts and sinograms are what they were; noise is measured anew.
    """
    grid = output_grid(name, result.grid)
    assert subject.mu_per_cm is not None
    inside = support_mask(grid, result.grid.center_mm, result.provenance["fov_mm"] / 2)
    truth = resample(subject.activity_bqml, subject.grid, grid) * inside
    is_source = result.provenance["full_dose"] == "source"
    images = np.empty((*result.images.shape[:2], *grid.shape), np.float32)
    for dose in range(images.shape[0]):
        for number in range(images.shape[1]):
            image = result.images[dose, number]
            if is_source:
                images[dose, number] = truth + resample(image - result.activity_bqml, result.grid, grid)
            else:
                images[dose, number] = resample(image, result.grid, grid)
    entry = NAMED_GRIDS[name]
    made = replace(
        result,
        grid=grid,
        images=images,
        noise_free=None if result.noise_free is None else resample(result.noise_free, result.grid, grid),
        activity_bqml=truth,
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, grid),
        labels=None if subject.labels is None else resample_labels(subject.labels, subject.grid, grid),
        counts=[dict(row) for row in result.counts],
        provenance={
            **result.provenance,
            "output_grid": {
                "name": name, "title": entry.title, "sources": entry.sources,
                "reconstructed_voxel_mm": list(result.grid.spacing_mm),
                "noise": "interpolated: smoother and more correlated than that of a reconstruction on this grid",
            },
        },
    )  # fmt: skip
    add_figures(made, subject, result.provenance["duration_s"])
    return made
