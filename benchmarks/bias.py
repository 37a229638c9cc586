"""How far are the means of regions from the truth, and how noisy are they, by dose?

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python -m benchmarks.bias

OSEM keeps voxels positive: where few counts lie over much background, noise is cut at zero, and the mean of a cold region
rises as counts fall. Protocol (fixed beforehand, but for the scans, of which a first run with one left wide errors):

- Object, on voxels of 6 mm: a water cylinder of 200 mm diameter along the whole scanner (`warm`); in it a lung of 50 mm
  (density 0.3, a fifth of the activity) and a cold rod of 50 mm (water, no activity), 50 mm to both sides of the axis.
- Scan: Biograph Vision 600 with TOF, 3 x 4 crystals merged, direct planes only, so that its 20 slices are separate;
  attenuation; half of the prompts of a slice are background (scatter and randoms), spread evenly over its bins. 3e6 prompts
  a slice at DRF 1, about what a bed of two minutes has in all its planes (not verified); nested DRF 1, 4, 10, 20, 50 and
  100, mode `thin`.
- Reconstruction: OSEM, 4 iterations of 6 subsets, point spread function of 5 mm across, true corrections, no filter: bias
  and noise are the algorithm's own.
- Figures over the slices of 5 such scans, 100 realizations: mean of each region (24 mm wide cores, so that no edge is
  blurred in) less that of the reconstruction of expected counts, in percent of the latter; for the cold rod, which has
  nothing to divide by, in percent of the warm mean. Standard error over slices. Noise: standard deviation of a voxel over
  slices, in percent of the warm mean. Also the part of voxels below a hundredth of the warm mean.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import emit
from petsim.dose import DoseLadder
from petsim.filters import gaussian
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, fitting_grid, preset_layout
from petsim.physics.attenuation import survival
from petsim.projectors.sinogram import SinogramProjector
from petsim.recon.osem import osem
from petsim.settings import PRESETS

DRFS = (1.0, 4.0, 10.0, 20.0, 50.0, 100.0)
PROMPTS_A_SLICE, BACKGROUND_SHARE = 3e6, 0.5
ITERATIONS, SUBSETS, PSF_MM = 4, 6, (5.0, 5.0, 0.0)
SCANS = 5
MU_PER_CM = 0.096
PLACES_MM = {"warm": (0.0, 60.0), "lung": (-50.0, 0.0), "cold": (50.0, 0.0)}
INSERTS = {"lung": (0.2, 0.3), "cold": (0.0, 1.0)}
"""Activity and density relative to the cylinder's."""
RADIUS_MM, INSERT_MM, CORE_MM = 100.0, 25.0, 12.0


def main() -> None:
    """Measure and print the JSON line."""
    scanner = load_scanner("biograph_vision_600")
    layout = replace(preset_layout(scanner, PRESETS["fast"], 260.0), span=1, max_ring_difference=0)
    assert isinstance(layout, SinogramLayout)
    grid = fitting_grid(layout, 6.0, layout.ring_pitch_mm, 260.0, scanner.axial_length_mm, (0.0, 0.0, 0.0))
    x, y = (grid.axis_mm(a) for a in range(2))

    def disk(place: tuple[float, float], radius: float) -> np.ndarray:
        return np.hypot(x[:, None] - place[0], y - place[1]) < radius

    activity = disk((0.0, 0.0), RADIUS_MM).astype(np.float32)
    mu = MU_PER_CM * activity
    for name, (level, density) in INSERTS.items():
        activity[disk(PLACES_MM[name], INSERT_MM)] = level
        mu[disk(PLACES_MM[name], INSERT_MM)] *= density

    def in_slices(plane: np.ndarray) -> np.ndarray:
        return np.repeat(plane[:, :, None], grid.shape[2], 2)

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian(image, PSF_MM, grid.spacing_mm)

    projector, plain = SinogramProjector(layout, grid), SinogramProjector(layout, grid, tof=False)
    factors = survival(plain.forward(in_slices(mu)))
    trues = factors * projector.forward(blur(in_slices(activity)))
    scale = (1 - BACKGROUND_SHARE) * PROMPTS_A_SLICE * layout.planes / trues.sum(dtype=np.float64)
    even = BACKGROUND_SHARE * PROMPTS_A_SLICE * layout.planes / trues.size
    expected = (scale * trues + even).astype(np.float32)
    views = [layout.subset_views(s, SUBSETS) for s in range(SUBSETS)]
    sensitivities = [blur(plain.adjoint(factors[v], v)) for v in views]

    def reconstructed(counts: np.ndarray, doses: np.ndarray) -> np.ndarray:
        """Images of counts (dose, ...) at parts of the full dose, on the scale of the activity."""
        shares = doses.astype(np.float32).reshape(-1, 1, 1, 1, 1)

        def em_back(subset: int, images: np.ndarray) -> np.ndarray:
            own, sums = views[subset], projector.new_sums(len(images))
            more = np.float32(even) / factors[own] * shares * np.ones((projector.bins, 1), np.float32)
            projector.add_em_back(sums, own, counts[:, own].astype(np.float32), projector.prepare(images), more)
            return projector.image_of(sums)

        start = np.ones((len(counts), *grid.shape), np.float32)
        return osem(start, em_back, sensitivities, blur, list(range(SUBSETS)) * ITERATIONS) / shares[:, 0] / scale

    cores = {name: disk(place, CORE_MM) for name, place in PLACES_MM.items()}
    noise_free = reconstructed(expected[None], np.ones(1))[0]
    exact = {name: noise_free[core].mean(dtype=np.float64) for name, core in cores.items()}
    prompts, parts = np.zeros(len(DRFS)), []
    for scan in range(SCANS):
        ladder = DoseLadder(DRFS, 0, "bias", scan)
        drawn = ladder.thin(ladder.draw(expected))
        prompts += drawn.reshape(len(DRFS), -1).sum(axis=1) / (SCANS * layout.planes)
        images = reconstructed(drawn, 1 / np.array(DRFS))
        parts.append({name: images[:, core].astype(np.float64) for name, core in cores.items()})
    values = {name: np.concatenate([p[name] for p in parts], axis=-1) for name in cores}
    rows = []
    for d, drf in enumerate(DRFS):
        row: dict[str, Any] = {"drf": drf, "prompts_a_slice": round(float(prompts[d]))}
        for name, voxels in values.items():
            bias = 100 * (voxels[d].mean(axis=0) - exact[name]) / exact["warm" if name == "cold" else name]
            row[name] = {
                "bias_percent": round(float(bias.mean()), 3),
                "standard_error_percent": round(float(bias.std(ddof=1)) / len(bias) ** 0.5, 3),
                "noise_percent_of_warm": round(100 * float(voxels[d].std(axis=1, ddof=1).mean()) / exact["warm"], 2),
                "near_zero_percent": round(100 * float((voxels[d] < 0.01 * exact["warm"]).mean()), 1),
            }  # fmt: skip
        rows.append(row)
    emit("bias", {
        "slices": SCANS * layout.planes, "noise_free_over_truth": {k: round(float(v), 4) for k, v in exact.items()},
        "doses": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
