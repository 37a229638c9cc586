"""Results do not depend on how many threads BLAS uses."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import hashlib
import numpy as np
from data_recipes.grid import Grid
from data_recipes.resample import resample

image = np.random.default_rng(0).random((48, 40, 6)).astype(np.float32)
source = Grid(image.shape, (12.0, 12.0, 12.0), (0.0, 0.0, 0.0))
target = Grid((120, 120, 8), (4.0, 4.0, 8.0), (1.0, 2.0, 3.0))
print(hashlib.sha256(resample(image, source, target).tobytes()).hexdigest())
"""


def test_resampling_is_the_same_with_any_number_of_blas_threads():
    root = Path(__file__).resolve().parents[2]
    found = set()
    for threads in ("1", "2"):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        done = subprocess.run([sys.executable, "-c", CODE], env=os.environ | dict.fromkeys(names, threads), cwd=root,
                              check=True, capture_output=True, text=True)  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1
