"""The list-mode projector against an independent LOR-by-LOR one, the sinogram projector, and itself dose by dose."""

from typing import Any

import numba as nb
import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.projectors import numba_listmode as kernels
from petsim.projectors.listmode import Events, ListmodeProjector, Tof, pair_order
from petsim.projectors.sinogram import SinogramProjector
from tests import helpers

CRYSTALS, RINGS, BINS = 36, 7, 9
TOF = Tof(BINS, 30.0, 19.0)


def ring_xy(crystals=CRYSTALS, radius=100.0, offset=0.1):
    angle = (np.arange(crystals) + 0.5) * 2 * np.pi / crystals + offset
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


RING_Z = (np.arange(RINGS) - 3) * 8.0


def draw_events(count, seed=0, doses=1, pairs=None):
    """Events across the ring, in both orientations; `pairs` limits the number of crystal pairs."""
    rng = np.random.default_rng(seed)
    first = rng.integers(CRYSTALS, size=pairs or count)
    second = (first + rng.integers(CRYSTALS // 4, CRYSTALS - CRYSTALS // 4, pairs or count)) % CRYSTALS
    pick = rng.integers(pairs, size=count) if pairs else np.arange(count)
    swap = rng.random(count) < 0.5
    a, b = np.where(swap, second[pick], first[pick]), np.where(swap, first[pick], second[pick])
    rings = rng.integers(RINGS, size=(2, count))
    return Events(a, rings[0], b, rings[1], rng.integers(BINS, size=count), rng.integers(1, doses + 1, count))


def build(events, tof: Tof | None = TOF, shape=(17, 14, 11), spacing=(7.0, 8.0, 5.3), **kwargs):
    grid = Grid.centered(shape, spacing, (3.0, -4.0, 2.5))
    return ListmodeProjector(ring_xy(), RING_Z, grid, events, center_mm=(0.0, 0.0, 0.0), tof=tof, **kwargs)


def reference(projector, events, image):
    """Values by the independent projector, at the first dose."""
    xy, z, grid, values = ring_xy(), RING_Z, projector.grid, []
    for e in range(len(events)):
        start = (*xy[events.crystal1[e]], z[events.ring1[e]])
        end = (*xy[events.crystal2[e]], z[events.ring2[e]])
        samples, positions = helpers.joseph_lor(image, grid.spacing_mm, grid.origin_mm, start, end)
        if projector.tof:
            t = projector.tof
            samples = [s * helpers.tof_weight(t.bins, t.bin_mm, t.sigma_mm, TOF_SIGMAS, p)[events.tof_bin[e]]
                       for s, p in zip(samples, positions, strict=True)]  # fmt: skip
        values.append(np.sum(samples))
    return np.array(values)


@pytest.mark.parametrize("tof", [None, TOF, Tof(BINS, 4.0, 25.0), Tof(BINS, 60.0, 3.0)])
@pytest.mark.parametrize("pairs", [None, 3])
def test_agrees_with_the_independent_projector(tof, pairs):
    """With an event or two a pair and with many, in the caller's order."""
    events = draw_events(250, pairs=pairs)
    projector = build(events, tof)
    image = np.random.default_rng(1).random(projector.grid.shape).astype(np.float32)
    wanted = reference(projector, events, image)
    assert np.count_nonzero(wanted) > 50
    np.testing.assert_allclose(projector.forward(image), wanted, atol=3e-6 * wanted.max())


@pytest.mark.parametrize("merge_tof", [0, 16])
@pytest.mark.parametrize("support", [None, 150.0])
def test_agrees_with_the_sinogram_projector(merge_tof, support):
    """Every kind of bin of a real scanner with span 1, in both orientations of the LOR."""
    scanner = load_scanner("biograph_vision_600")
    bins = 13 if merge_tof else 1
    layout = SinogramLayout(scanner, radials=300, merge_axial=8, span=1, max_ring_difference=8, merge_tof=merge_tof,
                            tof_bins=bins)  # fmt: skip
    grid = Grid.centered((100, 90, 19), (4.0, 4.5, layout.ring_pitch_mm / 2))
    image = np.random.default_rng(3).random(grid.shape).astype(np.float32)
    views = np.array([0, 57, 100, 391])
    data = SinogramProjector(layout, grid, support_mm=support).forward(image, views)

    rng = np.random.default_rng(4)
    count = 3000
    v, r, b = (rng.integers(n, size=count) for n in data.shape[:3])
    segments = layout.segments()
    seg = [segments[k] for k in rng.integers(len(segments), size=count)]
    p = np.array([rng.integers(s.planes) for s in seg])
    ring_sum = np.array([s.first_sum for s in seg]) + 2 * p
    difference = np.array([s.lowest for s in seg])
    wanted = data[v, r, b, np.array([s.start for s in seg]) + p]

    pairs = np.array([layout.crystal_pairs(int(view)) for view in views])[:, :, 0]
    crystal1, crystal2 = pairs[v, 0, r], pairs[v, 1, r]
    ring1, ring2 = (ring_sum - difference) // 2, (ring_sum + difference) // 2
    swap = rng.random(count) < 0.5
    events = Events(np.where(swap, crystal2, crystal1), np.where(swap, ring2, ring1), np.where(swap, crystal1, crystal2),
                    np.where(swap, ring1, ring2), np.where(swap, layout.tof_bins - 1 - b, b))  # fmt: skip
    xy = ring_xy(layout.crystals, scanner.radius_mm, scanner.view_offset_rad)
    tof = Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm) if merge_tof else None
    projector = ListmodeProjector(xy, layout.ring_z_mm(), grid, events, support_mm=support, tof=tof)
    np.testing.assert_allclose(projector.forward(image), wanted, atol=1e-5 * wanted.max())
    assert np.count_nonzero(wanted) > 0.2 * count


@pytest.mark.parametrize("tof", [None, TOF])
@pytest.mark.parametrize("support", [None, 45.0])
@pytest.mark.parametrize(("count", "pairs"), [(300, None), (300, 12), (900, 2)])
def test_is_linear_with_an_exact_adjoint(tof, support, count, pairs):
    events = draw_events(count, pairs=pairs)
    projector = build(events, tof, support_mm=support)
    helpers.check_linear_operator(projector.forward, projector.adjoint, projector.grid.shape, (len(events),))


def test_is_linear_with_an_exact_adjoint_for_a_ladder():
    events = draw_events(600, doses=4, pairs=8)
    projector = build(events)
    inside = np.arange(4)[:, None] < events.doses
    helpers.check_linear_operator(projector.forward, lambda y: projector.adjoint(np.where(inside, y, 0)),
                                  (4, *projector.grid.shape), (4, len(events)))  # fmt: skip


@pytest.mark.parametrize("tof", [None, TOF])
@pytest.mark.parametrize("pairs", [None, 3])
def test_dense_matrix_is_the_transpose(tof, pairs):
    projector = build(draw_events(40, pairs=pairs), tof, shape=(5, 6, 4), spacing=(20.0, 18.0, 14.0))
    helpers.check_dense_transpose(projector.forward, projector.adjoint, projector.grid.shape, (len(projector),))


def test_pickles():
    projector = build(draw_events(50))
    helpers.check_pickles(projector, np.ones(projector.grid.shape, np.float32))


def subset(events, chosen):
    return Events(*(getattr(events, name)[chosen] for name in ("crystal1", "ring1", "crystal2", "ring2", "tof_bin")))


@pytest.mark.parametrize(("count", "pairs"), [(400, None), (1500, 6)])
def test_a_ladder_is_every_dose_on_its_own(count, pairs):
    """Forward, adjoint and EM of dose d are those of a projector that has just the events of dose d."""
    events = draw_events(count, doses=5, pairs=pairs)
    projector = build(events)
    rng = np.random.default_rng(1)
    images = rng.random((5, *projector.grid.shape)).astype(np.float32)
    values = rng.random((5, count)).astype(np.float32)
    weight, background = rng.random(count).astype(np.float32), rng.random((5, count)).astype(np.float32)
    forward, back, em = projector.forward(images), projector.adjoint(values), projector.em_back(images, weight, background)
    for d in range(5):
        inside = events.doses > d
        alone = build(subset(events, inside))
        np.testing.assert_array_equal(forward[d, ~inside], 0)
        np.testing.assert_allclose(forward[d, inside], alone.forward(images[d]), rtol=1e-6)
        wanted = alone.adjoint(values[d, inside])
        np.testing.assert_allclose(back[d], wanted, atol=1e-6 * wanted.max())
        wanted = alone.em_back(images[d], weight[inside], background[d, inside])
        np.testing.assert_allclose(em[d], wanted, atol=1e-6 * wanted.max())


def test_fewer_images_than_doses_are_the_first_doses():
    events = draw_events(200, doses=5)
    projector = build(events)
    images = np.random.default_rng(1).random((5, *projector.grid.shape)).astype(np.float32)
    whole = projector.forward(images)
    np.testing.assert_array_equal(projector.forward(images[:2]), whole[:2])
    np.testing.assert_array_equal(projector.forward(images[0]), whole[0])


@pytest.mark.parametrize(("count", "pairs"), [(400, None), (900, 3)])
def test_em_back_projection_is_that_of_the_ratio(count, pairs):
    projector = build(draw_events(count, pairs=pairs))
    rng = np.random.default_rng(0)
    image = rng.random(projector.grid.shape).astype(np.float32)
    weight, background = rng.random((2, count)).astype(np.float32)
    weight[::7] = 0
    background[::2] = 0
    for w, b in ((None, None), (weight, None), (weight, background)):
        used, rest = (1.0 if w is None else w), (0.0 if b is None else b)
        expected = used * projector.forward(image) + rest
        ratio = np.divide(used, expected, out=np.zeros_like(expected), where=expected > 0)
        wanted = projector.adjoint(ratio)
        np.testing.assert_allclose(projector.em_back(image, w, b), wanted, atol=1e-5 * wanted.max())


def test_events_in_order_are_the_same_events():
    """Bit for bit, one value an event at its place, ladder and TOF included."""
    events = draw_events(900, doses=3, pairs=12)
    order = pair_order(events, CRYSTALS)
    shuffled, sorted_ = build(events), build(events.taken(order))
    rng = np.random.default_rng(0)
    images = rng.random((3, *shuffled.grid.shape)).astype(np.float32)
    weight, background = rng.random(900).astype(np.float32), rng.random((3, 900)).astype(np.float32)
    np.testing.assert_array_equal(shuffled.forward(images)[:, order], sorted_.forward(images))
    np.testing.assert_array_equal(shuffled.adjoint(background), sorted_.adjoint(background[:, order]))
    np.testing.assert_array_equal(
        shuffled.em_back(images, weight, background), sorted_.em_back(images, weight[order], background[:, order])
    )


def test_nothing_expected_adds_nothing():
    events = draw_events(100)
    projector = build(events)
    image = np.zeros(projector.grid.shape, np.float32)
    np.testing.assert_array_equal(projector.em_back(image), image)
    negative = np.full(len(events), -1.0)
    np.testing.assert_array_equal(projector.em_back(image, background=negative), image)


def test_results_are_in_the_callers_order():
    events = draw_events(500)
    order = np.random.default_rng(1).permutation(500)
    image = np.random.default_rng(2).random((17, 14, 11)).astype(np.float32)
    np.testing.assert_array_equal(build(subset(events, order)).forward(image), build(events).forward(image)[order])


def test_sums_do_not_depend_on_the_number_of_threads():
    """Bit for bit; a ladder makes tasks of unequal length."""
    if nb.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread")
    events = draw_events(5000, doses=3, pairs=400)
    projector = build(events)
    rng = np.random.default_rng(1)
    images = rng.random((3, *projector.grid.shape)).astype(np.float32)
    values = rng.random((3, len(events))).astype(np.float32)
    before, results = nb.get_num_threads(), []
    for threads in (1, 2):
        nb.set_num_threads(threads)
        try:
            results.append((projector.forward(images), projector.adjoint(values), projector.em_back(images)))
        finally:
            nb.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_two_million_equal_events_lose_no_accuracy():
    """float32 sums would drift by 1e-2 and more. Voxels that a LOR hardly touches have weights with errors of their own."""
    count = 2_000_000
    one = draw_events(1)
    fields = [np.full(count, getattr(one, name)[0]) for name in ("crystal1", "ring1", "crystal2", "ring2")]
    single = build(one, None).adjoint(np.ones(1))
    many = build(Events(*fields), None).adjoint(np.ones(count))
    np.testing.assert_allclose(many, single.astype(np.float64) * count, rtol=1e-5, atol=5e-7 * many.max())
    assert many.max() > 4 * count


def test_rays_at_voxel_centers_and_borders():
    """Direct planes on voxel planes, axis-parallel LORs on voxel rows, and rings outside the image."""
    xy = np.array([[-100.0, 7.0], [100.0, 7.0], [7.0, -100.0], [7.0, 100.0]])
    z = np.array([-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0])
    grid = Grid.centered((15, 13, 5), (7.0, 7.0, 10.0))
    image = np.ones(grid.shape, np.float32)
    ring = np.repeat(np.arange(7), kernels.FEW + 2)
    one = np.zeros_like(ring)
    wanted = np.where(np.abs(z[ring]) <= 20, 1.0, 0.0)
    along_x = ListmodeProjector(xy, z, grid, Events(one, ring, one + 1, ring)).forward(image)
    np.testing.assert_allclose(along_x, wanted * 15 * 7, rtol=1e-6)
    along_y = ListmodeProjector(xy, z, grid, Events(one + 2, ring, one + 3, ring)).forward(image)
    np.testing.assert_allclose(along_y, wanted * 13 * 7, rtol=1e-6)
    for few in (ring[:2], ring[-2:]):
        some = np.zeros_like(few)
        assert not ListmodeProjector(xy, z, grid, Events(some, few, some + 1, few)).forward(image).any()


def test_tof_bins_sum_to_the_line_integral():
    events = draw_events(1)
    fields = [np.full(BINS, getattr(events, name)[0]) for name in ("crystal1", "ring1", "crystal2", "ring2")]
    events = Events(*fields, tof_bin=np.arange(BINS))
    image = np.random.default_rng(1).random((17, 14, 11)).astype(np.float32)
    np.testing.assert_allclose(build(events).forward(image).sum(), build(events, None).forward(image)[0], rtol=1e-5)


def test_no_events():
    none = np.zeros(0, int)
    projector = build(Events(none, none, none, none, none))
    image = np.ones(projector.grid.shape, np.float32)
    assert projector.forward(image).shape == (0,)
    assert not projector.adjoint(np.zeros(0)).any()
    assert projector.em_back(image[None]).shape == (1, *projector.grid.shape)


FIELDS = {"crystal1": 0, "ring1": 0, "crystal2": 5, "ring2": 0, "tof_bin": 0, "doses": 1}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("crystal1", [36], "crystal1 must be 0 to 35, found 36"),
        ("crystal2", [-1], "crystal2 must be 0 to 65535, found -1"),
        ("ring1", [7], "ring1 must be 0 to 6, found 7"),
        ("ring2", [70000], "ring2 must be 0 to 65535, found 70000"),
        ("tof_bin", [9], "tof_bin must be 0 to 8, found 9"),
        ("tof_bin", [-1], "tof_bin must be 0 to 32767"),
        ("tof_bin", None, "no TOF bins"),
        ("doses", [0], "doses must be 1 to 255, found 0"),
        ("ring1", [0, 1], r"ring1 is int64 \(2,\); give an integer for each of 1 events"),
        ("crystal2", [0.5], "crystal2 is float64"),
        ("crystal2", [0], "event 0 has crystal 0 at both ends"),
    ],
)
def test_events_that_cannot_be_are_refused(name, value, message):
    arrays: dict[str, Any] = {n: np.array([v]) for n, v in FIELDS.items()}
    arrays[name] = None if value is None else np.array(value)
    with pytest.raises(DataError, match=message) as error:
        build(Events(**arrays))
    assert "\n" not in str(error.value)


def test_wrong_tof_and_shapes_are_refused():
    with pytest.raises(DataError, match="TOF needs"):
        Tof(5, 30.0, 0.0)
    projector = build(draw_events(3))
    with pytest.raises(DataError, match="crystal_xy_mm"):
        ListmodeProjector(RING_Z, RING_Z, projector.grid, draw_events(3))
    with pytest.raises(ValueError, match="image"):
        projector.forward(np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="values"):
        projector.adjoint(np.ones(4))
    with pytest.raises(ValueError, match="weight"):
        projector.em_back(np.ones(projector.grid.shape), np.ones(4))
    with pytest.raises(ValueError, match="background"):
        projector.em_back(np.ones(projector.grid.shape), background=np.ones((2, 3)))
