"""The scale of estimated scatter, from the counts in LORs that pass beside the body."""

import math
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np

LEAST_COUNTS = 1.0
"""Scatter counts (those among randoms count less) below which a scale is not fitted: they say next to nothing."""

PRIOR_DEVIATION = 0.3
"""Standard deviation of the scale among bodies, as a part of the scale that is taken without counts: single scatter wants
1.2 in generated patients and 1.8 in a measured one whose arms and activity beyond the scanner's ends add to it."""

LOWEST, HIGHEST = 0.5, 2.0


@dataclass
class TailSums:
    """Sums over tails from which the scale follows, added up over groups of views.

    Counts y are Poisson with mean a s + r, scatter s and randoms r. One step of Fisher scoring from a = 1 gives

        a = sum s (y - r) / (s + r)  /  sum s^2 / (s + r),

    which is unbiased whatever the true a, and has the least variance, one over the lower sum, where a is 1. Few counts are
    weighed against what is known without them: with a prior of mean m and standard deviation d m, the scale is

        (sum s (y - r) / (s + r)  +  m / (d m)^2)  /  (sum s^2 / (s + r)  +  1 / (d m)^2),

    the mean of the posterior of a Gaussian (Gelman et al, Bayesian Data Analysis, section 2.5), so that a dose ladder
    passes gradually from the fit to m.
    """

    numerator: float = 0.0
    information: float = 0.0
    counts: float = 0.0

    def add(self, data: np.ndarray, randoms: np.ndarray, scatter: np.ndarray, mask: np.ndarray) -> None:
        """Add some views.

        Parameters
        ----------
        data, randoms, scatter : ndarray
            (views, radial, plane): counts, and the expected ones of randoms and of unscaled scatter.
        mask : ndarray
            bool, same shape: bins that unscattered photons cannot reach.
        """
        rows = np.zeros((*mask.shape[:2], 3))
        y, r, s = (np.ascontiguousarray(a, np.float32) for a in (data, randoms, scatter))
        _sum_tails(y, r, s, mask, rows)
        numerator, information, counts = rows.sum(axis=(0, 1)).tolist()
        self.numerator += numerator
        self.information += information
        self.counts += counts

    def scale(
        self,
        lowest: float = LOWEST,
        highest: float = HIGHEST,
        least_counts: float = LEAST_COUNTS,
        default: float = 1.0,
    ) -> dict[str, Any]:
        """What the scatter is to be multiplied by.

        Parameters
        ----------
        lowest, highest : float
            Bounds.
        least_counts : float
            Scatter counts that the tails must hold.
        default : float
            Scale if they do not, and the mean of the prior if they do.

        Returns
        -------
        dict
            scale; how: "fitted", "bounded" or "fallback"; counts: in the tails, randoms subtracted; deviation: standard
            deviation of the scale: of the posterior, or of the prior for the fallback.
        """
        deviation = PRIOR_DEVIATION * default
        if self.information < least_counts:
            return {"scale": default, "how": "fallback", "counts": self.counts, "deviation": deviation}
        information = self.information + deviation**-2
        fitted = (self.numerator + default * deviation**-2) / information
        scale = min(max(fitted, lowest), highest)
        how = "fitted" if scale == fitted else "bounded"
        return {"scale": scale, "how": how, "counts": self.counts, "deviation": math.sqrt(1 / information)}


@nb.njit(cache=True, nogil=True, parallel=True)
def _sum_tails(data, randoms, scatter, mask, rows):
    views, radials, planes = mask.shape
    for task in nb.prange(views * radials):
        v, r = task // radials, task % radials
        for p in range(planes):
            s = scatter[v, r, p]
            if mask[v, r, p] and s > 0:
                more, share = data[v, r, p] - randoms[v, r, p], s / (s + randoms[v, r, p])
                rows[v, r, 0] += share * more
                rows[v, r, 1] += share * s
                rows[v, r, 2] += more
