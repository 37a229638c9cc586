"""NEMA NU 2-2018 section 5: sensitivity for a line of 70 cm on the axis, without attenuation."""

from pathlib import Path

from petsim.geometry.scanner import Scanner
from petsim.nema.bench import Figure, figure
from petsim.physics.sensitivity import DECAYS, sensitivity


def run(scanner: Scanner, decays: int | None, seed: int, out: Path | None) -> list[Figure]:
    """The sensitivity beside the published one."""
    return [figure(scanner, "sensitivity_cps_per_kbq", sensitivity(scanner, decays or DECAYS, seed))]
