"""NIfTI files with the affine of a grid."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from petsim.cache.store import whole_or_nothing


def write_nifti(out: Path, name: str, values: np.ndarray, affine: np.ndarray) -> str:
    """Write `out/name.nii.gz`, whole or not at all, with equal bytes for equal values; returns the file's name."""
    image = nib.Nifti1Image(values, affine)  # pyright: ignore[reportPrivateImportUsage]
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    final = out / f"{name}.nii.gz"
    # nibabel chooses compression by the ending, which the temporary name does not have.
    with whole_or_nothing(final) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
    return final.name
