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

image = np.random.default_rng(0).random((70, 80, 90)).astype(np.float32)
out = resample(image, Grid(image.shape, (3.0, 3.0, 3.0), (0.0, 0.0, 0.0)), Grid((60, 60, 60), (4.0, 4.1, 3.7), (1.0, 2.0, 3.0)))
print(hashlib.sha256(out.tobytes()).hexdigest())
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
