"""Attenuation of annihilation photons."""

import numpy as np


def survival(line_integrals_mm_per_cm: np.ndarray) -> np.ndarray:
    """Probability that both photons of a LOR leave the body: exp(-integral of mu).

    Parameters
    ----------
    line_integrals_mm_per_cm : ndarray
        Line integrals of mu [1/cm] along the LOR in mm.

    Returns
    -------
    ndarray
        float32, 0 to 1.
    """
    return np.exp(np.float32(-0.1) * line_integrals_mm_per_cm)
