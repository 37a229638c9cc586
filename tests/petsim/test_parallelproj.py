"""parallelproj as a backend: its loader, and parity with our projector where it is installed."""

import ctypes.util
import sys

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors import parallelproj
from petsim.projectors.parallelproj import LIBRARY_VARIABLE, ParallelprojProjector, load_library
from petsim.projectors.sinogram import SinogramProjector
from tests import helpers

VIEWS = np.array([57, 100, 391])
BORDER = (slice(8, -8), slice(8, -8), slice(6, -6))
"""Away from the image border, where versions differ (test_border.py)."""


@pytest.fixture
def library():
    """parallelproj, or a skipped test."""
    try:
        return load_library()
    except DataError as error:
        pytest.skip(str(error))


def vision(tof, **options):
    """Biograph Vision, span 9 up to ring difference 22, optionally with 13 TOF bins of 43 mm, on a 4 mm grid."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, radials=200, span=9, max_ring_difference=22, merge_tof=16 if tof else 0,
                            tof_bins=13 if tof else 1)  # fmt: skip
    grid = Grid.centered((100, 100, 80), (4.0, 4.0, scanner.ring_spacing_mm), (3.0, -2.0, 5.0))
    arguments = {"center_mm": (2.0, -4.0, 6.0), "shift": (0.2, -0.1, 3.0), **options}
    return SinogramProjector(layout, grid, **arguments), ParallelprojProjector(layout, grid, **arguments)


def small(tof, **options):
    """A few views and rings of the mMR, or the Vision with TOF, for properties that need all views."""
    scanner = load_scanner("biograph_vision_600" if tof else "biograph_mmr")
    transaxial, axial = (21, 16) if tof else (14, 8)
    layout = SinogramLayout(scanner, radials=20, span=3, max_ring_difference=2, merge_tof=16 if tof else 0,
                            tof_bins=13 if tof else 1, merge_transaxial=transaxial, merge_axial=axial)  # fmt: skip
    return ParallelprojProjector(layout, Grid.centered((13, 15, 9), (20.0, 18.0, 16.0)), **options)


def random_image(grid):
    """Noise with an empty border."""
    image = np.zeros(grid.shape, np.float32)
    image[BORDER] = np.random.default_rng(0).random(image[BORDER].shape)
    return image


def relative_differences(data, reference):
    """Of the bins that hold more than 1 % of the highest."""
    counted = reference > 0.01 * reference.max()
    assert counted.mean() > 0.1
    return np.abs(data - reference)[counted] / reference[counted]


def test_forward_agrees(library):
    """Single precision: positions in 2.0.7 are floats of up to 100 voxels. Measured: median 4e-7, 99.9 % below 2e-5."""
    ours, theirs = vision(tof=False)
    image = random_image(ours.grid)
    differences = relative_differences(theirs.forward(image, VIEWS), ours.forward(image, VIEWS))
    assert np.median(differences) < 1e-6
    assert np.quantile(differences, 0.999) < 1e-4


def test_support_cuts_the_image(library):
    """Both ways: voxels outside are not seen, and get nothing back."""
    whole, cut = (vision(tof=False, support_mm=radius)[1] for radius in (None, 150.0))
    image = random_image(cut.grid)
    assert 0.1 < cut.support.mean() < 0.6
    np.testing.assert_array_equal(cut.forward(image, VIEWS), whole.forward(image * cut.support, VIEWS))
    data = np.ones(cut.data_shape(len(VIEWS)), np.float32)
    back = whole.adjoint(data, VIEWS)
    np.testing.assert_allclose(cut.adjoint(data, VIEWS), back * cut.support, atol=1e-5 * back.max())


def test_tof_forward_agrees(library):
    """Within 3e-3 of a LOR's line integral in every bin.

    We cut the Gaussian at 3 standard deviations from the source, inside a bin if need be, and normalize what is left: 0.27 %
    of the kernel moves. parallelproj keeps whole bins: 2.x those that 3 deviations touch, normalized; 1.x those whose middle
    lies within 3 deviations of kernel and bin width together, scaled by what a Gaussian lacks that is cut at 3. Measured
    with these bins of 3 standard deviations: up to 2.3e-3 (2.x) and 1.7e-3 (1.x) of the LOR, median relative difference of
    the bins 4e-4 and 1.8e-3. With all cut at 6 deviations 99.9 % of the bins are within 2e-6 of the LOR, for both.
    """
    ours, theirs = vision(tof=True)
    image = random_image(ours.grid)
    data, reference = theirs.forward(image, VIEWS), ours.forward(image, VIEWS)
    line = reference.sum(axis=2, keepdims=True)
    counted = np.broadcast_to(line > 0.01 * line.max(), data.shape)
    assert (np.abs(data - reference)[counted] < 3e-3 * np.broadcast_to(line, data.shape)[counted]).all()
    assert np.median(relative_differences(data, reference)) < 2.5e-3


@pytest.mark.parametrize(("tof", "tolerance"), [(False, 5e-5), (True, 4e-3)])
def test_adjoint_agrees(library, tof, tolerance):
    """Away from the border, relative to the maximum. Measured 1e-5; with TOF 3e-4 (2.x) and 2.6e-3 (1.x), see above."""
    ours, theirs = vision(tof)
    data = np.random.default_rng(1).random(ours.data_shape(len(VIEWS))).astype(np.float32)
    reference, image = ours.adjoint(data, VIEWS)[BORDER], theirs.adjoint(data, VIEWS)[BORDER]
    np.testing.assert_allclose(image, reference, rtol=0, atol=tolerance * reference.max())


@pytest.mark.parametrize("tof", [False, True])
@pytest.mark.parametrize("support", [None, 90.0])
def test_is_linear_with_an_exact_adjoint(library, tof, support):
    projector = small(tof, support_mm=support)
    helpers.check_linear_operator(projector.forward, projector.adjoint, projector.grid.shape,
                                  projector.data_shape(projector.layout.views))  # fmt: skip


def test_tof_layout_without_tof_gives_line_integrals(library):
    """1.x scales TOF weights by up to 0.27 % more than their sum."""
    ours, theirs = vision(tof=True)
    plain = ParallelprojProjector(ours.layout, ours.grid, (2.0, -4.0, 6.0), shift=ours.shift, tof=False)
    image = random_image(ours.grid)
    data = plain.forward(image, VIEWS[:1])
    assert data.shape == plain.data_shape(1) == (1, 200, 1, ours.layout.planes)
    np.testing.assert_allclose(
        theirs.forward(image, VIEWS[:1]).sum(axis=2), data[:, :, 0], rtol=4e-3, atol=1e-5 * data.max()
    )


@pytest.mark.parametrize("tof", [False, True])
def test_chunks_do_not_matter(library, tof, monkeypatch):
    """Data bit for bit, back projections to the rounding of atomic additions in any order."""
    projector = small(tof)
    image = np.random.default_rng(0).random(projector.grid.shape).astype(np.float32)
    data = projector.forward(image)
    back = projector.adjoint(np.ones_like(data))
    monkeypatch.setattr(parallelproj, "END_POINT_BYTES", 24 * 7 * projector.layout.planes)
    assert len(list(projector._chunks(np.arange(projector.layout.views)))) > projector.layout.views
    np.testing.assert_array_equal(projector.forward(image), data)
    np.testing.assert_allclose(projector.adjoint(np.ones_like(data)), back, atol=1e-5 * back.max())


def test_sums_of_several_images_accumulate(library):
    projector = small(tof=True)
    views = np.array([1, 4, 9])
    counts = np.random.default_rng(0).poisson(2, (2, *projector.data_shape(3))).astype(np.uint16)
    sums = projector.new_sums(2)
    projector.add_back(sums, views, counts)
    projector.add_back(sums, views[:2], counts[:, :2])
    for image, count in zip(projector.image_of(sums), counts, strict=True):
        wanted = projector.adjoint(count, views) + projector.adjoint(count[:2], views[:2])
        np.testing.assert_allclose(image, wanted, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("tof", [False, True])
def test_em_back_projection_is_that_of_the_ratio(library, tof):
    projector = small(tof, support_mm=110.0)
    rng = np.random.default_rng(0)
    views = np.arange(projector.layout.views)
    images = rng.random((2, *projector.grid.shape)).astype(np.float32)
    counts = rng.poisson(0.3, (2, *projector.data_shape(len(views)))).astype(np.float32)
    more = rng.random(counts.shape).astype(np.float32)
    for background in (None, more):
        sums = projector.new_sums(2)
        projector.add_em_back(sums, views, counts, projector.prepare(images), background)
        for k, (image, count, back) in enumerate(zip(images, counts, projector.image_of(sums), strict=True)):
            expected = projector.forward(image)
            assert (expected == 0).any()
            expected = expected if background is None else expected + background[k]
            wanted = projector.adjoint(np.divide(count, expected, out=np.zeros_like(count), where=expected > 0))
            np.testing.assert_allclose(back, wanted, atol=1e-4 * wanted.max())


def test_has_the_supports_and_methods_of_ours(library):
    ours, theirs = vision(tof=True, support_mm=150.0)
    assert {name for name in vars(SinogramProjector) if name[0] != "_"} <= set(vars(ParallelprojProjector))
    np.testing.assert_array_equal(theirs.support, ours.support)
    assert (theirs.bins, theirs.shift, theirs.support_mm) == (ours.bins, ours.shift, ours.support_mm)


def test_pickles(library):
    projector = small(tof=True)
    helpers.check_pickles(projector, np.ones(projector.grid.shape, np.float32))


def test_list_mode_agrees_with_the_sinogram(library):
    """The same LORs and bins as events: bins are counted alike, and the back projection is the transpose.

    The two cut the kernel differently (list-mode by voxels around a bin), hence 1 % of the LOR.
    """
    projector = small(tof=True)
    tof = projector._tof
    assert tof is not None
    rng = np.random.default_rng(0)
    image = rng.random(projector.grid.shape).astype(np.float32)
    geometry = (projector._origin, projector._voxel)
    _, start, end = next(projector._chunks(np.array([2])))
    sino = np.empty((len(start), tof.bins), np.float32)
    library.tof_sino_forward(start, end, image, *geometry, sino, tof)
    values = np.empty_like(sino)
    weights, back = rng.random(sino.shape).astype(np.float32), np.zeros_like(image)
    for b in range(tof.bins):
        bins = np.full(len(start), b, np.int16)
        value = np.empty(len(start), np.float32)
        library.tof_list_forward(start, end, image, *geometry, value, bins, tof)
        values[:, b] = value
        library.tof_list_back(start, end, back, *geometry, np.ascontiguousarray(weights[:, b]), bins, tof)
    assert np.abs(values - sino).max() < 0.01 * sino.sum(axis=1).max()
    assert np.vdot(values.astype(float), weights) == pytest.approx(np.vdot(image.astype(float), back), rel=1e-5)


def test_library_says_what_it_is(library):
    assert library.version[0] in "12"
    assert "parallelproj" in library.how


@pytest.fixture
def nothing_installed(monkeypatch):
    """No module, no variable."""
    monkeypatch.setitem(sys.modules, "parallelproj_core", None)
    monkeypatch.setitem(sys.modules, "parallelproj", None)
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    parallelproj._load.cache_clear()
    yield monkeypatch
    parallelproj._load.cache_clear()


def test_absence_is_told_with_the_mend(nothing_installed):
    with pytest.raises(DataError, match="conda install -c conda-forge parallelproj") as caught:
        load_library()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_library_is_refused(nothing_installed, tmp_path):
    (tmp_path / "libparallelproj.so").write_text("not a library")
    nothing_installed.setenv(LIBRARY_VARIABLE, str(tmp_path / "libparallelproj.so"))
    with pytest.raises(DataError, match=f"cannot load.*{LIBRARY_VARIABLE}"):
        load_library()


def test_another_library_is_refused(nothing_installed):
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no C math library to be found")
    nothing_installed.setenv(LIBRARY_VARIABLE, name)
    with pytest.raises(DataError, match="not parallelproj's"):
        load_library()
