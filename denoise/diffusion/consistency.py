"""Estimates made to agree with measured counts, through projectors that are handed in."""

from collections.abc import Callable

import numpy as np

Map = Callable[[np.ndarray], np.ndarray]


def em_step(
    forward: Map, back: Map, counts: np.ndarray, background: np.ndarray, sensitivity: np.ndarray, bqml_per_suv: float = 1.0
) -> Map:
    """A step of maximum-likelihood expectation maximization, as a correction of estimates in SUV.

    x <- x / s B(y / (A x + b)), with A `forward`, B `back`, its adjoint, and s = B(1); Shepp and Vardi 1982, doi
    10.1109/TMI.1982.4307558. It raises the Poisson likelihood of the counts and keeps an estimate nonnegative.

    Parameters
    ----------
    forward, back : callable
        Image in Bq/mL (x, y, z) -> expected trues, and its adjoint.
    counts, background : ndarray
        Prompts, and the expected scatter and randoms among them.
    sensitivity : ndarray
        Back projection of ones.
    bqml_per_suv : float
    """
    seen = sensitivity > 1e-6 * sensitivity.max()

    def correct(suv: np.ndarray) -> np.ndarray:
        image = np.maximum(suv, 0) * np.float32(bqml_per_suv)
        expected = forward(image) + background
        ratio = np.divide(counts, expected, out=np.zeros_like(expected), where=expected > 0)
        stepped = np.where(seen, image * back(ratio) / np.where(seen, sensitivity, 1), image)
        return (stepped / bqml_per_suv).astype(np.float32)

    return correct
