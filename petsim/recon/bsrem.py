"""Block-sequential regularized expectation maximization: the image of highest likelihood less a penalty.

De Pierro and Yamagishi 2001, doi 10.1109/42.921477; relaxed as by Ahn and Fessler 2003, doi 10.1109/TMI.2003.812251. With
the model and terms of `petsim.recon.osem`, the log-likelihood L and a penalty R, an update with subset m of M is

    x <- x + a_n x / p [G' A' (counts / (A G x + b)) - c G' A' m - grad R(x) / M],     p = (c G' A' m, all bins, + k) / M,

where a_n = 1 / (1 + r n) falls from iteration to iteration and k bounds x times the penalty's curvature, so that the first
steps do not overshoot. Without penalty and with one subset and a_n = 1 it is MLEM.
"""

from collections.abc import Callable, Sequence

import numpy as np

from petsim.recon.osem import Callback, EmBack, is_seen

RELAXATION = 0.1
"""r: after ten iterations, steps are half as long."""

LEAST_FACTOR = 0.1
"""A voxel keeps this part of its value or more in an update, so that it stays positive. Steps that are short enough do not
come near it, and the limit is not touched."""


def bsrem(
    start: np.ndarray,
    em_back: EmBack,
    sensitivities: Sequence[np.ndarray],
    blur: Callable[[np.ndarray], np.ndarray],
    order: Sequence[int],
    gradient: Callable[[np.ndarray], np.ndarray],
    curvature: np.ndarray | float,
    relaxation: float = RELAXATION,
    callback: Callback = lambda updates, images: None,
    made: int = 0,
) -> np.ndarray:
    """Reconstruct.

    Parameters
    ----------
    start, em_back, sensitivities, blur, order, callback
        As for `petsim.recon.osem.osem`; voxels that no bin at all sees become zero. An image of a few OSEM iterations saves
        many updates.
    gradient : callable
        Of the penalty, at one image (x, y, z); zero where nothing is seen.
    curvature : ndarray or float
        Bound of x times the penalty's curvature (with what neighbors add), by voxel;
        see `petsim.recon.relative_difference.RelativeDifference`.
    relaxation : float
        r.
    made : int
        Updates made before, where `start` is the result of an earlier run and `order` the rest: bit for bit the same as
        one run.

    Returns
    -------
    ndarray
        float32 (images, x, y, z): the images times c.
    """
    subsets = len(sensitivities)
    total = sum(sensitivities[1:], sensitivities[0])
    seen = np.broadcast_to(np.stack([is_seen(s) for s in total]) if total.ndim == 4 else is_seen(total), start.shape)
    scale = np.divide(np.float32(subsets), total + curvature, out=np.zeros(start.shape, np.float32), where=seen)
    images = start * seen
    for updates, subset in enumerate(order, made + 1):
        step = np.float32(1 / (1 + relaxation * ((updates - 1) // subsets)))
        back = em_back(subset, np.stack([blur(image) for image in images]))
        own = np.broadcast_to(sensitivities[subset], images.shape)
        for image, update, sensitivity, factor in zip(images, back, own, scale, strict=True):
            rise = blur(update) - sensitivity - gradient(image) / np.float32(subsets)
            image *= np.maximum(1 + step * factor * rise, np.float32(LEAST_FACTOR))
        if callback(updates, images):
            break
    return images
