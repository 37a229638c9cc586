"""Reconstruction with the projectors: sinogram against list mode, other projectors, empty data, noise with TOF."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import i0e

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.filters import gaussian
from petsim.geometry.sinogram import SinogramLayout, tof_bins_for
from petsim.projectors.choose import cuda_problem, projector_class
from petsim.projectors.sinogram import SinogramProjector
from petsim.recon.listmode import BinLines, listmode_em_back
from petsim.recon.osem import osem
from petsim.reconstruct import _background
from tests.petsim.test_projector import polygonal_scanner, tiny_scanner

SUBSETS = 3


def tiny_layout(tof=True, **options):
    scanner = options.pop("scanner", None) or tiny_scanner()
    options = {"radials": 12, "span": 3, "max_ring_difference": 4, **options}
    bins = tof_bins_for(scanner, 4, 140.0, 3.0) if tof else 1
    return SinogramLayout(scanner, merge_tof=4 if tof else 0, tof_bins=bins, **options)


def nothing(image):
    return image


class Scan:
    """A warm cylinder with a hot rod, its nested counts at three doses, and background."""

    def __init__(self, layout, level=2e5):
        self.layout = layout
        self.grid = Grid.centered((14, 14, 12), (10.0, 10.0, layout.ring_pitch_mm / 2))
        x, y = (self.grid.axis_mm(a) for a in range(2))
        radius = np.hypot(x[:, None], y[None, :])[:, :, None]
        truth = np.where(radius < 55, 1.0, 0.0) + np.where(np.hypot(x[:, None] - 20, y[None, :])[:, :, None] < 16, 3, 0)
        self.truth = np.broadcast_to(truth, self.grid.shape).astype(np.float32)
        self.projector = SinogramProjector(layout, self.grid)
        line = self.projector.forward(self.truth)
        self.scale = level / line.sum(dtype=np.float64)
        rng = np.random.default_rng(5)
        self.background = np.float32(0.2 * self.scale * line.mean()) * (1 + rng.random(line.shape, np.float32))
        self.full = rng.poisson(self.scale * line + self.background)
        self.counts = np.stack([self.full, rng.binomial(self.full, 0.25), rng.binomial(0 * self.full, 0.1)])
        self.counts[2] = rng.binomial(self.counts[1], 0.2)
        self.share = np.array([1, 0.25, 0.05], np.float32).reshape(3, 1, 1, 1, 1)

    def views(self, subset):
        return self.layout.subset_views(subset, SUBSETS)

    def more(self, views):
        return self.background[views] * self.share

    def run(self, em_back, operator=SinogramProjector):
        plain = operator(self.layout, self.grid, tof=False)
        sensitivities = [plain.adjoint(np.ones(plain.data_shape(len(v)), np.float32), v) for v in map(self.views, range(3))]
        start = np.ones((3, *self.grid.shape), np.float32)
        return osem(start, em_back, sensitivities, nothing, list(range(SUBSETS)) * 2)

    def of_sinogram(self, projector):
        def em_back(subset, images):
            views, sums = self.views(subset), projector.new_sums(3)
            counts, more = self.counts[:, views].astype(np.float32), self.more(views)
            projector.add_em_back(sums, views, counts, projector.prepare(images), more)
            return projector.image_of(sums)

        return self.run(em_back, type(projector))

    def of_listmode(self):
        groups = [np.array_split(self.views(s), 2) for s in range(SUBSETS)]
        return self.run(listmode_em_back(self.layout, self.grid, groups, lambda v: self.counts[:, v], self.more))


def assert_close(images, wanted, share):
    for image, other in zip(images, wanted, strict=True):
        assert np.abs(image - other).max() < share * other.max()


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(tiny_layout(), id="span3-tof"),
        pytest.param(tiny_layout(tof=False, mash=3), id="mashed"),
        pytest.param(tiny_layout(scanner=polygonal_scanner(5.0), span=1, merge_transaxial=2), id="polygon"),
    ],
)
def test_list_mode_gives_the_sinograms_images(layout):
    """At all doses of a nested ladder, to 1e-4 of the highest voxel."""
    scan = Scan(layout)
    wanted = scan.of_sinogram(scan.projector)
    assert_close(scan.of_listmode(), wanted, 1e-4)
    assert wanted[0].max() > 2 * wanted[0].mean() > 10 * wanted[2].mean()


def test_doses_that_are_not_nested_are_refused():
    layout = tiny_layout()
    lines, views = BinLines(layout), np.array([2])
    counts = np.zeros((2, 1, *layout.shape[1:]), int)
    counts[1, 0, 3, 1, 2] = 1
    with pytest.raises(DataError, match="nested"):
        lines.events(views, counts)
    counts[0, 0, 3, 1, 2] = 3
    events, bins = lines.events(views, counts)
    assert sorted(events.doses) == [1, 1, 2] and len(set(bins)) == 1


def test_other_projectors_give_the_same_images():
    """parallelproj, where it is installed: to 1 % of the highest voxel away from the axial ends, where weights differ."""
    scan = Scan(tiny_layout())
    try:
        other = projector_class("parallelproj")(scan.layout, scan.grid)
    except DataError as error:
        pytest.skip(str(error))
    inside = np.s_[:, :, :, 3:-3]
    assert_close(scan.of_sinogram(other)[inside], scan.of_sinogram(scan.projector)[inside], 0.01)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_images():
    if (problem := cuda_problem()) is not None:
        pytest.skip(problem)
    scan = Scan(tiny_layout())
    assert_close(scan.of_sinogram(projector_class("cuda")(scan.layout, scan.grid)), scan.of_sinogram(scan.projector), 1e-3)


def test_an_empty_dose_is_zero_and_bins_that_are_no_numbers_are_left_out():
    scan = Scan(tiny_layout())
    wanted = scan.of_sinogram(scan.projector)
    scan.counts = scan.counts.astype(np.float32)
    scan.counts[2] = 0
    scan.counts[1, 4, 3, 1, 2] = np.nan
    scan.counts[1, 5, 3, 1, 2] = np.inf
    images = scan.of_sinogram(scan.projector)
    np.testing.assert_array_equal(images[0], wanted[0])
    assert not images[2].any() and np.isfinite(images).all()
    assert np.abs(images[1] - wanted[1]).max() < 0.3 * wanted[1].max()
    scan.counts[1] = 0
    whole = scan.counts.astype(int)
    scan.counts = whole
    listed = scan.of_listmode()
    assert not listed[1:].any()
    assert_close(listed[:1], wanted[:1], 1e-4)


def test_lines_that_nothing_survives_are_left_out():
    """Through meters of a mu-map of ones, survival is 0, and the background over it infinite or no number."""
    values = np.array([0, 0, 1], np.float32).reshape(1, 1, 1, 3)
    randoms, survive = np.array([0, 1, 2], np.float32), np.array([0, 0, 0.5], np.float32)
    _background(values, np.float32(3), randoms.reshape(1, 1, 3), survive.reshape(1, 1, 3), values)
    np.testing.assert_array_equal(values.ravel(), [np.nan, np.inf, 10])
    scan = Scan(tiny_layout())
    scan.background[3, 4:6] = np.nan
    scan.background[5, 4:6] = np.inf
    images = scan.of_sinogram(scan.projector)
    assert np.isfinite(images).all() and images[2].max() > 0


# ---- Noise with and without TOF ----

SCANS, POST_FWHM_MM, DIAMETER_MM = 160, 30.0, 240.0


def disk_layout():
    """TOF of 400 ps, a sigma of 25.5 mm, and direct planes only: every ring makes a scan of its own."""
    scanner = replace(tiny_scanner(), inner_radius_mm=393.0, crystals_per_ring=126, rings=SCANS,
                                  axial_block=SCANS, axial_block_real=SCANS, max_ring_difference=0, tof_fwhm_ps=400.0,
                                  tof_bin_ps=200.0, tof_bins=13)  # fmt: skip
    return SinogramLayout(scanner, radials=32, merge_tof=1, tof_bins=13)


def variances_at_the_center():
    """Relative, without and with TOF, of many scans of a disk, after iterations to convergence and a filter.

    With subsets, their limit cycle would add noise of its own.
    """
    layout = disk_layout()
    grid = Grid.centered((26, 26, SCANS), (10.0, 10.0, layout.ring_pitch_mm))
    radius = np.hypot(grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :])
    disk = np.repeat((radius < DIAMETER_MM / 2)[:, :, None], SCANS, 2).astype(np.float32)
    line = SinogramProjector(layout, grid).forward(disk)
    recorded = np.random.default_rng(8).poisson(5e5 * SCANS / line.sum(dtype=np.float64) * line).astype(np.float32)
    views, found = np.arange(layout.views), []
    for tof, iterations in ((False, 100), (True, 30)):
        projector = SinogramProjector(layout, grid, support_mm=135.0, tof=tof)
        counts = (recorded if tof else recorded.sum(axis=2, keepdims=True))[None]

        def em_back(subset, images, projector=projector, counts=counts):
            sums = projector.new_sums(1)
            projector.add_em_back(sums, views, counts, projector.prepare(images))
            return projector.image_of(sums)

        sensitivity = projector.adjoint(np.ones(projector.data_shape(len(views)), np.float32))
        images = osem(np.ones((1, *grid.shape), np.float32), em_back, [sensitivity], nothing, [0] * iterations)
        middle = gaussian(images[0], (POST_FWHM_MM, POST_FWHM_MM, 0.0), grid.spacing_mm)[radius < 45]
        found.append(float((middle.var(axis=1, ddof=1) / middle.mean(axis=1) ** 2).mean()))
    return found


def test_tof_lowers_variance_as_theory_has_it():
    """Within 10 % of Tomitani's variances (1981) at the center of a disk, derived anew.

    With frequency f, the noise power is proportional to D f without TOF and to 1 / P(f) with it, where P is the transform of
    the back projected point, the mean over angles of exp(-(2 pi sigma f cos)^2), times pi. For high f the ratio is that of
    Snyder (1981) and Conti (2006): in proportion to D / FWHM, by
    D / (2 sqrt(pi) sigma) = 0.66 D / FWHM.
    """
    layout = disk_layout()
    sigma2 = layout.tof_sigma_mm**2 + layout.tof_bin_mm**2 / 12
    f = np.linspace(1e-5, 0.1, 4000)
    passed = f * np.exp(-((np.pi * f * POST_FWHM_MM) ** 2) / (2 * np.log(2)))
    gain = DIAMETER_MM * (passed * f).sum() / (passed / (np.pi * i0e(2 * np.pi**2 * sigma2 * f**2))).sum()
    assert gain == pytest.approx(DIAMETER_MM / (2 * np.sqrt(np.pi * sigma2)), rel=0.1) and gain > 2
    plain, tof = variances_at_the_center()
    assert plain / tof == pytest.approx(gain, rel=0.1)
