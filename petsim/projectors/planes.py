"""Planes of a sinogram sorted into sets that a vector loop can project together."""

import numpy as np

TOLERANCE_VOXELS = 1e-5
"""How far a plane may lie from its place in a set."""

NARROW = 5
"""Sets of fewer planes take as many lanes as they have planes; others are filled up to a multiple of 8."""


def plane_sets(z_mm: np.ndarray, voxel_mm: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Group planes whose LORs are axial shifts of each other by a whole number of voxels.

    Parameters
    ----------
    z_mm : ndarray
        float64 (planes, 2), axial positions of both ends of each plane's LORs.
    voxel_mm : float
        Axial voxel size.

    Returns
    -------
    sets : ndarray
        float64 (n, 7): z2 - z1 and z of the first plane's middle in mm, planes, first index and stride in the sinogram,
        first lane, lanes. Neighboring planes of a set lie `phases` voxels apart. Sorted by |z2 - z1|.
    groups : ndarray
        int64 (m, 4): first and last + 1 set, first and last + 1 lane, of runs with one |z2 - z1|.
    phases : int
        1 where no two planes are a whole number of voxels apart; sets are then of one plane.
    """
    difference, middle = z_mm[:, 1] - z_mm[:, 0], z_mm.mean(axis=1)
    keys = np.round(difference, 6)
    families = [np.flatnonzero(keys == key) for key in np.unique(keys)]
    families = [planes[np.argsort(middle[planes], kind="stable")] for planes in families]
    phases = _phases([np.diff(middle[planes]) / voxel_mm for planes in families])
    found = [(float(difference[planes[0]]), run) for planes in families for run in _runs(planes, middle / voxel_mm, phases)]
    found.sort(key=lambda item: (abs(round(item[0], 6)), item[0], item[1][0]))

    sets, groups, lane = [], [], 0
    for n, (dz, run) in enumerate(found):
        stride = run[1] - run[0] if len(run) > 1 else 1
        if n == 0 or abs(abs(dz) - abs(sets[-1][0])) > 1e-6:
            groups.append([n, n, lane, lane])
        width = len(run) if len(run) < NARROW else -(-len(run) // 8) * 8
        sets.append((dz, middle[run[0]], len(run), run[0], stride, lane, width))
        lane += width
        groups[-1][1], groups[-1][3] = n + 1, lane
    return np.array(sets, np.float64), np.array(groups, np.int64), phases


def _phases(spacings: list[np.ndarray]) -> int:
    """Voxels between neighboring planes of a set: the widest usual spacing, or twice that, where it is an integer."""
    usual = 0.0
    for spacing in spacings:
        if spacing.size:
            values, counts = np.unique(np.round(spacing, 6), return_counts=True)
            usual = max(usual, float(values[counts.argmax()]))
    for multiple in (usual, 2 * usual):
        if round(multiple) >= 1 and abs(multiple - round(multiple)) < TOLERANCE_VOXELS:
            return round(multiple)
    return 1


def _runs(planes: np.ndarray, position: np.ndarray, phases: int) -> list[list[int]]:
    """Cut planes of one ring difference, in axial order, into runs `phases` voxels apart with one stride in the sinogram."""
    runs: list[list[int]] = []
    still_open: list[list[int]] = []
    for plane in planes.tolist():
        still_open = [r for r in still_open if position[plane] - position[r[-1]] < phases + TOLERANCE_VOXELS]
        for run in still_open:
            expected = position[run[0]] + phases * len(run)
            if abs(position[plane] - expected) < TOLERANCE_VOXELS and (
                len(run) == 1 or plane - run[-1] == run[1] - run[0]
            ):  # fmt: skip
                run.append(plane)
                break
        else:
            runs.append([plane])
            still_open.append(runs[-1])
    return runs
