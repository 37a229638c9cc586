"""How far apart the styles of doses are in a network's features."""

from collections.abc import Mapping

import torch

from denoise.adversarial.losses import style_of
from denoise.networks.unipet import UniPET
from denoise.scaling import Scaling


def style_distances(
    network: UniPET, scaling: Scaling, images: Mapping[float, torch.Tensor]
) -> dict[float, dict[str, float]]:
    """Distance of each dose's style from that of the full dose, for the same patches.

    A network could bring styles together by making all features small. So the distance is also given over the spread: the
    standard deviation of the full dose's style between patches, which is what tells their contents apart.

    Parameters
    ----------
    network : UniPET
    scaling : Scaling
    images : mapping
        DRF -> (n, 1, x, y, z) in SUV, two patches or more; with DRF 1.

    Returns
    -------
    dict
        DRF -> "distance", the mean absolute difference of the styles, and "relative", the same over the spread.
    """
    with torch.inference_mode():
        styles = {drf: style_of(network.with_features(scaling.to_network(suv))[1]) for drf, suv in images.items()}
    spread = styles[1.0].std(dim=0).mean()
    found = {}
    for drf, style in styles.items():
        if drf > 1:
            distance = (style - styles[1.0]).abs().mean()
            found[drf] = {"distance": distance.item(), "relative": (distance / spread).item()}
    return found
