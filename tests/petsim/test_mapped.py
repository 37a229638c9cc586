"""Reading patches through a memory map gives what h5py and NumPy give."""

import pickle

import h5py
import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.cache.mapped import MappedImages
from petsim.cache.schema import pack, unpack

SHAPE = (2, 3, 37, 41, 50)
"""No axis is a multiple of the chunk's."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    rng = np.random.default_rng(0)
    # Ten powers of ten: halves that are normal, subnormal and zero, of both signs.
    values = rng.choice([-1, 1], SHAPE) * 10.0 ** rng.uniform(-5, 5, SHAPE)
    halves, scale = pack(values.astype(np.float32))
    path = tmp_path_factory.mktemp("mapped") / "images.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("recon", data=halves, chunks=(1, 1, 16, 16, 16)).attrs["scale"] = scale
        f.create_dataset("one", data=halves[0, 0], chunks=(37, 41, 50)).attrs["scale"] = scale
        f.create_dataset("zipped", data=halves[0, 0], chunks=(16, 16, 16), compression="gzip").attrs["scale"] = scale
        f.create_dataset("flat", data=halves[0, 0]).attrs["scale"] = scale
        f.create_dataset("several", data=halves, chunks=(1, 3, 16, 16, 16)).attrs["scale"] = scale
    return path, halves, scale


def test_any_patch_equals_the_slice_of_the_array(stored):
    path, halves, scale = stored
    images = MappedImages(path, "recon", factor=0.5)
    assert images.shape == SHAPE
    np.testing.assert_array_equal(images.volume(1, 2), unpack(halves[1, 2], 0.5 * scale))
    rng = np.random.default_rng(1)
    for _ in range(50):
        size = rng.integers(1, 38, 3)
        x, y, z = corner = rng.integers(0, np.array(SHAPE[2:]) - size + 1)
        part = halves[0, 1, x : x + size[0], y : y + size[1], z : z + size[2]]
        got = images.patch((0, 1), tuple(corner), tuple(size))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, unpack(part, 0.5 * scale))
    np.testing.assert_array_equal(MappedImages(path, "one").volume(), unpack(halves[0, 0], scale))


def test_another_process_maps_the_file_anew(stored):
    images = MappedImages(stored[0], "recon")
    whole = images.volume(0, 0)
    sent = pickle.dumps(images)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent).volume(0, 0), whole)


@pytest.mark.parametrize("corner", [(-1, 0, 0), (0, 0, 47), (30, 0, 0)])
def test_a_patch_that_leaves_the_image_is_refused(stored, corner):
    with pytest.raises(IndexError, match="leaves the image"):
        MappedImages(stored[0], "recon").patch((0, 0), corner, (8, 8, 8))


@pytest.mark.parametrize("name", ["zipped", "flat", "several", "missing"])
def test_other_ways_of_storing_are_refused(stored, name):
    with pytest.raises(DataError, match="make"):
        MappedImages(stored[0], name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(tmp_path, value):
    halves = np.ones((8, 8, 8), np.float16)
    halves[0, 1, 2] = 65504
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", data=halves, chunks=(8, 8, 8)).attrs["scale"] = 3.0
    assert MappedImages(tmp_path / "a.h5", "x").volume().max() == 3 * 65504
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["x"][4, 5, 6] = value
    with pytest.raises(DataError, match="not finite"):
        MappedImages(tmp_path / "a.h5", "x").volume()


def test_a_file_that_is_none_of_ours(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"nothing")
    for name in ("a.h5", "b.h5"):
        with pytest.raises(DataError, match=name):
            MappedImages(tmp_path / name, "recon")
