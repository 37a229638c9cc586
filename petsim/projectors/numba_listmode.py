"""Joseph kernels for list-mode events (numba, CPU).

Joseph's method (doi 10.1109/TMI.1982.4307572) steps along the principal transaxial axis and interpolates bilinearly.
Events come sorted by crystal pair. All events of a pair share one transaxial line, so

1. the image is interpolated across that line once, for the part that its events touch: `plane[step, z]` (`_gather`), a
   contiguous vector operation;
2. an event is a line inside this plane: two neighboring values a step instead of four in the image. Its positions and
   TOF weights are computed with vectors (`_place`, `_weigh`), once for both halves of an EM update.

The adjoint spreads into a plane and adds that to the image once a pair. Planes stay in the caches. A pair with few events
has none (`_project_few`). The doses of a ladder are projected one after another: interleaved by pair, their images evict
each other from the caches, which costs more than positions computed again.

Images are flat, with `PAD` voxels on every side, so that no sample needs a bounds check. Indices are unsigned or
count from a literal 0, because numba tests others for wraparound and then cannot vectorize. Everything here works on
bare arrays prepared by `petsim.projectors.listmode`.
"""

from typing import NamedTuple

import numba as nb
import numpy as np
from scipy.special import ndtr

from petsim.geometry.sinogram import TOF_SIGMAS
from petsim.projectors.numba_sinogram import FACE
from petsim.projectors.pairs import spread_pairs, sum_pairs

PAD = 2
"""Voxels around an image: one that interpolation reads and one for rounding. Zeros, but axially copies of the outermost
planes, which reach to their outer faces."""

LANES = 8
"""Plane rows are worked on in blocks of this many, a constant that the compiler turns into vectors."""

FEW = 48
"""Up to so many events of a pair are summed over the image itself: fewer voxels are read than for a plane."""

FLUSH = 256
"""Events that a plane sums in float32 before it goes to float64: an error of at most FLUSH / 2 x 6e-8, below 1e-5."""

_FAST = {"contract", "nsz", "arcp"}
_F32 = np.float32


def _fit_integral(degree: int = 9) -> tuple[np.float32, ...]:
    """Coefficients of I(x) = x p(2 (x / TOF_SIGMAS)^2 - 1), the integral from 0 to x of the cut and normalized kernel.

    A polynomial vectorizes, which a table does not; degree 9 errs by 5e-8, float32 rounding included.
    """
    u = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    x = TOF_SIGMAS * np.sqrt((u + 1) / 2)
    integral = (ndtr(x) - 0.5) / (ndtr(TOF_SIGMAS) - ndtr(-TOF_SIGMAS))
    series = np.polynomial.chebyshev.chebfit(u, integral / x, degree)
    return tuple(np.float32(c) for c in np.polynomial.chebyshev.cheb2poly(series))


_C = _fit_integral()
_CUT = np.float32(TOF_SIGMAS)

FORWARD, ADJOINT, EM = 0, 1, 2


class Space(NamedTuple):
    """Image grid, its strides in the padded flat image, and the TOF kernel.

    `shape` (int64), `voxel_mm` and `origin_mm` (float64) are (3,); numba's parallel loops take no nested tuples.
    `tof_bins` is 0 without TOF; `tof_reach_mm` is the distance from a bin's center at which its weight becomes zero.
    """

    shape: np.ndarray
    voxel_mm: np.ndarray
    origin_mm: np.ndarray
    stride_x: int
    stride_y: int
    support_mm: float
    tof_bins: int
    tof_bin_mm: float
    tof_sigma_mm: float
    tof_reach_mm: float


class Line(NamedTuple):
    """A transaxial line: steps `first` ... `last` - 1 lie `start` + step x `pitch` mm along it from its middle.

    `across` is the stride between the two voxel rows that it interpolates.
    """

    first: int
    last: int
    start: float
    pitch: float
    chord: float
    across: int


class Ray(NamedTuple):
    """An event in the plane of its line: steps, z in voxels = `start` + step x `slope`, 3D over transaxial length."""

    first: int
    last: int
    start: float
    slope: float
    stretch: float


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _clip(first, last, start, slope, low, high):
    """Steps of first ... last - 1 with low < start + step x slope < high."""
    if slope == 0.0:
        return (first, last) if low < start < high else (first, first)
    a, b = (low - start) / slope, (high - start) / slope
    if slope < 0.0:
        a, b = b, a
    # Limited as floats: with a small slope they may not fit an integer.
    begin, end = float(first), float(last)
    return int(min(max(np.ceil(a), begin), end)), int(min(max(np.floor(b) + 1.0, begin), end))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _trace(start, end, space, rows, fraction):
    """The `Line` that joins two crystals.

    Fills, by step, the flat index of the lower voxel row (`rows`, float64) and the weight of the upper (`fraction`).
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    xm, ym = 0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1])
    chord = np.sqrt(dx * dx + dy * dy)
    along_x = abs(dx) >= abs(dy)
    a, b = (0, 1) if along_x else (1, 0)
    d, d_other = (dx, dy) if along_x else (dy, dx)
    m, m_other = (xm, ym) if along_x else (ym, xm)
    pitch = space.voxel_mm[a] * chord / d
    begin = (space.origin_mm[a] - m) * chord / d
    first, last = _clip(0, space.shape[a], begin, pitch, -0.5 * chord, 0.5 * chord)
    if space.support_mm > 0.0:
        # An interpolated sample sees voxels up to one voxel away, so the line is cut that much outside the support.
        radius = space.support_mm + max(space.voxel_mm[0], space.voxel_mm[1])
        distance = (xm * dy - ym * dx) / chord
        if abs(distance) >= radius:
            return Line(0, 0, begin, pitch, chord, 0)
        middle = -(xm * dx + ym * dy) / chord
        reach = np.sqrt(radius * radius - distance * distance)
        first, last = _clip(first, last, begin, pitch, middle - reach, middle + reach)
    other = (m_other + begin * d_other / chord - space.origin_mm[b]) / space.voxel_mm[b]
    slope = pitch * d_other / chord / space.voxel_mm[b]
    first, last = _clip(first, last, other, slope, -1.0, float(space.shape[b]))
    step, across = (space.stride_x, space.stride_y) if along_x else (space.stride_y, space.stride_x)
    # In float64, which holds the integers and multiplies faster than vectors of 64-bit integers.
    along, side, corner = float(step), float(across), float(PAD * (step + across + 1))
    for i in range(last - first):
        s = first + i
        position = other + s * slope
        row = np.floor(position)
        fraction[np.uint64(s)] = position - row
        rows[np.uint64(s)] = corner + s * along + row * side
    return Line(first, last, begin, pitch, chord, across)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _ray(line, z1, z2, tof_bin, space):
    """The `Ray` between two rings, cut to the image and to the reach of its TOF bin."""
    slope_mm = (z2 - z1) / line.chord
    stretch = np.sqrt(1.0 + slope_mm * slope_mm)
    start = (0.5 * (z1 + z2) - space.origin_mm[2] + line.start * slope_mm) / space.voxel_mm[2]
    slope = line.pitch * slope_mm / space.voxel_mm[2]
    first, last = line.first, line.last
    if space.tof_bins > 0:
        center = _tof_center(tof_bin, space)
        first, last = _clip(first, last, line.start * stretch - center, line.pitch * stretch, -space.tof_reach_mm,
                            space.tof_reach_mm)  # fmt: skip
    first, last = _clip(first, last, start, slope, FACE, space.shape[2] - 1 - FACE)
    return Ray(first, last, start, slope, stretch)


@nb.njit(cache=True, nogil=True)
def _tof_center(tof_bin, space):
    """Center of a TOF bin in mm from the middle of the LOR."""
    return (tof_bin - 0.5 * (space.tof_bins - 1)) * space.tof_bin_mm


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _gather(image, rows, fraction, across, first, last, low, stride, plane):
    """plane[step, z] = image interpolated across the line; z counts from `low`."""
    for s in range(first, last):
        f = _F32(fraction[s])
        g = _F32(1) - f
        a = np.uint64(np.int64(rows[s]) + low)
        b = a + np.uint64(across)
        to = np.uint64((s - first) * stride)
        for i in range(np.uint64(stride)):
            plane[to + i] = g * image[a + i] + f * image[b + i]


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _scatter(image, rows, fraction, across, first, last, low, stride, plane):
    """Transpose of `_gather`: adds to the image."""
    for s in range(first, last):
        f = _F32(fraction[s])
        g = _F32(1) - f
        a = np.uint64(np.int64(rows[s]) + low)
        b = a + np.uint64(across)
        to = np.uint64((s - first) * stride)
        for i in range(np.uint64(stride)):
            image[a + i] += g * plane[to + i]
        for i in range(np.uint64(stride)):
            image[b + i] += f * plane[to + i]


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _integral(x):
    """Integral from 0 to x (in sigmas) of the TOF kernel."""
    x = min(max(x, -_CUT), _CUT)
    u = x * x * (_F32(2) / (_CUT * _CUT)) - _F32(1)
    p = _C[8] + u * _C[9]
    p = _C[6] + u * (_C[7] + u * p)
    p = _C[4] + u * (_C[5] + u * p)
    p = _C[2] + u * (_C[3] + u * p)
    return x * (_C[0] + u * (_C[1] + u * p))


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _weigh(line, ray, tof_bin, space, weight):
    """TOF weight by sample of a ray."""
    center = (line.start + ray.first * line.pitch) * ray.stretch - _tof_center(tof_bin, space)
    begin, pitch = center / space.tof_sigma_mm, line.pitch * ray.stretch / space.tof_sigma_mm
    half = 0.5 * space.tof_bin_mm / space.tof_sigma_mm
    for i in range(ray.last - ray.first):
        x = begin + i * pitch
        weight[i] = _integral(_F32(x + half)) - _integral(_F32(x - half))


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _place(ray, first, low, stride, weight, place, near):
    """By sample of a ray: index of its lower voxel in the plane, and weights of the lower and the upper."""
    begin = ray.start + ray.first * ray.slope
    to = float((ray.first - first) * stride - low)
    for i in range(ray.last - ray.first):
        z = begin + i * ray.slope
        lower = np.floor(z)
        upper = weight[i] * _F32(z - lower)
        near[2 * i] = weight[i] - upper
        near[2 * i + 1] = upper
        place[i] = np.uint32(np.int32(lower + (to + i * float(stride))))


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _place_in_image(ray, rows, fraction, weight, place, near, far):
    """As `_place` for the nearer of two voxel rows of the image, and the weights in both."""
    begin = ray.start + ray.first * ray.slope
    rows, fraction = rows[ray.first : ray.last], fraction[ray.first : ray.last]
    for i in range(ray.last - ray.first):
        z = begin + i * ray.slope
        lower = np.floor(z)
        up = _F32(z - lower)
        b = weight[i] * fraction[i]
        a = weight[i] - b
        near[2 * i] = a - a * up
        near[2 * i + 1] = a * up
        far[2 * i] = b - b * up
        far[2 * i + 1] = b * up
        place[i] = np.uint32(rows[i] + lower)


@nb.njit(cache=True, nogil=True)
def _reach(line, first_event, last_event, rings, tof_bin, ring_z, space):
    """Part of the plane that some events touch, half-open: first and last step, lowest and highest z."""
    first, last, low, high = line.last, line.first, 1 << 30, -(1 << 30)
    for e in range(first_event, last_event):
        ray = _ray(line, ring_z[rings[e, 0]], ring_z[rings[e, 1]], tof_bin[e], space)
        if ray.first < ray.last:
            a, b = ray.start + ray.first * ray.slope, ray.start + (ray.last - 1) * ray.slope
            first, last = min(first, ray.first), max(last, ray.last)
            # The margin is for `_place`, which may round otherwise.
            low, high = min(low, int(np.floor(min(a, b) - 1e-9))), max(high, int(np.floor(max(a, b) + 1e-9)) + 2)
    return first, last, low, high


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _flush(plane, total):
    """Move a plane into its float64 sum."""
    for i in range(plane.size):
        total[i] += plane[i]
        plane[i] = _F32(0)


@nb.njit(cache=True, nogil=True)
def _update(value, weight, background):
    """Value to back project for an event of which `value` is projected."""
    expected = weight * value + background
    return weight / expected if expected > _F32(0) else _F32(0)


@nb.njit(cache=True, nogil=True)
def _project_few(mode, start, end, first_event, last_event, rings, tof_bin, ring_z, space, image, values, weight,
                 background, back, work):  # fmt: skip
    """`_project_pair` for so few events that no plane pays: four voxels a step."""
    rows, fraction, place, tof_weight, near, far = work[:6]
    line = _trace(start, end, space, rows, fraction)
    for e in range(first_event, last_event):
        ray = _ray(line, ring_z[rings[e, 0]], ring_z[rings[e, 1]], tof_bin[e], space)
        samples = ray.last - ray.first
        if samples <= 0:
            continue
        if space.tof_bins > 0:
            _weigh(line, ray, tof_bin[e], space, tof_weight)
        _place_in_image(ray, rows, fraction, tof_weight, place, near, far)
        length = _F32(abs(line.pitch) * ray.stretch)
        value = _F32(0)
        if mode != ADJOINT:
            value = length * (sum_pairs(image, place, near, samples) + sum_pairs(image[line.across :], place, far, samples))
        if mode == FORWARD:
            values[e] = value
            continue
        value = length * (values[e] if mode == ADJOINT else _update(value, weight[e], background[e]))
        spread_pairs(back, place, near, samples, value)
        spread_pairs(back[line.across :], place, far, samples, value)


@nb.njit(cache=True, nogil=True)
def _project_pair(mode, start, end, first_event, last_event, rings, tof_bin, ring_z, space, image, values, weight,
                  background, back, work):  # fmt: skip
    """Project events of one crystal pair.

    FORWARD writes `values` (events,), except for events that miss the image; ADJOINT adds the back projection of `values`
    to `back`; EM adds that of weight / (weight x forward + background), where that divides by more than zero.
    """
    rows, fraction, place, tof_weight, near, _, plane, plane_back, total = work
    line = _trace(start, end, space, rows, fraction)
    first, last, low, high = _reach(line, first_event, last_event, rings, tof_bin, ring_z, space)
    if first >= last:
        return
    stride = (high - low + LANES - 1) // LANES * LANES
    cells = (last - first) * stride
    many = mode != FORWARD and last_event - first_event > FLUSH
    if mode != ADJOINT:
        _gather(image, rows, fraction, line.across, first, last, low, stride, plane)
    if mode != FORWARD:
        plane_back[:cells] = _F32(0)
    if many:
        total[:cells] = 0.0
    for e in range(first_event, last_event):
        ray = _ray(line, ring_z[rings[e, 0]], ring_z[rings[e, 1]], tof_bin[e], space)
        samples = ray.last - ray.first
        if samples <= 0:
            continue
        if space.tof_bins > 0:
            _weigh(line, ray, tof_bin[e], space, tof_weight)
        _place(ray, first, low, stride, tof_weight, place, near)
        length = _F32(abs(line.pitch) * ray.stretch)
        value = _F32(0)
        if mode != ADJOINT:
            value = length * sum_pairs(plane, place, near, samples)
        if mode == FORWARD:
            values[e] = value
            continue
        value = length * (values[e] if mode == ADJOINT else _update(value, weight[e], background[e]))
        spread_pairs(plane_back, place, near, samples, value)
        if many and (e - first_event) % FLUSH == FLUSH - 1:
            _flush(plane_back[:cells], total[:cells])
    if mode == FORWARD:
        return
    if many:
        _flush(plane_back[:cells], total[:cells])
        _scatter(back, rows, fraction, line.across, first, last, low, stride, total)
    else:
        _scatter(back, rows, fraction, line.across, first, last, low, stride, plane_back)


@nb.njit(cache=True, nogil=True)
def _make_work(space, back, many):
    """Scratch arrays of one task."""
    steps = max(space.shape[0], space.shape[1])
    cells = steps * ((space.shape[2] + 2 * PAD) // LANES + 2) * LANES
    return (
        np.empty(steps),
        np.empty(steps, np.float32),
        np.empty(steps, np.uint32),
        np.ones(steps, np.float32),
        np.empty(2 * steps, np.float32),
        np.empty(2 * steps, np.float32),
        np.empty(cells, np.float32),
        np.empty(cells if back else 0, np.float32),
        np.empty(cells if back and many else 0),
    )


@nb.njit(cache=True, nogil=True, parallel=True)
def project(mode, tasks, pairs, starts, crystal_xy, ring_z, rings, tof_bin, doses, space, images, values, weight, background,
            backs, many):  # fmt: skip
    """Project sorted events through the images of their doses.

    Parameters
    ----------
    mode : int
        FORWARD, ADJOINT or EM; see `_project_pair`.
    tasks : int64 (tasks, 4)
        Dose, first pair, last pair + 1, and the place in `backs`. A fixed partition, so that sums are bit for bit the same
        with any number of threads.
    pairs : uint16 (pairs, 2)
        Crystals of each pair.
    starts : int64 (pairs + 1,)
        First event of each pair.
    crystal_xy, ring_z : float64 (crystals, 2), (rings,)
        Positions in mm.
    rings, tof_bin, doses : uint16 (events, 2), int16 (events,), uint8 (events,)
        Events by pair, those of most doses first.
    space : Space
    images : float32 (doses, cells)
        Padded images; not read by ADJOINT.
    values : float32 (doses, events)
        Zeros for FORWARD; not read by EM.
    weight, background : float32 (events,), (doses or 1, events)
        Read by EM.
    backs : float32 (places, cells)
        Not written by FORWARD.
    many : bool
        Whether any pair has more than FLUSH events.
    """
    for task in nb.prange(len(tasks)):
        d = tasks[task, 0]
        work = _make_work(space, mode != FORWARD, many)
        image = images[d % images.shape[0]]
        back = backs[tasks[task, 3] % backs.shape[0]]
        more = background[d % background.shape[0]]
        for p in range(tasks[task, 1], tasks[task, 2]):
            last = starts[p]
            while last < starts[p + 1] and doses[last] > d:
                last += 1
            if last - starts[p] > FEW:
                _project_pair(mode, crystal_xy[pairs[p, 0]], crystal_xy[pairs[p, 1]], starts[p], last, rings, tof_bin,
                              ring_z, space, image, values[d], weight, more, back, work)  # fmt: skip
            elif last > starts[p]:
                _project_few(mode, crystal_xy[pairs[p, 0]], crystal_xy[pairs[p, 1]], starts[p], last, rings, tof_bin,
                             ring_z, space, image, values[d], weight, more, back, work)  # fmt: skip


@nb.njit(cache=True, nogil=True, parallel=True)
def pad(images, support, space, out):
    """Fill padded flat images from (doses, x, y, z), with zeros where `support` (x, y) does not hold."""
    doses, nx, ny, nz = images.shape
    slabs = nx + 2 * PAD
    for task in nb.prange(doses * slabs):
        d, x = task // slabs, np.int64(task % slabs) - PAD
        begin = np.int64(x + PAD) * space.stride_x
        slab = out[d, begin : begin + space.stride_x]
        if x == nx - 1 + PAD:
            out[d, begin + space.stride_x :] = _F32(0)
        for row in range(ny + 2 * PAD):
            y, to = np.int64(row) - PAD, slab[row * space.stride_y : (row + 1) * space.stride_y]
            if 0 <= x < nx and 0 <= y < ny and support[x, y]:
                to[:PAD] = _F32(0)
                to[PAD : PAD + nz] = images[d, x, y]
                to[PAD + nz :] = _F32(0)
                to[PAD - 1], to[PAD + nz] = to[PAD], to[PAD + nz - 1]
            else:
                to[:] = _F32(0)


@nb.njit(cache=True, nogil=True, parallel=True)
def sum_parts(backs, first, support, space, images):
    """Fill images (doses, x, y, z) with sums of `backs` where `support` holds, elsewhere with zeros.

    Those of dose d are first[d] ... first[d + 1] - 1. The copies of the outermost planes are added to these.
    """
    doses, nx, ny, nz = images.shape
    for task in nb.prange(doses * nx):
        d, x = task // nx, task % nx
        total = np.empty(nz + 2 * PAD, np.float32)
        for y in range(ny):
            row = images[d, x, y]
            if not support[x, y]:
                row[:] = _F32(0)
                continue
            at = (x + PAD) * space.stride_x + (y + PAD) * space.stride_y
            total[:] = backs[first[d], at : at + total.size]
            for part in range(first[d] + 1, first[d + 1]):
                more = backs[part, at : at + total.size]
                for z in range(total.size):
                    total[z] += more[z]
            total[PAD] += total[PAD - 1]
            total[PAD + nz - 1] += total[PAD + nz]
            row[:] = total[PAD : PAD + nz]
