"""What an image costs to reconstruct from its events, against from all bins of its sinogram."""

from petsim.geometry.sinogram import SinogramLayout

EVENT_US, TOF_EVENT_US, SORT_US = 0.19, 0.15, 0.15
"""CPU time of an event in an update, without and with TOF, and once, in microseconds: those of the machine of
`benchmarks.recon`, of which only the ratios to the numbers below matter."""

LINE_US, TOF_LINE_US, MORE_TOF_US = 0.10, 0.11, 0.004
"""That of a line of response in an image's update, without and with TOF, and more for each TOF bin."""

FIND_US, FIND_TOF_US = 0.05, 0.006
"""That of a line, once, to find its events and their background, and more for each TOF bin."""


def event_cost(layout: SinogramLayout, counts: float, iterations: int) -> float:
    """Cost of some iterations from events over that from all bins, as a ratio.

    It depends on counts and layout only: never on the machine, or images would.

    Parameters
    ----------
    layout : SinogramLayout
    counts : float
        Of the image, in the whole sinogram.
    iterations : int
    """
    lines, bins = layout.views * layout.radials * layout.planes, layout.tof_bins
    line, event = (TOF_LINE_US + MORE_TOF_US * bins, TOF_EVENT_US) if layout.is_tof else (LINE_US, EVENT_US)
    by_events = counts * (SORT_US + iterations * event) + lines * (FIND_US + FIND_TOF_US * bins)
    return by_events / (iterations * lines * line)
