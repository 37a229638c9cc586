"""The scatter estimate: seconds, rate of bins, and difference to photon Monte Carlo.

    python -m benchmarks.scatter [decays]

- `seconds`: single scatter of six images of a generated patient on the Quadra, preset fast, by threads (compiled before);
- `mbins_per_s`: bins that `ScatterTable.at` gives for one image;
- `monte_carlo`: a water cylinder and a torso with lungs in a Vision 600 whose detectors are an ideal cylinder, and the torso
  in one four times as long (`long`: 105 cm, every ring difference); ratio of the totals, and the largest difference of the
  distributions over radial position, TOF and axial position in percent of their peaks, for photons scattered once and for
  all scattered ones, beside the statistical deviation at the peak.
"""

import dataclasses
import os
import sys
import time
from typing import Any

import numba as nb
import numpy as np

from benchmarks.common import emit
from data_recipes.grid import Grid
from data_recipes.phantoms.families import REFERENCE
from data_recipes.phantoms.whole_body import whole_body
from data_recipes.resample import resample
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, radials_for, tof_bins_for
from petsim.physics.monte_carlo import acceptance, photon_pairs
from petsim.physics.multiple_scatter import add_multiple
from petsim.physics.photons import ELECTRON_KEV
from petsim.physics.scatter import ScatterTable, single_scatter
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings

CENTER = (0.0, 0.0, 0.0)
IMAGES = 6


def shortest(call: Any, repeats: int) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def default_job() -> dict[str, Any]:
    """Seconds and rates by number of threads."""
    plan = plan_subject(whole_body(0, family=REFERENCE.name), SimulationSettings(preset="fast"))
    subject, layout = plan.subject, plan.layout
    activity = resample(subject.activity_bqml, subject.grid, plan.grid)
    images = np.stack([activity] * IMAGES)
    mu = resample(subject.mu_per_cm, subject.grid, plan.grid)
    accepted = acceptance(plan.scanner)

    def simulate() -> ScatterTable:
        return single_scatter(layout, images, mu, plan.grid, plan.center_mm, accepted)

    views = np.arange(0, layout.views, 7)
    table = simulate()
    seconds, rates = {}, {}
    bins = len(views) * layout.radials * layout.tof_bins * layout.planes
    for threads in sorted({1, 2, os.cpu_count() or 1}):
        if threads > nb.config.NUMBA_NUM_THREADS:
            continue
        nb.set_num_threads(threads)
        table.at(layout, views, 0)
        seconds[str(threads)] = round(shortest(simulate, 2), 2)
        rates[str(threads)] = round(bins / shortest(lambda: table.at(layout, views, 0), 5) / 1e6)
    return {"seconds": seconds, "mbins_per_s": rates, "images": IMAGES, "table_mb": round(table.values.nbytes / 1e6)}


def subjects() -> dict[str, tuple[Grid, np.ndarray, np.ndarray]]:
    """Grid, activity and mu."""
    grid = Grid.centered((70, 46, 80), (5.0, 5.0, 5.0))
    x, y, z = np.meshgrid(*(grid.axis_mm(axis) for axis in range(3)), indexing="ij")
    water = np.where((x**2 + y**2 < 100**2) & (np.abs(z) < 150), 0.096, 0.0)
    body = (x / 170) ** 2 + (y / 110) ** 2 < 1
    lung = (((np.abs(x) - 80) / 55) ** 2 + (y / 75) ** 2 + ((z - 60) / 120) ** 2) < 1
    mu, activity = np.where(body, 0.096, 0.0), np.where(body, 1.0, 0.0)
    mu[lung], activity[lung] = 0.03, 0.4
    activity[(x + 70) ** 2 + y**2 + (z + 100) ** 2 < 55**2] = 3
    cases = {"water cylinder": (water, water), "torso": (activity, mu)}
    return {name: (grid, *(a.astype(np.float32) for a in maps)) for name, maps in cases.items()}


def ideal_layout(times: int = 1) -> SinogramLayout:
    """A Vision 600 without gaps, so many times as long, a bin for every pair of merged crystals and rings."""
    scanner = load_scanner("biograph_vision_600")
    rings = times * scanner.rings
    scanner = dataclasses.replace(
        scanner, transaxial_block_real=scanner.transaxial_block, rings=rings, axial_block_real=scanner.axial_block,
        max_ring_difference=rings - 1,
    )  # fmt: skip
    merge_axial = 8 if times == 1 else 16
    return SinogramLayout(
        scanner, radials=radials_for(scanner, 6, 400.0), merge_transaxial=6, merge_axial=merge_axial,
        max_ring_difference=rings // merge_axial - 1, merge_tof=15, tof_bins=tof_bins_for(scanner, 15, 400.0, 3.0),
    )  # fmt: skip


def against_monte_carlo(
    decays: int, layout: SinogramLayout, cases: dict[str, tuple[Grid, np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Ratios and differences by subject; both directions of a LOR are taken together."""
    accepted = acceptance(layout.scanner)
    half, middle = layout.crystals // 2 + 1, layout.tof_bins // 2
    first_difference = min(
        int(np.min(d)) for d in (np.minimum((a - b) % layout.crystals, (b - a) % layout.crystals)
                                 for a, b in (layout.crystal_pairs(v) for v in (0, 1)))
    )  # fmt: skip
    shape = (half, middle + 1, 2 * layout.rings - 1)
    z = layout.plane_z_mm()
    ring_sum = np.rint((z.sum(axis=1) - 2 * z.min()) / layout.ring_pitch_mm).astype(int)

    def fold(tof: np.ndarray) -> np.ndarray:
        return np.abs(tof - middle)

    out: dict[str, Any] = {"decays": decays}
    for name, (grid, activity, mu) in cases.items():
        counted, squares = np.zeros((2, *shape)), np.zeros(shape)
        rng = np.random.default_rng(0)
        for batch in photon_pairs(layout.scanner, activity, mu, grid, CENTER, decays, detector="cylinder"):
            scatters = batch.scatters.sum(axis=1)
            both = (batch.energy_kev > 0).all(axis=1) & (scatters > 0)
            weight = np.interp(batch.energy_kev[both], *accepted).prod(axis=1)
            crystal = batch.crystal[both] // layout.merge_transaxial
            apart = np.abs(np.diff(crystal, axis=1)[:, 0])
            apart = np.minimum(apart, layout.crystals - apart)
            position = (batch.path_mm[both, 0] - batch.path_mm[both, 1]) / 2 + rng.normal(0, layout.tof_sigma_mm, both.sum())
            tof = fold(np.floor(position / layout.tof_bin_mm + layout.tof_bins / 2).astype(int))
            rings = (batch.ring[both] // layout.merge_axial).sum(axis=1)
            kept = (apart >= first_difference) & (tof <= middle)
            more = (scatters[both] > 1).astype(int)
            np.add.at(counted, tuple(a[kept] for a in (more, apart, tof, rings)), weight[kept])
            np.add.at(squares, tuple(a[kept] for a in (apart, tof, rings)), weight[kept] ** 2)
        single = single_scatter(layout, activity[None], mu, grid, CENTER, accepted)
        ratio = counted[1].sum() / counted[0].sum()
        result = {"multiple_to_single": round(ratio, 3)}
        for kind, table, found in (
            ("single", single, counted[0]),
            ("all", add_multiple(single, ratio), counted.sum(axis=0)),
        ):
            expected = np.zeros(shape)
            for view in range(layout.views):
                one, two = (c[0] for c in layout.crystal_pairs(view))
                apart = np.minimum((one - two) % layout.crystals, (two - one) % layout.crystals)
                ends = layout.transaxial_ends(np.array([view]))[0]
                chord2 = ((ends[:, 2:] - ends[:, :2]) ** 2).sum(axis=1)[:, None]
                cos4 = (chord2 / (chord2 + np.diff(z, axis=1)[:, 0] ** 2)) ** 2
                bins = table.at(layout, np.array([view]))[0] * cos4[:, None, :]
                index = np.broadcast_arrays(apart[:, None, None], fold(np.arange(layout.tof_bins))[None, :, None], ring_sum)
                np.add.at(expected, tuple(index), bins)
            radius = layout.scanner.radius_mm
            area = 2 * np.pi * radius / layout.crystals * layout.ring_pitch_mm
            level = area**2 / (8 * np.pi * radius**2) * np.interp(ELECTRON_KEV, *accepted) ** 2
            expected *= level * decays / (activity.sum(dtype=float) * np.prod(grid.spacing_mm))
            result[kind] = compare(expected, found, squares)
        out[name] = result
    return out


def compare(expected: np.ndarray, found: np.ndarray, squares: np.ndarray) -> dict[str, Any]:
    """Ratio of totals, and largest difference and deviation at the peak in percent of the peak of each profile."""
    out: dict[str, Any] = {"ratio": round(expected.sum() / found.sum(), 4)}
    for name, axes in (("radial", (1, 2)), ("tof", (0, 2)), ("axial", (0, 1))):
        e, f, s = (a.sum(axis=axes) for a in (expected, found, squares))
        out[name] = {
            "percent": round(100 * np.abs(e - f).max() / f.max(), 2),
            "noise": round(100 * s.max() ** 0.5 / f.max(), 2),
        }
    return out


def main() -> None:
    """Measure and print."""
    decays = int(float(sys.argv[1])) if len(sys.argv) > 1 else 20_000_000
    job = default_job()
    nb.set_num_threads(nb.config.NUMBA_NUM_THREADS)
    cases = subjects()
    found = against_monte_carlo(decays, ideal_layout(), cases)
    found["long"] = against_monte_carlo(decays, ideal_layout(4), {"torso": cases["torso"]})
    emit("scatter", {**job, "monte_carlo": found})


if __name__ == "__main__":
    main()
