"""A network out of its description."""

from denoise.networks.unet import UNet, UNetShape
from denoise.networks.unipet import UniPET, UniPETShape

Shape = UNetShape | UniPETShape
Network = UNet | UniPET


def made_network(shape: Shape) -> Network:
    """The network of a shape, with random weights."""
    return UNet(shape) if isinstance(shape, UNetShape) else UniPET(shape)
