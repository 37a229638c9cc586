"""Figures of merit as other groups define them, so that their tables can be followed.

Numbers made so are not those of our own table, and published ones come from other data: they never stand in one column.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from denoise.metrics import nrmse, own_range_peak, psnr_db, ssim

UNIPET_SUV = 20.0

CHALLENGE_WEIGHTS = {4.0: 0.05, 10.0: 0.15, 20.0: 0.20, 50.0: 0.25, 100.0: 0.35}
"""Share of each dose reduction factor in the scores of the Ultra-low Dose PET Imaging Challenge."""


def unipet(image: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Against the full dose over the whole volume, air included, both clipped to SUV 0 to 20.

    PSNR has a peak of 20. SSIM has constants of 0.01^2 and 0.03^2, those of a dynamic range of 1, and zeros beyond the
    border: conventions of the code published with UniPET (https://github.com/Yaziwel/UniPET).
    """
    a, b = (np.clip(x, 0, UNIPET_SUV) for x in (image, full))
    return {"psnr_db": psnr_db(a, b, UNIPET_SUV, None), "ssim": ssim(a, b, 1.0, None, border="constant")}


def challenge(image: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Against the full dose over the whole volume, with the full dose's largest value as the peak.

    The challenge takes NRMSE, PSNR and SSIM of the whole image and weighs doses by `CHALLENGE_WEIGHTS`. Its script is not
    public: the normalizer of the NRMSE (here the root mean square of the full dose) and the range of PSNR and SSIM are ours.
    Its local figures of organs and lesions are not made.
    """
    peak = own_range_peak(full, None)
    return {
        "nrmse": nrmse(image, full, None),
        "psnr_db": psnr_db(image, full, peak, None),
        "ssim": ssim(image, full, peak, None),
    }


CONVENTIONS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {"unipet": unipet, "challenge": challenge}
"""Functions of (image, full dose), both float32 (x, y, z) in SUV."""


def over_doses(summary: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of the challenge's figures over doses with its weights, by method.

    Doses of the challenge that the dataset lacks leave their share to the others.

    Parameters
    ----------
    summary : iterable of dict
        Lines with `drf`, `method` and figures named `challenge_...`.

    Returns
    -------
    list of dict
        `method`, `drfs` that entered, and the means; empty where no line has such figures.
    """
    lines = [s for s in summary if s["drf"] in CHALLENGE_WEIGHTS and s.get("challenge_nrmse") is not None]
    means = []
    for method in dict.fromkeys(line["method"] for line in lines):
        mine = [line for line in lines if line["method"] == method]
        weights = [CHALLENGE_WEIGHTS[line["drf"]] for line in mine]
        figures = [k for k in mine[0] if k.startswith("challenge_")]
        means.append(
            {"method": method, "drfs": [line["drf"] for line in mine]}
            | {k: float(np.average([line[k] for line in mine], weights=weights)) for k in figures}
        )
    return means
