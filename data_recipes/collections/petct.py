"""NIfTI folders with PET in SUV, its CT, and a mask of tumors: autoPET, and the crops of the IBSI."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from data_recipes.collections.folders import files_below
from data_recipes.collections.recipe import Case, Found, Recipe, Wishes, nothing_found
from data_recipes.contour import with_mu
from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.whole_body import FIRST_LESION_LABEL
from data_recipes.readers.nifti import load_volume, read_nifti
from data_recipes.subject import Subject

AUTOPET_KVP = 120.0
_MOST_LESIONS = 256 - FIRST_LESION_LABEL


def check_grid(own: Grid, wanted: Grid, where: str, what: str) -> None:
    """Refuse a volume that lies on another grid than the PET (`DataError`)."""
    near = np.allclose(own.spacing_mm, wanted.spacing_mm, rtol=1e-3)
    near &= np.allclose(own.origin_mm, wanted.origin_mm, atol=0.1 * min(wanted.spacing_mm))
    if own.shape != wanted.shape or not near:
        raise DataError(
            f"{where}: its grid ({_grid(own)}) is not that of {what} ({_grid(wanted)}); give files of one scan and one grid"
        )


def _grid(grid: Grid) -> str:
    size = " x ".join(f"{d:.4g}" for d in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {size} mm"


def lesion_labels(mask: np.ndarray, where: str) -> tuple[np.ndarray, dict[int, str]]:
    """A mask of tumors as labels from 100 on, one for each part that hangs together (by faces, edges or corners).

    Raises
    ------
    DataError
        Values other than 0 and 1.
    """
    if not np.isin(np.unique(mask), (0, 1)).all():
        raise DataError(f"{where}: a mask has the values 0 and 1 only; this one has others")
    parts = np.zeros(mask.shape, np.int32)
    count = int(ndimage.label(mask, np.ones((3, 3, 3)), output=parts))  # pyright: ignore[reportArgumentType]
    # A label has eight bits: what is beyond shares the last one.
    parts = np.minimum(parts, _MOST_LESIONS)
    labels = np.where(parts > 0, parts + FIRST_LESION_LABEL - 1, 0).astype(np.uint8)
    names = {FIRST_LESION_LABEL + k: f"lesion_{k + 1}_segmented" for k in range(min(count, _MOST_LESIONS))}
    return labels, {0: "unlabeled", **names}


def read_case(folder: Path, files: tuple[str, str, str], wishes: Wishes, license: str, kvp: float | None, same_ct_grid: bool,
              cropped: bool) -> Subject:  # fmt: skip
    """A folder's PET [SUV] with attenuation from its CT and lesions from its mask.

    Parameters
    ----------
    folder : Path
    files : tuple of str
        Names of PET, CT and mask.
    wishes : Wishes
        Must state weight, injected activity and uptake time, without which SUV is no activity.
    license : str
    kvp : float, optional
        Of the CT, where the source tells.
    same_ct_grid : bool
        The CT is to lie on the PET's grid; else it is resampled.
    cropped : bool
        The image shows a part of the body only.
    """
    pet, ct, mask = (folder / name for name in files)
    subject = read_nifti(
        pet, units="suv", weight_kg=wishes.weight_kg, injected_mbq=wishes.injected_mbq, uptake_s=wishes.uptake_s
    )
    if same_ct_grid:
        check_grid(load_volume(ct)[1], subject.grid, ct.name, pet.name)
    subject = with_mu(subject, ct=ct, kvp=kvp if wishes.ct_kvp is None else wishes.ct_kvp)
    values, own, _ = load_volume(mask)
    check_grid(own, subject.grid, mask.name, pet.name)
    labels, names = lesion_labels(values, mask.name)
    told = subject.provenance | {"license": license, "lesions_segmented": len(names) - 1}
    return replace(
        subject, labels=labels, label_names=names, provenance=told | ({"truncated_fov": True} if cropped else {})
    )  # fmt: skip


def _find(files: tuple[str, str, str], license: str, kvp: float | None, cropped: bool, depth: int, folder: Path,
          wishes: Wishes) -> Found:  # fmt: skip
    cases, left, studies = [], [], 0
    for pet in files_below(folder):
        if pet.name != files[0]:
            continue
        study = pet.parent
        if len(study.relative_to(folder).parts) <= depth:
            raise DataError(f"{study.name}: {files[0]} lies too high up; give the folder that holds the patients' folders")
        patient = study.parents[depth - 1] if depth else study
        if {study.name, patient.name} & set(wishes.skip):
            left.append("left out with --skip")
            continue
        missing = [name for name in files if not (study / name).is_file()]
        if missing:
            raise DataError(
                f"{study.name}: {missing[0]} is missing beside {files[0]}; copy the folder, or leave it out with --skip"
            )
        studies += 1
        load = partial(read_case, study, files, wishes, license, kvp, depth > 0, cropped)
        cases.append(Case(patient.name, load))
    if not cases:
        raise nothing_found(folder, f"a folder with {', '.join(files)}")
    notes = [f"{len(left)} studies were left out with --skip"] if left else []
    return Found(tuple(cases), {"patients": len({c.patient for c in cases}), "studies": studies}, tuple(notes))


_AUTOPET_LICENSE = "terms of its data publisher (TCIA and fdat.uni-tuebingen.de); not verified here"
_STS_LICENSE = "CC BY 3.0: TCIA Soft-tissue-Sarcoma, doi 10.7937/K9/TCIA.2015.7GO2GSKS, as converted by the IBSI"

AUTOPET = Recipe(
    name="autopet",
    title="autoPET FDG-PET-CT-Lesions: 1014 whole-body FDG studies with CT and tumor masks",
    layout="""A folder a patient with a folder a study, with SUV.nii.gz, CTres.nii.gz (HU, on the PET's grid) and
SEG.nii.gz (0, 1). The images are in SUV and the tables tell neither weight nor activity: state --weight-kg,
--activity-mbq and --uptake-s for all; SUV stay right, the counts that are simulated are those of the stated
activity. CTs are taken as of 120 kV, the protocol of the hospital that measured them (--ct-kvp for
another); they are contrast-enhanced.""",
    license=_AUTOPET_LICENSE,
    access="""https://fdat.uni-tuebingen.de/records/wf9fy-txq84 (NIfTI), described in doi 10.1038/s41597-022-01718-3.
petsim does not download it: no checksums were seen, and its terms are to be accepted there.""",
    find=partial(_find, ("SUV.nii.gz", "CTres.nii.gz", "SEG.nii.gz"), _AUTOPET_LICENSE, AUTOPET_KVP, False, 1),
)

IBSI = Recipe(
    name="ibsi-sts",
    title="Crops around soft-tissue sarcomas with CT and mask, as the IBSI gives them out",
    layout="""A folder a patient with PET_image.nii.gz (SUV), CT_image.nii.gz (HU, on a grid of its own) and
PET_mask.nii.gz (0, 1). They show the tumor and 5 cm around it: subjects are flagged truncated_fov, and
serve neither noise nor NEMA figures. State --weight-kg, --activity-mbq, --uptake-s and --ct-kvp; the files
tell none of them.""",
    license=_STS_LICENSE,
    access="https://github.com/theibsi/data_sets (no checksums are published; petsim does not download it)",
    find=partial(_find, ("PET_image.nii.gz", "CT_image.nii.gz", "PET_mask.nii.gz"), _STS_LICENSE, None, True, 0),
)
