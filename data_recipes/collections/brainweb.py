"""The twenty anatomical models of BrainWeb as FDG brains."""

import re
from pathlib import Path

import numpy as np

from data_recipes.collections.folders import files_below, read_gzipped
from data_recipes.collections.recipe import Case, Found, Recipe, Wishes, nothing_found
from data_recipes.collections.voxel_phantom import Organ, phantom_subject
from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.uptake import TISSUES
from data_recipes.subject import Subject

MODELS = (4, 5, 6, 18, 20, *range(38, 39), *range(41, 55))
SHAPE = (362, 434, 362)
"""Voxels along (x, y, z), x fastest in the files."""
VOXEL_MM = 0.5
USUAL_VOXEL_MM = 2.0

# Label -> name here, and tissue of `data_recipes.phantoms.uptake`, whose table has values and sources.
_CLASSES = (
    ("outside", "air"), ("fluid", "fluid"), ("gray_matter", "brain_gray"), ("white_matter", "brain_white"), ("fat", "fat"),
    ("muscle", "muscle"), ("skin", "body"), ("skull", "skull"), ("vessels", "blood_pool"), ("fat_around", "fat"),
    ("dura", "body"), ("marrow", "marrow"),
)  # fmt: skip
ORGANS = {k: Organ(name, TISSUES[t].suv, TISSUES[t].mu_per_cm) for k, (name, t) in enumerate(_CLASSES)}

_NAME = re.compile(r"subject[ _-]?(\d{2})(?!\d)")
_ENDINGS = (".rawb", ".raws", ".bin", ".raw")


def find(folder: Path, wishes: Wishes) -> Found:
    """Files of the discrete models, named by their subject."""
    files: dict[int, Path] = {}
    for path in files_below(folder):
        plain = path.name.lower().removesuffix(".gz")
        matched = _NAME.search(plain)
        if not (path.is_file() and matched and plain.endswith(_ENDINGS)) or path.name in wishes.skip:
            continue
        model = int(matched.group(1))
        if model not in MODELS:
            raise DataError(
                f"{path.name}: BrainWeb has no subject {model:02d} (it has {', '.join(f'{m:02d}' for m in MODELS)})"
            )
        if model in files:
            raise DataError(f"{path.name}: subject {model:02d} is there twice; keep one file, or leave one out with --skip")
        files[model] = path
    if not files:
        raise nothing_found(folder, "a discrete model (subject04_crisp_v.rawb.gz, subject_04.bin.gz)")
    cases = tuple(
        Case(f"brainweb {model:02d}", lambda path=path, model=model: read_model(path, model, wishes))
        for model, path in sorted(files.items())
    )
    absent = [f"{m:02d}" for m in MODELS if m not in files]
    notes = (f"{len(absent)} of the 20 models are not there: {', '.join(absent)}",) if absent else ()
    return Found(cases, {"models": len(cases)}, notes)


def read_model(path: Path, model: int, wishes: Wishes) -> Subject:
    """A model as a subject of 75 kg, in voxels of 2 mm unless wished otherwise.

    Files are raw bytes with labels 0 to 11, or raw shorts (little-endian) that hold them times 16, as BrainWeb writes
    values of a short's range. Axes are those of BrainWeb's files: x to the right, y to the front, z to the head, x fastest.
    Its stereotaxic origin is not kept, the image's middle is at 0.

    Raises
    ------
    DataError
        A file of another size, or other values.
    """
    count = int(np.prod(SHAPE))
    contents = read_gzipped(path, (count, 2 * count))
    stored = np.frombuffer(contents, "<u1" if len(contents) == count else "<u2")
    labels = stored if len(contents) == count else stored >> 4
    if labels.max() >= len(_CLASSES) or (len(contents) != count and (stored & 15).any()):
        kind = "bytes from 0 to 11" if len(contents) == count else "shorts that are 16 times 0 to 11"
        raise DataError(f"{path.name}: holds other values than {kind}; download the discrete model (crisp) as raw byte")
    volume = labels.astype(np.uint8).reshape(SHAPE[::-1]).transpose(2, 1, 0)
    voxel = USUAL_VOXEL_MM if wishes.voxel_mm is None else wishes.voxel_mm
    wished = Wishes(wishes.weight_kg, wishes.injected_mbq, wishes.uptake_s, voxel_mm=voxel)
    provenance = {
        "kind": "brainweb", "model": model, "license": RECIPE.license,
        "origin": "BrainWeb, doi 10.1109/42.712135 and 10.1016/j.neuroimage.2006.03.060 (not verified)",
    }  # fmt: skip
    grid = Grid.centered(SHAPE, (VOXEL_MM, VOXEL_MM, VOXEL_MM))
    return phantom_subject(f"brainweb-{model:02d}", np.ascontiguousarray(volume), grid, ORGANS, wished, provenance)


RECIPE = Recipe(
    name="brainweb",
    title="BrainWeb: anatomical models of 20 normal brains, as FDG uptake and attenuation",
    layout="""The discrete ("crisp") models, one file a subject anywhere in the folder, 362 x 434 x 362 voxels of 0.5 mm,
also gzipped:
  subject04_crisp_v.rawb (raw byte), or subject_04.bin.gz (raw short, as the Python package brainweb stores them)
Gray and white matter have SUV 8.2 and 3.0, other tissues those of data_recipes/phantoms/uptake.py, where
sources are. --voxel-mm (default 2): activity and attenuation are means over the voxel.""",
    license="BrainWeb's own terms; not verified here: see its pages, and cite it",
    access="""http://brainweb.bic.mni.mcgill.ca/brainweb/anatomic_normal_20.html: choose each subject's discrete model,
raw byte, gzip. petsim does not download it: the site gives no checksum.""",
    find=find,
)
