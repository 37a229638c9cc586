"""Axially vectorized Joseph kernels (numba, CPU).

For one (view, radial) all ring pairs share one transaxial line. Joseph's method (doi 10.1109/TMI.1982.4307572) steps
along the principal transaxial axis and interpolates linearly, so the image is interpolated across the line once for all
ring pairs, `plane_image[step, z]`, and every ring pair is a line inside this plane. The planes of a *set* have one ring
difference and lie a whole number of voxels (`phases`) apart: at one step they read `plane_image` at consecutive z with one
common fraction. Voxels are kept apart by their index modulo `phases`, so that those reads are contiguous. Planes that lie
no whole number of voxels apart are sets of one.

Steps are worked on in blocks whose planes stay in the L1 cache.

Without TOF a LOR costs a few terms a *voxel boundary* that it crosses axially, not a few a step. Along a LOR at axial
position g(s) = g0 + b s (voxels) the weight of voxel k is hat(g(s) - k), and a hat is the second difference of a ramp:

    sum_s P[s, k] hat(g(s) - k), summed over k  =  sum_s sum_k Q[s, k] ramp(g(s) - k),
    Q[s, k] = P[s, k - 1] - 2 P[s, k] + P[s, k + 1].

With the sums C[j] = sum of P[s] over s < j and D[j] = sum of C[i] over i <= j in a block of n steps, J = floor(g(n - 1)) and
u = g(n) - J this becomes, with D interpolated linearly at the real-valued step t_k at which g crosses k,

    (1 - u) C[n, J] + b D[n, J] + u C[n, J + 1] - b D[n, J + 1] + |b| sum of second_difference(D(t_k))[k]

over the k crossed between g(0) and g(n - 1): the same weights as step by step, term by term.

With TOF, weights depend on (|ring difference|, step, bin) only: `plane_image` is sheared along the LORs and multiplied by
the banded matrix of TOF weights.

Interpolation would let an image fade out over the voxel beyond its last plane. The outermost planes are taken to reach
their outer faces instead, and nothing lies beyond: in the zone between the last voxel center and one voxel on, at position
g in (-1, 0) from it, `_edge_weight` is added to the interpolated plane's weight. LORs of a ring difference meet that zone at
a few depths only, so that fading would not average out to the chord.

The adjoint runs the transpose of the same loops in reverse. Everything here works on bare arrays prepared by
`petsim.projectors.sinogram`.
"""

import numba as nb
import numpy as np

from petsim.projectors.rows import combine, differentiate, integrate, shear, spread, unshear

CHUNK = 64
"""Planes (lanes) multiplied by the TOF weights at once."""

FORWARD_TASKS = 64
"""Forward projection is cut into this many tasks, enough to keep the cores of a large machine busy."""

ROUNDING = 3e-6
"""Error of the sums without TOF, as a fraction of the largest line integral of a (view, radial)."""

FACE = -0.5 - 1e-6
"""Position of the outer face of an image's outermost planes from their centers, in voxels: a LOR in the face is inside."""

Z_PAD = 2
"""Zero voxels of every phase before and after each column of the padded image."""

_FAST = {"contract", "nsz", "arcp"}
_F32 = np.float32


@nb.njit(cache=True, nogil=True, parallel=True)
def to_order(images, support, prepared):
    """Fill `prepared` (n, padded x y, phase, padded z), zero before, with images (n, x, y, z) where `support` holds."""
    count, nx, ny, nz = images.shape
    phases = prepared.shape[2]
    for task in nb.prange(count * nx):
        m, x = task // nx, task % nx
        for y in range(ny):
            if support[x, y]:
                out, row = prepared[m, (x + 1) * (ny + 2) + y + 1], images[m, x, y]
                for phase in range(phases):
                    for k in range((nz - phase + phases - 1) // phases):
                        out[phase, Z_PAD + k] = row[phase + k * phases]


@nb.njit(cache=True, nogil=True, parallel=True)
def from_order(sums, support, images):
    """Inverse of `to_order` for the sum over the parts of `sums` (n, part, padded x y, phase, padded z)."""
    count, nx, ny, nz = images.shape
    parts, phases = sums.shape[1], sums.shape[3]
    for task in nb.prange(count * nx):
        m, x = task // nx, task % nx
        for y in range(ny):
            row = images[m, x, y]
            row[:] = _F32(0)
            if support[x, y]:
                for part in range(parts):
                    own = sums[m, part, (x + 1) * (ny + 2) + y + 1]
                    for phase in range(phases):
                        for k in range((nz - phase + phases - 1) // phases):
                            row[phase + k * phases] += own[phase, Z_PAD + k]


@nb.njit(cache=True, nogil=True)
def _trace(ends, geometry, support_mm, voxel, low, high, fraction):
    """Steps of a transaxial line through the padded image.

    `geometry` is (nx, ny, voxel x, voxel y, x of the first voxel, y of it) and `voxel` the values a transaxial voxel of the
    padded image holds. Fills, by step, the offsets `low` and `high` of the two interpolated voxels in the padded image and
    the `fraction` of the second. Returns (steps, signed distance of step 0 along the line from the middle of its chord,
    distance to the next step, chord length).
    """
    nx, ny = int(geometry[0]), int(geometry[1])
    vx, vy, ox, oy = geometry[2], geometry[3], geometry[4], geometry[5]
    x1, y1, x2, y2 = ends[0], ends[1], ends[2], ends[3]
    dx, dy = x2 - x1, y2 - y1
    chord = np.sqrt(dx * dx + dy * dy)
    xm, ym = 0.5 * (x1 + x2), 0.5 * (y1 + y2)
    along_x = abs(dx) >= abs(dy)
    if along_x:
        n, limit, step = nx, ny, vx * chord / dx
        t0, other0, slope = (ox - xm) * chord / dx, (ym - oy) / vy, dy / chord / vy
        major, minor = (ny + 2) * voxel, voxel
    else:
        n, limit, step = ny, nx, vy * chord / dy
        t0, other0, slope = (oy - ym) * chord / dy, (xm - ox) / vx, dx / chord / vx
        major, minor = voxel, (ny + 2) * voxel
    # An interpolated sample sees voxels up to one voxel away, so the line is cut that much outside the support.
    radius = support_mm + max(vx, vy)
    middle, reach = 0.0, chord
    if support_mm > 0:
        distance = (x1 * y2 - x2 * y1) / chord
        if abs(distance) >= radius:
            return 0, 0.0, step, chord
        middle, reach = -(xm * dx + ym * dy) / chord, np.sqrt(radius * radius - distance * distance)
    steps, first = 0, 0
    for i in range(n):
        t = t0 + i * step
        other = other0 + t * slope
        if abs(t - middle) > reach or other <= -1.0 or other >= limit:
            continue
        if steps == 0:
            first = i
        j = int(np.floor(other))
        fraction[steps] = _F32(other - j)
        low[steps] = (i + 1) * major + (j + 1) * minor
        high[steps] = low[steps] + minor
        steps += 1
    return steps, t0 + first * step, step, chord


@nb.njit(cache=True, nogil=True)
def _place_sets(sets, along, step, chord, z_geometry, lines):
    """lines[n] = voxel position of a set's first plane at step 0, its change a step, and the step's length in 3D."""
    inverse = 1.0 / z_geometry[1]
    for n in range(sets.shape[0]):
        slope = sets[n, 0] / chord
        lines[n, 0] = (sets[n, 1] - z_geometry[2] + along * slope) * inverse
        lines[n, 1] = step * slope * inverse
        lines[n, 2] = abs(step) * np.sqrt(1.0 + slope * slope)


@nb.njit(cache=True, nogil=True)
def _lanes_within(position, slope, count, phases, nz, planes, width):
    """Half-open range of the planes p with -1 < phases p + position < nz at one of the steps of a block.

    Where the set is filled up to a multiple of 8 lanes, so is the range.
    """
    end = position + slope * (count - 1)
    inverse = 1.0 / phases
    first = max(0, int(np.ceil((-1.0 - max(position, end)) * inverse)))
    last = min(planes, int(np.floor((nz - min(position, end)) * inverse)) + 1)
    if width % 8 == 0:
        first, last = first & ~7, (last + 7) & ~7
    return first, last


@nb.njit(cache=True, nogil=True)
def _crossing_terms(position, slope, count, phases, pad, shape, scale, offsets, coefs):
    """Terms of a LOR in a block: see the module's docstring. Returns their number.

    `position` is the voxel position at the block's first step, `slope` its change a step, `shape` that of the block's rows.
    """
    length = shape[2]
    row = phases * length
    end = np.floor(position + slope * (count - 1))
    u = position + slope * count - end
    begin, last = int(np.floor(position)), int(end)
    column = int(np.floor((end + 0.5) * (1.0 / phases)))
    phase = last - column * phases
    here = phase * length + pad + column
    above = here + length if phase < phases - 1 else pad + column + 1
    c_row, d_row = (shape[0] - 2) * row, (shape[0] - 1) * row
    offsets[0], coefs[0] = c_row + here, _F32(scale * (1.0 - u))
    offsets[1], coefs[1] = d_row + here, _F32(scale * slope)
    offsets[2], coefs[2] = c_row + above, _F32(scale * u)
    offsets[3], coefs[3] = d_row + above, _F32(-scale * slope)
    terms = 4
    if begin == last:
        return terms
    inverse, weight = 1.0 / slope, scale * abs(slope)
    # From the crossing next to the last step's voxel back to the first step's.
    rising = begin < last
    for n in range(abs(last - begin)):
        k = last - n if rising else last + 1 + n
        if not rising:
            phase += 1
            if phase == phases:
                phase = 0
                column += 1
        t = (k - position) * inverse
        top = np.ceil(t)
        j = min(max(int(top), 1), count)
        f = 1.0 - (j - t)
        at = j * row + phase * length + pad + column
        offsets[terms], coefs[terms] = at, _F32(weight * f)
        terms += 1
        if j > 1:
            offsets[terms], coefs[terms] = at - row, _F32(weight * (1.0 - f))
            terms += 1
        if rising:
            phase -= 1
            if phase < 0:
                phase = phases - 1
                column -= 1
    return terms


@nb.njit(cache=True, nogil=True)
def _single_plane(back, position, slope, count, pad, rows, scale, value):
    """The sum of the terms of `_crossing_terms` for a set of one plane, or with `back` their transpose: a term at a time.

    With one phase only. Returns the sum; `value` is what the transpose adds.
    """
    end = np.floor(position + slope * (count - 1))
    begin = np.floor(position)
    u = position + slope * count - end
    c, d = rows[rows.shape[0] - 2, 0], rows[rows.shape[0] - 1, 0]
    here = np.uint64(int(end) + pad)
    above = np.uint64(int(end) + pad + 1)
    f, b = _F32(scale * u), _F32(scale * slope)
    g = _F32(scale) - f
    total = _F32(0)
    if back:
        c[here] += g * value
        c[above] += f * value
        d[here] += b * value
        d[above] -= b * value
    else:
        total = g * c[here] + f * c[above] + b * (d[here] - d[above])
    if begin == end:
        return total
    inverse, weight = 1.0 / slope, _F32(scale * abs(slope))
    low, high = min(begin, end) + 1.0, max(begin, end)
    first, change = (low - position) * inverse, inverse
    column = int(low) + pad
    for n in range(int(high - low) + 1):
        t = first + n * change
        top = min(max(np.ceil(t), 1.0), float(count))
        j = int(top)
        f = _F32(1.0 - (top - t))
        at = np.uint64(column + n)
        if back:
            part = weight * value
            rows[np.uint64(j), 0, at] += f * part
            rows[np.uint64(j - 1), 0, at] += part - f * part
        else:
            upper, lower = rows[np.uint64(j), 0, at], rows[np.uint64(j - 1), 0, at]
            total += weight * (lower + f * (upper - lower))
    return total


@nb.njit(cache=True, nogil=True)
def _edge_planes(edge, position, slope, count, phases, nz, planes):
    """Planes of a set that come within a voxel beyond the first (edge = 0) or last (1) plane of the image.

    Returns their half-open range, and position, its change a plane and its change a step, all counted inwards from that
    plane's center.
    """
    start, step, change = position, float(phases), slope
    if edge == 1:
        start, step, change = nz - 1 - position, -step, -slope
    end = start + change * (count - 1)
    low, high = min(start, end), max(start, end)
    # low + step p < 0 and high + step p > -1
    first, last = (-1.0 - high) / step, -low / step
    if edge == 1:
        first, last = last, first
    return max(0, int(np.floor(first)) + 1), min(planes, int(np.ceil(last))), start, step, change


@nb.njit(cache=True, nogil=True)
def _edge_weight(g):
    """What is added to the outermost plane's weight at position g inwards of its center: to 1 up to the face, else to 0."""
    if g >= 0.0 or g <= -1.0:
        return 0.0
    return -g if g >= FACE else -1.0 - g


@nb.njit(cache=True, nogil=True)
def _edge_ranges(position, slope, steps, bounds):
    """Steps at which a LOR lies in the two halves of the zone beyond an outermost plane.

    Fills bounds[k] with the steps between which position + s slope lies in (-1, FACE) for k = 0 and [FACE, 0) for k = 1.
    """
    rising = slope > 0
    at = bounds[2]
    for k in range(3):
        value = FACE if k == 1 else k / 2.0 - 1.0
        if slope == 0.0:
            at[k] = 0 if position >= value else steps
        else:
            t = min(max((value - position) / slope, -1.0), float(steps))
            at[k] = int(np.ceil(t)) if rising else int(np.floor(t)) + 1
        at[k] = min(max(at[k], 0), steps)
    if rising or slope == 0.0:
        bounds[0, 0], bounds[0, 1], bounds[1, 0], bounds[1, 1] = at[0], at[1], at[1], at[2]
    else:
        bounds[0, 0], bounds[0, 1], bounds[1, 0], bounds[1, 1] = at[1], at[0], at[2], at[1]


@nb.njit(cache=True, nogil=True)
def _edges_plain(back, sets, active, lines, steps, z_geometry, image, low, high, fraction, values, edge_sums):
    """Add the outermost planes' extra weights to line integrals, or with `back` the transpose, from sums over steps."""
    nz, phases = int(z_geometry[0]), int(z_geometry[3])
    flat = image.reshape(-1)
    bounds = np.zeros((3, 3), np.int64)
    for edge in range(2):
        k = 0 if edge == 0 else nz - 1
        column = (k % phases) * image.shape[2] + Z_PAD + k // phases
        ready = False
        for n in range(sets.shape[0]):
            if not active[n]:
                continue
            first, last, start, step, change = _edge_planes(edge, lines[n, 0], lines[n, 1], steps, phases, nz,
                                                            int(sets[n, 2]))  # fmt: skip
            if first >= last:
                continue
            if not ready:
                ready = True
                edge_sums[: steps + 1] = 0.0
                if not back:
                    for s in range(steps):
                        a, b = flat[low[s] + column], flat[high[s] + column]
                        p = a + fraction[s] * (b - a)
                        edge_sums[s + 1, 0] = edge_sums[s, 0] + p
                        edge_sums[s + 1, 1] = edge_sums[s, 1] + s * p
            for plane in range(first, last):
                position = start + step * plane
                _edge_ranges(position, change, steps, bounds)
                lane, scale = int(sets[n, 5]) + plane, lines[n, 2]
                for half in range(2):
                    s, end = bounds[half, 0], bounds[half, 1]
                    if s >= end:
                        continue
                    constant = -scale * (position + 1.0 - half)
                    if back:
                        edge_sums[end, 0] += constant * values[lane]
                        edge_sums[s, 0] -= constant * values[lane]
                        edge_sums[end, 1] -= scale * change * values[lane]
                        edge_sums[s, 1] += scale * change * values[lane]
                    else:
                        values[lane] += _F32(
                            constant * (edge_sums[end, 0] - edge_sums[s, 0])
                            - scale * change * (edge_sums[end, 1] - edge_sums[s, 1])
                        )
        if back and ready:
            single, weighted = 0.0, 0.0
            for s in range(steps - 1, -1, -1):
                single += edge_sums[s + 1, 0]
                weighted += edge_sums[s + 1, 1]
                p = _F32(single + s * weighted)
                flat[low[s] + column] += (_F32(1) - fraction[s]) * p
                flat[high[s] + column] += fraction[s] * p


@nb.njit(cache=True, nogil=True)
def _edges_tof(back, lane, first_lane, last_lane, position, slope, count, phases, nz, planes, pad, rows, sheared):
    """The same for a set's planes in a chunk of sheared rows, lanes first_lane to last_lane - 1."""
    for edge in range(2):
        first, last, start, step, change = _edge_planes(edge, position, slope, count, phases, nz, planes)
        k = 0 if edge == 0 else nz - 1
        phase, column = k % phases, pad + k // phases
        for plane in range(max(first, first_lane - lane), min(last, last_lane - lane)):
            at = lane + plane - first_lane
            for s in range(count):
                weight = _F32(_edge_weight(start + step * plane + s * change))
                if back:
                    rows[s, phase, column] += weight * sheared[s, at]
                else:
                    sheared[s, at] += weight * rows[s, phase, column]


@nb.njit(cache=True, nogil=True)
def _line_plain(back, sets, active, lines, steps, z_geometry, image, low, high, fraction, values, work):
    """Without TOF: values[lane] = line integrals, or with `back` the transpose: adds the back projection to the image.

    A set with active[n] = False is left out.
    """
    rows, offsets, coefs, edge_sums = work[0][0], work[1], work[2], work[-1]
    nz, phases, pad = int(z_geometry[0]), int(z_geometry[3]), int(z_geometry[4])
    block, length, per_phase = rows.shape[0] - 3, rows.shape[2], image.shape[2]
    row, lanes = phases * length, per_phase - 2 * Z_PAD
    c_row, d_row = (block + 1) * row, (block + 2) * row
    if not back:
        rows[:] = _F32(0)
        values[:] = _F32(0)
    for first in range(0, steps, block):
        count = min(block, steps - first)
        near, far, share = low[first:steps], high[first:steps], fraction[first:steps]
        if back:
            rows[:] = _F32(0)
        else:
            for phase in range(phases):
                at = phase * per_phase + Z_PAD - 1
                below = at - per_phase if phase > 0 else at + (phases - 1) * per_phase - 1
                above = at + per_phase if phase < phases - 1 else Z_PAD
                place = phase * length + pad - 1
                integrate(image, near, far, share, count, at, below, above, rows, place, row, c_row + place, d_row + place,
                          lanes + 2)  # fmt: skip
        for n in range(sets.shape[0]):
            if not active[n]:
                continue
            slope = lines[n, 1]
            position = lines[n, 0] + first * slope
            p, last = _lanes_within(position, slope, count, phases, nz, int(sets[n, 2]), int(sets[n, 6]))
            if p >= last:
                continue
            lane = int(sets[n, 5]) + p
            if phases == 1 and sets[n, 6] == 1.0:
                values[lane] += _single_plane(back, position, slope, count, pad, rows, lines[n, 2], values[lane])
                continue
            terms = _crossing_terms(position, slope, count, phases, pad, rows.shape, lines[n, 2], offsets, coefs)
            if back:
                spread(rows, p, offsets, coefs, terms, values, lane, last - p)
            else:
                combine(values, lane, rows, p, offsets, coefs, 0, 1, terms, last - p, 1)
        if back:
            for phase in range(phases):
                here = phase * length + pad
                below = here - length if phase > 0 else here + (phases - 1) * length - 1
                above = here + length if phase < phases - 1 else pad + 1
                differentiate(image, near, far, share, count, phase * per_phase + Z_PAD, rows, here, below, above, row,
                              c_row + here, d_row + here, lanes)  # fmt: skip
    _edges_plain(back, sets, active, lines, steps, z_geometry, image, low, high, fraction, values, edge_sums)
    if not back:
        _drop_rounding(values)


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _tof_weights(center, step, count, full, tof, cdf, before, weights, bin_steps, first_bin, last_bin):
    """weights[bin, s] = integral of the TOF kernel over the bin for emission at center + s step, times `full`.

    `tof` is (bins, bin width, where the kernel is cut). The kernel's integral from -cut to x, less 1/2, is x/cut times the
    polynomial `cdf` (11 coefficients, highest power first) of (x/cut)^2. Fills bin_steps[bin], the half-open range of steps
    where the weight is not zero, and first_bin[s], last_bin[s], that of bins; returns the range of bins for all steps.
    """
    bins, width, cut = int(tof[0]), tof[1], tof[2]
    half, per_width = 0.5 * bins, 1.0 / width
    for s in range(count):
        x = center + s * step
        low, high = np.floor((x - cut) * per_width + half), np.ceil((x + cut) * per_width + half)
        first_bin[s] = int(min(max(low, 0.0), float(bins)))
        last_bin[s] = int(min(max(high, 0.0), float(bins)))
    low, high = min(center, center + step * (count - 1)), max(center, center + step * (count - 1))
    first = min(bins, max(0, int(np.floor((low - cut) * per_width + half))))
    last = min(bins, max(0, int(np.ceil((high + cut) * per_width + half))))
    inverse, per_cut = 1.0 / step, 1.0 / cut
    # By name, since a loop over the coefficients inside the loop over steps would keep that from being vectorized.
    c0, c1, c2, c3, c4, c5 = cdf[0], cdf[1], cdf[2], cdf[3], cdf[4], cdf[5]
    c6, c7, c8, c9, c10 = cdf[6], cdf[7], cdf[8], cdf[9], cdf[10]
    for b in range(first, last + 1 if last > first else first):
        edge = (b - half) * width
        start, change = (edge - center) * per_cut, -step * per_cut
        here = before[b & 1]
        for s in range(count):
            x = min(max(start + s * change, -1.0), 1.0)
            y = x * x
            here[s] = x * ((((((((((c0 * y + c1) * y + c2) * y + c3) * y + c4) * y + c5) * y + c6) * y + c7) * y + c8) * y
                            + c9) * y + c10)  # fmt: skip
        if b == first:
            continue
        # Steps beyond rounding, where the weight comes out as zero: none of first_bin ... last_bin may be missing.
        s1, s2 = (edge - width - cut - center) * inverse, (edge + cut - center) * inverse
        bin_steps[b - 1, 0] = min(count, max(0, int(np.floor(min(s1, s2)))))
        bin_steps[b - 1, 1] = max(bin_steps[b - 1, 0], min(count, int(np.ceil(max(s1, s2))) + 1))
        out, low_edge = weights[b - 1], before[(b & 1) ^ 1]
        for s in range(count):
            out[s] = _F32(full * (here[s] - low_edge[s]))
    return first, last


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _shear_offsets(position, slope, count, phases, pad, shape, low, high, fraction):
    """Offsets in the rows of the voxels below and above a LOR at every step of a block, and the fraction of the second."""
    length = shape[2]
    row, inverse = phases * length, 1.0 / phases
    for s in range(count):
        x = position + s * slope
        k = np.floor(x)
        column = np.floor((k + 0.5) * inverse)
        above = np.floor((k + 1.5) * inverse)
        fraction[s] = _F32(x - k)
        start = s * row + pad
        low[s] = start + int((k - column * phases) * length + column)
        high[s] = start + int((k + 1.0 - above * phases) * length + above)


@nb.njit(cache=True, nogil=True)
def _zero(sheared, count, first, last):
    """Zero some lanes of a block's sheared rows."""
    for s in range(count):
        for p in range(first, last):
            sheared[s, p] = _F32(0)


@nb.njit(cache=True, nogil=True)
def _line_tof(back, sets, groups, active, lines, steps, z_geometry, step_along, tof, cdf, images, part, low, high, fraction,
              values, work):  # fmt: skip
    """With TOF: values[image, bin, lane], or with `back` the transpose. `groups` are sets that share TOF weights.

    `active` is (images, groups); of `images` (images, parts, ...) one part is projected. `step_along` is the distance of
    step 0 from the chord's middle and of one step to the next, in the transaxial plane.
    """
    all_rows = work[0]
    sheared, before, weights, bin_steps, first_bin, last_bin = work[3:9]
    below, above, share, lane_rows, chunk_rows = work[9:14]
    nz, phases, pad = int(z_geometry[0]), int(z_geometry[3]), int(z_geometry[4])
    block, length, per_phase = all_rows.shape[1] - 3, all_rows.shape[3], images.shape[4]
    count_of_images, lanes = values.shape[0], values.shape[2]
    along, step = step_along
    if not back:
        all_rows[:] = _F32(0)
        values[:] = _F32(0)
    for first in range(0, steps, block):
        count = min(block, steps - first)
        near, far, near_far = low[first:steps], high[first:steps], fraction[first:steps]
        if back:
            all_rows[:] = _F32(0)
        else:
            for m in range(count_of_images):
                for phase in range(phases):
                    shear(all_rows[m], phase * length + pad, phases * length, images[m, part], phase * per_phase + Z_PAD,
                          near, far, near_far, count, per_phase - 2 * Z_PAD)  # fmt: skip
        for n in range(groups.shape[0]):
            if not active[:, n].any():
                continue
            set_first, set_last, lane_first, lane_last = groups[n, 0], groups[n, 1], groups[n, 2], groups[n, 3]
            stretch = lines[set_first, 2] / abs(step)
            b_first, b_last = _tof_weights((along + first * step) * stretch, step * stretch, count, lines[set_first, 2],
                                           tof, cdf, before, weights, bin_steps, first_bin, last_bin)  # fmt: skip
            if b_first == b_last:
                continue
            for chunk in range(lane_first, lane_last, CHUNK):
                chunk_last = min(chunk + CHUNK, lane_last)
                size = chunk_last - chunk
                for m in range(count_of_images):
                    if not active[m, n]:
                        continue
                    rows, own = all_rows[m], values[m]
                    if back:
                        for s in range(count):
                            b = first_bin[s]
                            combine(sheared, s * CHUNK, own, b * lanes + chunk, lane_rows, weights, b * block + s, block,
                                    last_bin[s] - b, size, 0)  # fmt: skip
                    done = chunk
                    for k in range(set_first, set_last):
                        lane, width = int(sets[k, 5]), int(sets[k, 6])
                        if lane + width <= chunk or lane >= chunk_last:
                            continue
                        slope = lines[k, 1]
                        position = lines[k, 0] + first * slope
                        p, p_last = _lanes_within(position, slope, count, phases, nz, int(sets[k, 2]), width)
                        p, p_last = max(p, chunk - lane), min(p_last, chunk_last - lane)
                        if p >= p_last:
                            continue
                        _shear_offsets(position, slope, count, phases, pad, rows.shape, below, above, share)
                        at = lane + p - chunk
                        planes = int(sets[k, 2])
                        if back:
                            _edges_tof(True, lane, chunk, chunk_last, position, slope, count, phases, nz, planes, pad, rows,
                                       sheared)  # fmt: skip
                            unshear(rows, p, below, above, share, count, sheared, at, CHUNK, p_last - p)
                        else:
                            _zero(sheared, count, done - chunk, at)
                            shear(sheared, at, CHUNK, rows, p, below, above, share, count, p_last - p)
                            _edges_tof(False, lane, chunk, chunk_last, position, slope, count, phases, nz, planes, pad, rows,
                                       sheared)  # fmt: skip
                            done = lane + p_last
                    if not back and done > chunk:
                        _zero(sheared, count, done - chunk, size)
                        for b in range(b_first, b_last):
                            s = bin_steps[b, 0]
                            combine(own, b * lanes + chunk, sheared, s * CHUNK, chunk_rows, weights, b * block + s, 1,
                                    bin_steps[b, 1] - s, size, 1)  # fmt: skip
        if back:
            for m in range(count_of_images):
                for phase in range(phases):
                    unshear(images[m, part], phase * per_phase + Z_PAD, near, far, near_far, count, all_rows[m],
                            phase * length + pad, phases * length, per_phase - 2 * Z_PAD)  # fmt: skip


@nb.njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _read(data, sets, values, active):
    """Planes to lanes for all bins of a line; active[n] tells whether set n holds anything but zeros."""
    for n in range(sets.shape[0]):
        planes, start, stride, lane = int(sets[n, 2]), int(sets[n, 3]), int(sets[n, 4]), int(sets[n, 5])
        some = False
        for b in range(data.shape[0]):
            out = values[b, lane : lane + planes]
            if stride == 1:
                row = data[b, start : start + planes]
            else:
                row = data[b, start : start + (planes - 1) * stride + 1 : stride]
            # A sum of magnitudes vectorizes, a search does not; it is zero only where all values are.
            total = _F32(0)
            for p in range(planes):
                v = _F32(row[p])
                out[p] = v
                total += abs(v)
            some = some or total != _F32(0)
        active[n] = some


@nb.njit(cache=True, nogil=True)
def _write(data, sets, values):
    """Inverse of `_read`."""
    for n in range(sets.shape[0]):
        planes, start, stride, lane = int(sets[n, 2]), int(sets[n, 3]), int(sets[n, 4]), int(sets[n, 5])
        for b in range(data.shape[0]):
            row = values[b, lane : lane + planes]
            if stride == 1:
                out = data[b, start : start + planes]
            else:
                out = data[b, start : start + (planes - 1) * stride + 1 : stride]
            for p in range(planes):
                out[p] = row[p]


@nb.njit(cache=True, nogil=True)
def _add_background(background, sets, values):
    """Add planes to lanes, for all bins of a line."""
    for n in range(sets.shape[0]):
        planes, start, stride, lane = int(sets[n, 2]), int(sets[n, 3]), int(sets[n, 4]), int(sets[n, 5])
        for b in range(background.shape[0]):
            row = values[b, lane : lane + planes]
            if stride == 1:
                more = background[b, start : start + planes]
            else:
                more = background[b, start : start + (planes - 1) * stride + 1 : stride]
            for p in range(planes):
                row[p] += more[p]


@nb.njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _ratio(values, expected):
    """values = values / expected where something is expected and values are finite, else 0."""
    for b in range(values.shape[0]):
        for p in range(values.shape[1]):
            e, v = expected[b, p], values[b, p]
            values[b, p] = v / e if e > _F32(0) and abs(v) < _F32(np.inf) else _F32(0)


@nb.njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _drop_rounding(values):
    """Zero what is below ROUNDING of the line's largest value: LORs beside the object would else get +-1e-7 of it."""
    largest = _F32(0)
    for p in range(values.shape[0]):
        largest = max(largest, abs(values[p]))
    least = largest * _F32(ROUNDING)
    for p in range(values.shape[0]):
        v = values[p]
        values[p] = v if abs(v) >= least else _F32(0)


FORWARD, ADJOINT, EM = 0, 1, 2


@nb.njit(cache=True, nogil=True)
def _project_line(mode, ends, geometry, support_mm, sets, groups, z_geometry, tof, cdf, images, data, background, backs,
                  part, scratch):  # fmt: skip
    """Project all planes and TOF bins of one (view, radial), through several images, which share what depends on the line.

    Parameters
    ----------
    mode : int
        FORWARD writes `data`; ADJOINT adds the back projection of `data` to `backs`; EM adds that of
        data / (forward(image) + background).
    sets : float64 (n, 7)
        Plane sets with one ring difference, whose planes lie `phases` voxels apart: axial distance of the two ends in
        mm (z2 - z1), z of the first plane at the middle of the LOR in mm, planes, first index and stride in the
        sinogram, first lane, lanes.
    groups : int64 (m, 4)
        Runs of sets with one |z2 - z1|: first and last + 1 set, first and last + 1 lane.
    z_geometry : (voxels, voxel size, z of the first, phases, pad)
    images, backs : (images, parts, x y, phase, z) padded by one transaxial voxel and Z_PAD axial ones; `backs` has several
        parts, of which `part` is added to
    data, background : (images, bins, planes); `background` with no bins where there is none
    scratch : arrays of `_make_scratch`
    """
    low, high, fraction, values, expected, active, group_active, lines, work = scratch
    voxel = images.shape[3] * images.shape[4]
    steps, along, step, chord = _trace(ends, geometry, support_mm, voxel, low, high, fraction)
    if steps == 0:
        if mode == FORWARD:
            data[:] = 0
        return
    count = data.shape[0]
    if mode == FORWARD:
        active[:] = True
        group_active[:] = True
    else:
        for m in range(count):
            _read(data[m], sets, values[m], active[m])
            for n in range(groups.shape[0]):
                group_active[m, n] = active[m, groups[n, 0] : groups[n, 1]].any()
        if not group_active[:count].any():
            return
    _place_sets(sets, along, step, chord, z_geometry, lines)
    for direction in range(2):
        if (mode == FORWARD and direction == 1) or (mode == ADJOINT and direction == 0):
            continue
        targets, at, lanes = (backs, part, values) if direction == 1 else (images, 0, expected)
        if tof[1] == 0.0:
            for m in range(count):
                _line_plain(direction == 1, sets, active[m], lines, steps, z_geometry, targets[m, at], low, high,
                            fraction, lanes[m, 0], work)  # fmt: skip
        else:
            _line_tof(direction == 1, sets, groups, group_active[:count], lines, steps, z_geometry, (along, step), tof, cdf,
                      targets, at, low, high, fraction, lanes[:count], work)  # fmt: skip
        if direction == 1:
            continue
        for m in range(count):
            if mode == FORWARD:
                _write(data[m], sets, expected[m])
            else:
                _add_background(background[m], sets, expected[m])
                _ratio(values[m], expected[m])


@nb.njit(cache=True, nogil=True)
def _make_scratch(images, geometry, sets, groups, z_geometry, tof, block):
    """Scratch arrays of one thread for so many images at once."""
    steps = int(max(geometry[0], geometry[1]))
    bins, lanes = int(tof[0]), groups[-1, 3]
    phases, pad = int(z_geometry[3]), int(z_geometry[4])
    length = int(np.ceil(z_geometry[0] / phases)) + 2 * pad
    terms = 8 + 2 * phases * (2 * pad + 2)
    work = (
        np.zeros((images if tof[1] > 0.0 else 1, block + 3, phases, length), np.float32),
        np.zeros(terms, np.int64),
        np.zeros(terms, np.float32),
        np.zeros((block, CHUNK), np.float32),
        np.zeros((2, block)),
        np.zeros((bins, block), np.float32),
        np.zeros((bins, 2), np.int64),
        np.zeros(block, np.int64),
        np.zeros(block, np.int64),
        np.zeros(block, np.int64),
        np.zeros(block, np.int64),
        np.zeros(block, np.float32),
        np.arange(bins) * lanes,
        np.arange(block) * CHUNK,
        np.zeros((steps + 1, 2)),
    )
    return (
        np.zeros(steps, np.int64),
        np.zeros(steps, np.int64),
        np.zeros(steps, np.float32),
        np.zeros((images, bins, lanes), np.float32),
        np.zeros((images, bins, lanes), np.float32),
        np.zeros((images, sets.shape[0]), np.bool_),
        np.zeros((images, groups.shape[0]), np.bool_),
        np.zeros((sets.shape[0], 3)),
        work,
    )


@nb.njit(cache=True, nogil=True, parallel=True)
def forward(ends, geometry, support_mm, sets, groups, z_geometry, tof, cdf, block, image, data):
    """Fill `data` (views, radials, bins, planes) with line integrals of the padded image."""
    views, radials = data.shape[0], data.shape[1]
    images = image.reshape((1, 1, *image.shape))
    for task in nb.prange(FORWARD_TASKS):
        scratch = _make_scratch(1, geometry, sets, groups, z_geometry, tof, block)
        for line in range(task, views * radials, FORWARD_TASKS):
            v, r = line // radials, line % radials
            _project_line(FORWARD, ends[v, r], geometry, support_mm, sets, groups, z_geometry, tof, cdf, images,
                          data[v, r : r + 1], data[v, r : r + 1, :0], images, 0, scratch)  # fmt: skip


@nb.njit(cache=True, nogil=True, parallel=True)
def back_project(mode, ends, geometry, support_mm, sets, groups, z_geometry, tof, cdf, block, together, images, data,
                 background, backs):  # fmt: skip
    """Add the (EM) back projection of `data` (images, views, radials, bins, planes) to `backs`, `together` images at once.

    `background` is like `data`, or has no bins where there is none.

    `backs` is (images, parts, ...): radial bin r always goes to part r % parts, whatever the number of threads and however
    views are cut into calls, so that sums are bit for bit the same.
    """
    parts, views, radials = backs.shape[1], data.shape[1], data.shape[2]
    wholes = images.reshape((images.shape[0], 1, *images.shape[1:]))
    portions = (data.shape[0] + together - 1) // together
    for task in nb.prange(portions * parts):
        portion, part = task // parts, task % parts
        m = slice(portion * together, min((portion + 1) * together, data.shape[0]))
        scratch = _make_scratch(m.stop - m.start, geometry, sets, groups, z_geometry, tof, block)
        for v in range(views):
            for r in range(part, radials, parts):
                _project_line(mode, ends[v, r], geometry, support_mm, sets, groups, z_geometry, tof, cdf, wholes[m],
                              data[m, v, r], background[m, v, r], backs[m], part, scratch)  # fmt: skip
