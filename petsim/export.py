"""Datasets as NIfTI files."""

from pathlib import Path

import numpy as np

from data_recipes.errors import DataError
from petsim.cache.store import SubjectFile, read_index, subject_files
from petsim.nifti_file import write_nifti


def dose_name(drf: float) -> str:
    """`drf-020` for 20, `drf-002p5` for 2.5: sorts by dose."""
    whole, _, rest = f"{drf:g}".partition(".")
    return f"drf-{int(whole):03d}" + (f"p{rest}" if rest else "")


def export_nifti(dataset: Path, out: Path, unit: str = "bqml") -> list[str]:
    """Write every image of a dataset as `<subject>_drf-020_real-0.nii.gz`, with the affine of its grid.

    Parameters
    ----------
    dataset, out : Path
    unit : str
        "bqml" or "suv".

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    DataError
        No dataset, an unwritable folder, or SUV wanted where weight or activity is unknown.
    """
    read_index(dataset)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out.name}: {error.strerror}; choose a folder that can be written") from None
    written = []
    for path in subject_files(dataset):
        with SubjectFile(path) as f:
            factor = 1.0 if unit == "bqml" else f.suv_factor
            if factor is None:
                raise DataError(f"{path.name}: no SUV without weight, activity and uptake time; export with --unit bqml")
            for k, drf in enumerate(f.drfs):
                for r in range(f.dataset("recon").shape[1]):
                    written.append(write_nifti(out, f"{f.name}_{dose_name(drf)}_real-{r}", f.image(k, r) * factor, f.affine))
            noise_free = f.array("reference/noise_free")
            if noise_free is not None:
                written.append(write_nifti(out, f"{f.name}_noise-free", noise_free * factor, f.affine))
            for name, scale in (("activity", factor), ("mu", 1.0), ("labels", None)):
                values = f.array(f"truth/{name}")
                if values is not None:
                    values = values if scale is None else values.astype(np.float32) * np.float32(scale)
                    written.append(write_nifti(out, f"{f.name}_{name}", values, f.affine))
    return written
