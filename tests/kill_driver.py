"""Makes a small dataset in a process of its own, for tests that kill it: kill_driver.py OUT PAUSE.

Prints "begun" when a subject starts. PAUSE is "write" or "rename" to print "paused" and wait there, else "none".
"""

import functools
import sys
import time
from dataclasses import replace
from pathlib import Path

import data_recipes.phantoms.whole_body as whole_body_module
import petsim.cache.store as store
import petsim.dataset as dataset
from petsim.settings import SimulationSettings

SCANNER = str(Path(__file__).parent / "small_scanner.toml")


def request(out: str) -> dataset.Request:
    """Three generated patients, a slab each, coarse and quick: without scatter and randoms."""
    settings = SimulationSettings(scanner=SCANNER, preset="fast", drf=(4.0, 20.0), slab_mm=64.0, voxel_mm=20.0, iterations=1,
                                  duration_s=1.0, rays=1, scatter="none", randoms="none",
                                  corrections="oracle")  # fmt: skip
    return dataset.Request(out=out, subjects=3, settings=settings)


def physical_request(out: str, **changes) -> dataset.Request:
    """Two of the patients with scatter, randoms and estimated corrections."""
    plain = request(out)
    settings = replace(plain.settings, scatter="simulated", randoms="simulated", corrections="estimated", photons=5000,
                       **changes)  # fmt: skip
    return replace(plain, subjects=2, settings=settings)


def coarse_patients() -> None:
    """Generate patients on 12 mm voxels, which takes a tenth of the time."""
    whole_body_module.whole_body = functools.partial(whole_body_module.whole_body, spacing_mm=(12.0, 12.0, 12.0))


def pause() -> None:
    """Say so, and wait to be killed."""
    print("paused", flush=True)
    time.sleep(600)


def main() -> None:
    """Make the dataset."""
    out, place = sys.argv[1:3]
    coarse_patients()
    written = store.write_subject
    renamed = store.os.replace

    def slow_write(*args, **kwargs):
        create = store._exact

        def paused_create(f, name, *rest):
            if place == "write" and name == "truth/mu":
                f.flush()
                pause()
            return create(f, name, *rest)

        store._exact = paused_create
        return written(*args, **kwargs)

    def slow_rename(source, target):
        if place == "rename" and str(target).endswith(".h5"):
            pause()
        return renamed(source, target)

    store.write_subject = slow_write
    store.os.replace = slow_rename
    dataset.make_dataset(request(out), report=lambda *message: print("begun", flush=True))


if __name__ == "__main__":
    main()
