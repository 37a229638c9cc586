"""Ordered-subsets expectation maximization, several images at once.

Hudson and Larkin 1994, doi 10.1109/42.363108. With expected counts y = c m (A G x + b) (c a constant, m the multiplicative
factors of a bin, A line integrals, G the point spread function, b scatter and randoms), one update with a subset's bins is

    x <- x / (c G' A' m) G' A' [counts / (A G x + b)],

in which c and m remain in the denominator only.
"""

from collections.abc import Callable, Sequence

import numpy as np


def osem(
    start: np.ndarray,
    em_back: Callable[[int, np.ndarray], np.ndarray],
    sensitivities: Sequence[np.ndarray],
    blur: Callable[[np.ndarray], np.ndarray],
    order: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Reconstruct.

    Parameters
    ----------
    start : ndarray
        float32 (images, x, y, z), positive inside the field of view.
    em_back : callable
        (subset, blurred images) -> A' [counts / (A images + b)], (images, x, y, z).
    sensitivities : sequence of ndarray
        G' A' m by subset, (x, y, z) or by image (images, x, y, z). Voxels that no bin of a subset sees become zero.
    blur : callable
        G, which is its own transpose, for one image.
    order : sequence of int
        Subsets, one an update; all of them n times over are n iterations.
    progress : callable
        Called after every update.

    Returns
    -------
    ndarray
        float32 (images, x, y, z): the images times c.
    """
    images = start.copy()
    for subset in order:
        back = em_back(subset, np.stack([blur(image) for image in images]))
        for image, update, own in zip(images, back, np.broadcast_to(sensitivities[subset], images.shape), strict=True):
            seen = own > 1e-6 * own.max()
            image *= np.divide(blur(update), own, out=np.zeros_like(image), where=seen)
        progress()
    return images
