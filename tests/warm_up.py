"""Compiles kernels on another core while the first tests run; numba keeps them on disk, where later tests find them."""

import tempfile
from pathlib import Path

import numpy as np

from data_recipes.phantoms.analytic import cylinder
from petsim.plan import plan_subject
from petsim.projectors.listmode import Events, ListmodeProjector, Tof
from petsim.rawdata import hdf5
from petsim.recorded import plan_recorded, reconstruct_recorded
from petsim.settings import ReadOptions, SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent / "small_scanner.toml")


def main() -> None:
    """A simulated scan, its list mode reconstructed, a scanner without TOF, and list-mode projections."""
    settings = SimulationSettings(
        scanner=SMALL, preset="fast", drf=(4.0,), photons=20_000, counts=1e4, iterations=1, subsets=2
    )
    plan = plan_subject(cylinder(length_mm=60.0), settings)
    with tempfile.TemporaryDirectory() as folder:
        simulate_plan(plan, settings, listmode=Path(folder))
        source, read = hdf5.read(next(Path(folder).glob("*drf1.lm.h5"))), ReadOptions()
        raw = SimulationSettings(scanner=SMALL, preset="fast", drf=(4.0,), full_dose="source", iterations=1, subsets=2)
        reconstruct_recorded(source, plan_recorded(source, raw, read), raw, read)
    flat = SimulationSettings(scanner="biograph_mmr", preset="fast", drf=(4.0,), photons=20_000, counts=1e4, iterations=1)
    simulate_plan(plan_subject(cylinder(length_mm=60.0), flat), flat)
    scanner = plan.scanner
    xy = scanner.crystal_xy_mm(np.arange(scanner.crystals_per_ring) + 0.5)
    one = np.ones(4, np.uint16)
    for tof in (None, Tof(5, 20.0, 20.0)):
        events = Events(one, one, 80 * one, one, one.astype(np.int16))
        projector = ListmodeProjector(xy, scanner.ring_z_mm(np.arange(scanner.rings)), plan.grid, events, tof=tof)
        image = np.ones(plan.grid.shape, np.float32)
        projector.adjoint(projector.forward(image))
        projector.em_back(image)


if __name__ == "__main__":
    main()
