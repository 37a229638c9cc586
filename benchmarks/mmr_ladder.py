"""The dose ladder of a recorded scan: counts, randoms and images of the mMR example at DRF 1, 2, 4, 10.

    python -m benchmarks.mmr_ladder PET_ACQ_small.l.hdr.STIR

Neither normalization nor mu-map belongs to the scan: crystal efficiencies come from its delayeds, attenuation and scatter
are not corrected. `results/mmr_ladder.png` has slices through the brightest part.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.common import RESULTS, emit
from petsim import figures
from petsim.cache.store import SubjectFile
from petsim.dataset import Request, make_dataset
from petsim.settings import ESTIMATE, ReadOptions, SimulationSettings

SETTINGS = SimulationSettings(scanner="biograph_mmr", drf=(2.0, 4.0, 10.0), full_dose="source", preset="standard")


def main() -> None:
    """Make the ladder, draw it and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scan", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = Request(folder, (str(args.scan),), settings=SETTINGS, read=ReadOptions(normalization=ESTIMATE))
        seconds = make_dataset(request)["seconds"]
        with SubjectFile(next(Path(folder).glob("*.h5"))) as f:
            images = [f.image(k) for k in range(len(f.drfs))]
            counts = {k: v[:, 0].tolist() for k, v in f.doses().items() if k in ("prompts", "randoms", "liver_cov")}
            drfs, spacing = f.drfs, f.spacing_mm
    middle = ndimage.center_of_mass(np.maximum(ndimage.gaussian_filter(images[0], 3), 0) ** 2)
    x, y, z = (round(m) for m in middle)
    box = tuple(slice(max(0, c - n), c + n) for c, n in ((x, 32), (y, 32), (z, 56)))
    told = zip(drfs, counts["prompts"], images, strict=True)
    shown = [figures.Shown(f"DRF {d:g}", f"{n:,} prompts", image[box]) for d, n, image in told]
    window = figures.display_window(images[0], None, figures.SLICE_SUV)
    window = replace(window, top=round(float(window.factor * np.percentile(images[0][box], 99.5)), 1))
    index = (x - (box[0].start or 0), y - (box[1].start or 0), z - (box[2].start or 0))
    figures.slice_figure(shown, spacing, window, index, None).savefig(RESULTS / "mmr_ladder.png", dpi=110)
    emit("mmr_ladder", {"drfs": drfs, "seconds": seconds, **counts})


if __name__ == "__main__":
    main()
