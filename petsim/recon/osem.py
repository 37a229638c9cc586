"""Ordered-subsets expectation maximization, several images at once.

Hudson and Larkin 1994, doi 10.1109/42.363108. With expected counts y = c m A G x (c a constant, m the multiplicative
factors of a bin, A line integrals, G the point spread function), one update with a subset's bins is

    x <- x / (c G' A' m) G' A' [counts / (A G x)],

in which c and m remain in the denominator only.
"""

from collections.abc import Callable, Sequence

import numpy as np


def osem(
    start: np.ndarray,
    em_back: Callable[[int, np.ndarray], np.ndarray],
    sensitivities: Sequence[np.ndarray],
    blur: Callable[[np.ndarray], np.ndarray],
    iterations: int,
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Reconstruct.

    Parameters
    ----------
    start : ndarray
        float32 (images, x, y, z), positive inside the field of view.
    em_back : callable
        (subset, blurred images) -> A' [counts / (A images)], (images, x, y, z).
    sensitivities : sequence of ndarray
        G' A' m by subset, (x, y, z). Voxels that no bin of a subset sees become zero.
    blur : callable
        G, which is its own transpose, for one image.
    iterations : int
    progress : callable
        Called after every update.

    Returns
    -------
    ndarray
        float32 (images, x, y, z): the images times c.
    """
    images = start.copy()
    for _ in range(iterations):
        for subset, sensitivity in enumerate(sensitivities):
            back = em_back(subset, np.stack([blur(image) for image in images]))
            seen = sensitivity > 1e-6 * sensitivity.max()
            for image, update in zip(images, back, strict=True):
                image *= np.divide(blur(update), sensitivity, out=np.zeros_like(image), where=seen)
            progress()
    return images
