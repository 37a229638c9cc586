"""A small dataset: smooth bodies with lesions, and noise whose variance is the dose reduction factor times that of DRF 1."""

import numpy as np
from scipy import ndimage

from petsim.cache.schema import FLOAT_ROWS, INTEGER_ROWS, SubjectRecord
from petsim.cache.store import sha256_of, write_index, write_subject

DRFS = (1.0, 4.0, 20.0)
SHAPE = (24, 24, 16)


def record(name, seed, noise=0.15, realizations=2, shape=SHAPE, spacing=(4.0, 4.0, 4.0), suv_factor=0.001):
    """A subject; images are stored in Bq/mL."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    clean = 1.0 * (x**2 / 0.7 + y**2 / 0.5 + z**2 / 0.9 < 1)
    labels = clean.astype(np.uint8)
    for k in range(2):
        cx, cy, cz = rng.uniform(-0.4, 0.4, 3)
        spot = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < 0.05
        clean = clean + 4.0 * spot
        labels[spot] = 100 + k
    clean = ndimage.gaussian_filter(clean, 0.8).astype(np.float32)
    white = rng.standard_normal((len(DRFS), realizations, *shape)).astype(np.float32)
    scales = noise * np.sqrt(np.array(DRFS))[:, None, None, None, None] * np.sqrt(np.maximum(clean, 0.02))
    images = clean + scales * ndimage.gaussian_filter(white, (0, 0, 0.5, 0.5, 0.5))
    rows = (len(DRFS), realizations)
    doses = {n: np.ones(rows) for n in FLOAT_ROWS} | {n: np.ones(rows, np.int64) for n in INTEGER_ROWS}
    doses["nec"] = 1e8 / np.array(DRFS)[:, None] * np.ones(rows)
    configuration = {"scanner": "toy"}
    return SubjectRecord(
        name=name, shape=shape, spacing_mm=spacing, origin_mm=(0.0, 0.0, 0.0), suv_factor=suv_factor, drfs=DRFS,
        images=(images / 0.001).astype(np.float32), noise_free=clean / np.float32(0.001), activity=clean / np.float32(0.001),
        mu=np.zeros(shape, np.float32), labels=labels, sinogram=None, doses=doses,
        label_names={1: "liver", 100: "lesion_1", 101: "lesion_2"}, mode="thin", seed=seed, configuration=configuration,
        configuration_sha256=sha256_of(configuration), provenance={}, versions={}, license="none", origin="generated",
    )  # fmt: skip


def make_dataset(folder, subjects, **options):
    """Folder with an index."""
    folder.mkdir(exist_ok=True)
    for k in range(subjects):
        write_subject(folder / f"toy-{k}.h5", record(f"toy-{k}", k, **options))
    write_index(folder)
    return folder
