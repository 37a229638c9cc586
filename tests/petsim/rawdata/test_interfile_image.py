"""Images in Interfile: every voxel where STIR says it is in the patient, one line for every mistake."""

import os

import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.rawdata.events import Dose
from petsim.rawdata.interfile import Facts
from petsim.rawdata.interfile_image import image_facts, read_image, write_image

GRID = Grid((3, 4, 5), (2.0, 3.0, 4.5), (-11.0, 7.0, -300.25))
VALUES = np.arange(60, dtype=np.float32).reshape(GRID.shape)


def write_raw(path, more=(), drop=(), numbers=None):
    values = {
        "name of data file": "raw.v", "!type of data": "PET", "imagedata byte order": "BIGENDIAN",
        "!PET data type": "Image", "!number format": "signed integer", "!number of bytes per pixel": 2,
        "number of dimensions": 3, "matrix axis label [1]": "x", "!matrix size [1]": 3, "scaling factor (mm/pixel) [1]": 2,
        "matrix axis label [2]": "y", "!matrix size [2]": 4, "scaling factor (mm/pixel) [2]": 3,
        "matrix axis label [3]": "z", "!matrix size [3]": 5, "scaling factor (mm/pixel) [3]": 4.5,
    } | dict(more)  # fmt: skip
    lines = [f"{key} := {value}" for key, value in values.items() if key not in drop]
    path.write_text("\n".join(["!INTERFILE  :=", *lines, "!END OF INTERFILE :=", ""]))
    raw = np.arange(60, dtype=">i2") if numbers is None else numbers
    (path.parent / "raw.v").write_bytes(raw.tobytes())


@pytest.mark.parametrize("position", [None, "HFS", "HFP", "FFS", "FFP"])
def test_everything_comes_back(tmp_path, position):
    facts = Facts(1.5, 300.0, "F-18", 200.0, (435.0, 585.0), 3.5, position, (1.0, 2.0), dose=Dose(10.0, "thin", 3))
    write_image(tmp_path / "a.hv", VALUES, GRID, facts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hv", "a.v"]
    values, grid = read_image(tmp_path / "a.hv")
    assert values.dtype == np.float32 and np.array_equal(values, VALUES)
    assert grid.shape == GRID.shape and grid.spacing_mm == GRID.spacing_mm
    assert np.allclose(grid.origin_mm, GRID.origin_mm, rtol=0, atol=1e-9)
    assert image_facts(tmp_path / "a.hv") == Facts(**vars(facts) | {"position": position or "HFS"})


@pytest.mark.parametrize("orientation, rotation, lps", [
    ("head_in", "supine", (1, 1, -1)), ("head_in", "prone", (-1, -1, -1)),
    ("feet_in", "supine", (-1, 1, 1)), ("feet_in", "prone", (1, -1, 1)), ("unknown", "unknown", (1, 1, -1)),
])  # fmt: skip
def test_voxels_lie_where_stir_says(tmp_path, orientation, rotation, lps):
    """STIR: index -> its own axes -> LPS by patient position (swap_axes_based_on_orientation)."""
    offsets = {f"first pixel offset (mm) [{k}]": v for k, v in ((1, -7.0), (2, 20.0), (3, 100.0))}
    write_raw(tmp_path / "a.hv", {"patient orientation": orientation, "patient rotation": rotation} | offsets)
    values, grid = read_image(tmp_path / "a.hv")
    for x, y, z in ((0, 0, 0), (2, 1, 3), (1, 3, 4)):
        own = np.array([-7.0, 20.0, 100.0]) + np.array([x, y, z]) * [2.0, 3.0, 4.5]
        ras = own * lps * (-1, -1, 1)
        place = (ras - grid.origin_mm) / grid.spacing_mm
        assert values[tuple(np.rint(place).astype(int))] == (z * 4 + y) * 3 + x
        assert np.allclose(place, np.rint(place))


def test_without_offsets_the_axis_is_at_voxel_n_by_2_and_the_first_plane_at_0(tmp_path):
    write_raw(tmp_path / "a.hv")
    _, grid = read_image(tmp_path / "a.hv")
    # Own axes x -2, 0, 2; y -6, -3, 0, 3; z 0 ... 18; all turned.
    assert grid == Grid((3, 4, 5), (2.0, 3.0, 4.5), (-2.0, -3.0, -18.0))


def test_scale_factors(tmp_path):
    write_raw(tmp_path / "a.hv", {"image scaling factor[1]": "{1,2,3,4,5}"})
    values, _ = read_image(tmp_path / "a.hv")
    assert np.array_equal(values[0, 0, ::-1], [11, 2 * 23, 3 * 35, 4 * 47, 5 * 59])
    write_raw(tmp_path / "a.hv", {"quantification units": 0.5})
    assert read_image(tmp_path / "a.hv")[0].max() == 29.5


@pytest.mark.parametrize("more, drop, numbers, message", [
    ({"!PET data type": "Emission"}, (), None, "'PET data type' is 'emission', not an image; give an .hv file"),
    ({"!type of data": "Tomographic"}, (), None, "these are no PET data"),
    ({"number of dimensions": 4}, (), None, "its 4 axes begin with x, y, z; only images x, y, z are read"),
    ({"matrix axis label [1]": "z"}, (), None, "its 3 axes begin with z, y, z; only images"),
    ({"number of image data types": 2}, (), None, "holds several kinds of images"),
    ({"number of time frames": 3}, (), None, "holds 3 time frames, only one is read"),
    ({"patient orientation": "head_in", "patient rotation": "left"}, (), None, "patient position 'head in, left' cannot be"),
    ({}, ("scaling factor (mm/pixel) [2]",), None, r"the header has no 'scaling factor \(mm/pixel\) \[2\]'"),
    ({"image scaling factor[1]": "{1,2}"}, (), None, "has 2 image scaling factors; 1 or one a plane"),
    ({"scaling factor (mm/pixel) [2]": -1}, (), None, "voxel size must be positive"),
    ({"name of data file": "gone.v"}, (), None, "its data file gone.v is missing"),
    ({}, (), np.zeros(59, ">i2"), "raw.v: holds 118 bytes but a.hv describes 120; the file was cut short"),
])  # fmt: skip
def test_one_line_for_what_cannot_be_read(tmp_path, more, drop, numbers, message):
    write_raw(tmp_path / "a.hv", more, drop, numbers)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / "a.hv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, shape, message", [
    ("a.v", (3, 4, 5), "a.v: images are written for STIR; let the name end in .hv"),
    ("a.hv", (3, 4, 6), r"a.hv: the image has shape \(3, 4, 6\) but its grid has \(3, 4, 5\)"),
])  # fmt: skip
def test_one_line_for_what_cannot_be_written(tmp_path, name, shape, message):
    with pytest.raises(UsageError, match=message):
        write_image(tmp_path / name, np.zeros(shape), GRID, Facts())
    assert not list(tmp_path.iterdir())


def test_an_old_header_never_describes_new_data(tmp_path, monkeypatch):
    write_image(tmp_path / "a.hv", VALUES, GRID, Facts())
    replace_file = os.replace

    def fails(source, target):
        if str(target).endswith(".hv"):
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(DataError, match=r"cannot write a.hv: the disk is full"):
        write_image(tmp_path / "a.hv", VALUES, GRID, Facts())
    assert [p.name for p in tmp_path.iterdir()] == ["a.v"]


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(DataError, match=r"cannot write a\.h?v: No such file or directory"):
        write_image(tmp_path / "gone" / "a.hv", VALUES, GRID, Facts())
