"""From CT numbers to attenuation at 511 keV."""

import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError

# Tube voltage in kV -> slope a [1/cm per HU], offset b [1/cm], break point [HU].
_CARNEY = {
    80: (3.64e-5, 6.26e-2, 50.0),
    100: (4.43e-5, 5.44e-2, 52.0),
    110: (4.92e-5, 4.88e-2, 43.0),
    120: (5.10e-5, 4.71e-2, 47.0),
    130: (5.51e-5, 4.24e-2, 37.0),
    140: (5.64e-5, 4.08e-2, 30.0),
}
_WATER_SLOPE = 9.6e-5

AIR_HU = -1000.0
BODY_HU = -300.0
"""What is denser than this can be body: skin and fat are, mattress foam and lungs are not."""


def hu_to_mu(hu: np.ndarray, kvp: float) -> np.ndarray:
    """Linear attenuation coefficient at 511 keV by the bilinear scale of the tube voltage.

    Carney et al. 2006, Med Phys 33:976, doi 10.1118/1.2174132: mu = 9.6e-5 (HU + 1000) up to the break point and
    a (HU + 1000) + b above it. The table was compared with a public implementation that cites the paper (the offsets b
    with a second one), not with the paper itself; its two lines meet at every break point. Between tabulated voltages
    (Canon's 135 kV) a and b are interpolated and the break point is where both lines meet.

    Parameters
    ----------
    hu : ndarray
        CT numbers in HU, any shape.
    kvp : float
        Tube voltage in kV, 80 to 140.

    Returns
    -------
    ndarray
        float32, 1/cm, never negative.

    Raises
    ------
    DataError
        For a voltage outside the table.
    """
    known = sorted(_CARNEY)
    if not known[0] <= kvp <= known[-1]:
        raise DataError(
            f"CT tube voltage {kvp:g} kV is outside the known scales ({known[0]} to {known[-1]} kV); "
            "convert the CT to a mu-map yourself and give it with --mu"
        )
    if kvp in _CARNEY:
        a, b, break_hu = _CARNEY[int(kvp)]
    else:
        a, b = (float(np.interp(kvp, known, [_CARNEY[k][i] for k in known])) for i in (0, 1))
        break_hu = b / (_WATER_SLOPE - a) - 1000.0
    density = np.asarray(hu, np.float32) + np.float32(1000.0)
    mu = np.where(density <= break_hu + 1000.0, _WATER_SLOPE * density, a * density + b)
    return np.clip(mu, 0.0, None).astype(np.float32)


def remove_table(hu: np.ndarray) -> np.ndarray:
    """A CT without couch, blankets and tubes: only the largest connected body, with what it encloses, is kept.

    The body is the largest group of voxels above -300 HU that share faces; lungs and bowel gas are the holes that it has in
    transverse slices. Everything else becomes air. So does a body part that nothing joins to the rest in the image, such
    as arms whose shoulders lie outside; and a couch that the body touches without foam between stays.

    Parameters
    ----------
    hu : ndarray
        CT numbers in HU, (x, y, z).

    Returns
    -------
    ndarray
        Same type: -1000 HU outside the body.

    Raises
    ------
    DataError
        When nothing lies above -300 HU.
    """
    dense = np.asarray(hu) > BODY_HU
    parts = np.zeros(dense.shape, np.int32)
    if not ndimage.label(dense, output=parts):
        raise DataError(f"the CT has no voxel above {BODY_HU:g} HU, so that no body is found in it; check that it is in HU")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == sizes.argmax()
    for z in range(body.shape[2]):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return np.where(body, hu, np.asarray(AIR_HU, hu.dtype))
