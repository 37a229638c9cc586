"""Doses with noise of known count level and correlation in an off-center body with organs; no reconstruction."""

import json
import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from petsim.cache.schema import SubjectRecord
from petsim.cache.store import write_index, write_subject
from petsim.dose_pairs import DoseImages, Labels

SPACING = (2.5, 2.5, 3.0)
ORGANS = {1: "soft tissue", 2: "liver", 3: "lung"}
UPTAKE = {1: 1.0, 2: 3.0, 3: 0.4}


@dataclass(frozen=True)
class Made:
    """How images are made: variance is activity over `counts` before a Gaussian filter of `fwhm_mm` by axis."""

    counts: float = 100.0
    fwhm_mm: tuple[float, float, float] = (3.0, 3.0, 4.0)
    shape: tuple[int, int, int] = (96, 80, 64)
    half_axes_mm: tuple[float, float] = (75.0, 55.0)
    center_mm: tuple[float, float] = (15.0, -12.0)
    unit: float = 1.0
    bed_mm: float | None = None


def body(made):
    """uint8 labels: a tilted ellipse off the center with a liver and a lung, up to the ends of the image."""
    x, y, z = (np.arange(n) * d - n * d / 2 for n, d in zip(made.shape, SPACING, strict=True))
    x, y = x[:, None, None] - made.center_mm[0], y[None, :, None] - made.center_mm[1]
    a, b = made.half_axes_mm
    labels = np.zeros(made.shape, np.uint8)
    inside = np.broadcast_to((x / a) ** 2 + (y / b) ** 2 < 1, made.shape)
    labels[inside] = 1
    labels[inside & (x > 0.1 * a) & (z < 10)] = 2
    labels[inside & (x < -0.2 * a) & (z > -30)] = 3
    return labels


def activity_of(labels):
    return np.select([labels == k for k in UPTAKE], list(UPTAKE.values()), 0.0)


def white_to_correlated(white, fwhm_mm):
    """Gaussian filter by its transfer function, so that its width is exact on any voxels."""
    spectrum = np.fft.fftn(white)
    for axis, (n, d, fwhm) in enumerate(zip(white.shape, SPACING, fwhm_mm, strict=True)):
        sigma = fwhm / math.sqrt(8 * math.log(2))
        gain = np.exp(-2 * (math.pi * sigma * np.fft.fftfreq(n, d)) ** 2)
        spectrum *= gain.reshape([-1 if k == axis else 1 for k in range(3)])
    return np.fft.ifftn(spectrum).real


def ladder(made, drfs, seed, nested=True):
    """float32 images by DRF, 1 first: each dose adds independent noise to that before, as thinning does."""
    rng = np.random.default_rng(seed)
    labels = body(made)
    activity = activity_of(labels)
    sd = np.sqrt(activity / made.counts)
    if made.bed_mm is not None:
        z = np.arange(made.shape[2]) * SPACING[2]
        sd = sd * np.sqrt(1 + 0.5 * np.cos(2 * math.pi * z / made.bed_mm))
    image, before = activity, 0.0
    images = {}
    for drf in (1.0, *drfs):
        step = math.sqrt(drf - before) if nested else math.sqrt(drf)
        noise = step * white_to_correlated(rng.normal(0, sd), made.fwhm_mm)
        image, before = (image if nested else activity) + noise, drf
        images[drf] = (made.unit * image).astype(np.float32)
    return labels, images


def subject(made, drfs, seed, name="subject-0001", names=None, labeled=False, nested=True):
    """Images as `petsim.dose_pairs` gives them; `names` are the DRFs that they are said to have."""
    labels, images = ladder(made, drfs, seed, nested)
    said = dict(zip((1.0, *(names or drfs)), images.values(), strict=True))
    return DoseImages(
        name, tuple(names or drfs), 1, SPACING, (lambda: Labels(labels, ORGANS)) if labeled else None,
        lambda drf, _: said[drf],
    )  # fmt: skip


def record(made, drfs, seed, name, mode="thin", duration_s=600.0, filter_mm=3.0):
    """What make-dataset would store of such images."""
    labels, images = ladder(made, drfs, seed)
    counts = np.array([[1e8 / d] for d in (1.0, *drfs)])
    table = dict.fromkeys(("prompts", "trues", "scatter", "randoms", "nec", "mbq_s_per_kg", "liver_cov"), counts)
    return SubjectRecord(
        name=name, shape=made.shape, spacing_mm=SPACING, origin_mm=(0.0, 0.0, 0.0), suv_factor=None, drfs=(1.0, *drfs),
        images=np.stack(list(images.values()))[:, None], noise_free=None, activity=activity_of(labels).astype(np.float32),
        mu=np.zeros(made.shape, np.float32), labels=labels, sinogram=None, doses=table, label_names=ORGANS, mode=mode,
        seed=0,
        configuration={"scanner": "made up"}, configuration_sha256="0" * 64,
        provenance={"duration_s": duration_s, "reconstruction": {"post_filter_fwhm_mm": filter_mm}}, versions={},
        license="", origin="phantom",
    )  # fmt: skip


def write_dataset(folder, records):
    folder.mkdir()
    for r in records:
        write_subject(folder / f"{r.name}.h5", r)
    write_index(folder)
    return folder


def write_folder(folder, made, drfs, seeds, names=None):
    """A multi-dose folder with a subfolder for each seed, whose name is a person's."""
    for seed in seeds:
        _, images = ladder(made, drfs, seed)
        for drf, image in zip((1.0, *(names or drfs)), images.values(), strict=True):
            path = folder / f"Jane Doe {seed}" / ("Full_dose.nii" if drf == 1 else f"1-{drf:g} dose.nii")
            write_nifti(path, image)
    return folder


def write_nifti(path, image, spacing_mm=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.diag([*spacing_mm, 1.0])), path)
    path.with_suffix(".json").write_text(json.dumps({"Units": "suv"}))
