"""Ordered-subsets expectation maximization, several images at once.

Hudson and Larkin 1994, doi 10.1109/42.363108; with one subset it is MLEM (Shepp and Vardi 1982, doi
10.1109/TMI.1982.4307558). With expected counts y = c m (A G x + b) (c a constant, m the multiplicative
factors of a bin, A line integrals, G the point spread function, b scatter and randoms), one update with a subset's bins is

    x <- x / (c G' A' m) G' A' [counts / (A G x + b)],

in which c and m remain in the denominator only.
"""

from collections.abc import Callable, Sequence

import numpy as np

EmBack = Callable[[int, np.ndarray], np.ndarray]
"""(subset, blurred images) -> A' [counts / (A images + b)], (images, x, y, z)."""

Callback = Callable[[int, np.ndarray], bool | None]
"""Told the number of updates made and the images, which it must copy to keep; True ends the reconstruction."""

LEAST_SENSITIVITY = 1e-6
"""Voxels with less than this part of the highest sensitivity count as unseen."""


def osem(
    start: np.ndarray,
    em_back: EmBack,
    sensitivities: Sequence[np.ndarray],
    blur: Callable[[np.ndarray], np.ndarray],
    order: Sequence[int],
    callback: Callback = lambda updates, images: None,
) -> np.ndarray:
    """Reconstruct.

    There is no state besides the images: a run from the images after k updates with `order[k:]` is the rest of the run,
    bit for bit.

    Parameters
    ----------
    start : ndarray
        float32 (images, x, y, z), positive inside the field of view.
    em_back : callable
        See `EmBack`; `em_back_of` makes one of a projector's forward and adjoint.
    sensitivities : sequence of ndarray
        G' A' m by subset, (x, y, z) or by image (images, x, y, z). Voxels that no bin of a subset sees become zero.
    blur : callable
        G, which is its own transpose, for one image.
    order : sequence of int
        Subsets, one an update; all of them n times over are n iterations.
    callback : callable
        Called after every update; see `Callback`.

    Returns
    -------
    ndarray
        float32 (images, x, y, z): the images times c.
    """
    images = start.copy()
    for updates, subset in enumerate(order, 1):
        back = em_back(subset, np.stack([blur(image) for image in images]))
        for image, update, own in zip(images, back, np.broadcast_to(sensitivities[subset], images.shape), strict=True):
            seen = is_seen(own)
            image *= np.divide(blur(update), own, out=np.zeros_like(image), where=seen)
        if callback(updates, images):
            break
    return images


def is_seen(sensitivity: np.ndarray) -> np.ndarray:
    """bool: voxels that are reconstructed."""
    return sensitivity > LEAST_SENSITIVITY * sensitivity.max()


def em_back_of(
    forward: Callable[[int, np.ndarray], np.ndarray],
    adjoint: Callable[[int, np.ndarray], np.ndarray],
    counts: Callable[[int], np.ndarray],
    background: Callable[[int], np.ndarray] | None = None,
) -> EmBack:
    """`EmBack` of any projector.

    Parameters
    ----------
    forward, adjoint : callable
        A and A' of a subset's bins: (subset, images) -> data and back, with a leading axis of images.
    counts, background : callable
        Subset -> counts, and b, in the shape of the data. None: no background. Bins where nothing is expected, or whose
        counts or background are not finite, add nothing.
    """

    def em_back(subset: int, images: np.ndarray) -> np.ndarray:
        expected = forward(subset, images)
        if background is not None:
            expected = expected + background(subset)
        recorded = counts(subset)
        used = (expected > 0) & np.isfinite(expected) & np.isfinite(recorded)
        return adjoint(subset, np.divide(recorded, expected, out=np.zeros_like(expected), where=used))

    return em_back
