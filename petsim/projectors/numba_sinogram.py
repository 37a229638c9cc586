"""Axially vectorized Joseph kernels (numba, CPU).

For one (view, radial) all ring pairs share one transaxial line. Joseph's method (doi 10.1109/TMI.1982.4307572) steps
along the principal transaxial axis and interpolates linearly, so

1. the image is interpolated across the line once for all ring pairs: `plane_image[step, z]` (`_gather`);
2. the LORs of one ring difference are axial shifts of each other inside that plane: at one step they read
   `plane_image` at consecutive z with one common fraction, which is a contiguous vector operation (`_shear`);
3. TOF weights depend on (ring difference, step, bin) only, so the sheared plane times a banded matrix gives all TOF
   bins of a block of planes (`_to_bins`). Without TOF there is one bin that holds the step length.

The adjoint runs the transpose of the same loops in reverse. Voxel planes are kept apart by their index modulo
`phases` = voxels between neighboring sinogram planes, so that step 2 stays contiguous for any integer ratio.

Everything here works on bare arrays prepared by `petsim.projectors.sinogram`.
"""

import numba as nb
import numpy as np

BLOCK = 64
"""Planes worked on at once; a block of all steps stays in the L1 cache."""

FORWARD_TASKS = 64
"""Forward projection is cut into this many tasks, enough to keep the cores of a large machine busy."""

_FAST = {"contract", "nsz", "arcp"}
_F32 = np.float32


@nb.njit(cache=True, nogil=True)
def _trace(ends, geometry, support_mm, rows, fraction, along):
    """Steps of a transaxial line through the padded image.

    `geometry` is (nx, ny, voxel x, voxel y, x of the first voxel, y of it). Fills, by step, `rows` (indices x0, y0, x1,
    y1 of the two interpolated rows in the padded image), their `fraction` and the signed distance `along` the line from
    the middle of its chord. Returns (steps, step length in mm, chord length).
    """
    nx, ny = int(geometry[0]), int(geometry[1])
    vx, vy, ox, oy = geometry[2], geometry[3], geometry[4], geometry[5]
    x1, y1, x2, y2 = ends[0], ends[1], ends[2], ends[3]
    dx, dy = x2 - x1, y2 - y1
    chord = np.sqrt(dx * dx + dy * dy)
    xm, ym = 0.5 * (x1 + x2), 0.5 * (y1 + y2)
    along_x = abs(dx) >= abs(dy)
    n = nx if along_x else ny
    length = (vx * chord / abs(dx)) if along_x else (vy * chord / abs(dy))
    closest2 = xm * xm + ym * ym
    if support_mm > 0 and closest2 >= support_mm * support_mm:
        return 0, length, chord
    reach = np.sqrt(support_mm * support_mm - closest2) + length if support_mm > 0 else chord
    steps = 0
    for i in range(n):
        if along_x:
            t = (ox + i * vx - xm) * chord / dx
            other = (ym + t * dy / chord - oy) / vy
            limit = ny
        else:
            t = (oy + i * vy - ym) * chord / dy
            other = (xm + t * dx / chord - ox) / vx
            limit = nx
        if abs(t) > reach or other <= -1.0 or other >= limit:
            continue
        j = int(np.floor(other))
        fraction[steps] = other - j
        along[steps] = t
        if along_x:
            rows[steps, 0], rows[steps, 1], rows[steps, 2], rows[steps, 3] = i + 1, j + 1, i + 1, j + 2
        else:
            rows[steps, 0], rows[steps, 1], rows[steps, 2], rows[steps, 3] = j + 1, i + 1, j + 2, i + 1
        steps += 1
    return steps, length, chord


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _gather(image, rows, fraction, steps, pad, plane_image):
    """plane_image[step, phase, pad + z] = image interpolated across the line."""
    nz = image.shape[3]
    for s in range(steps):
        f = _F32(fraction[s])
        g = _F32(1) - f
        for phase in range(image.shape[2]):
            a = image[rows[s, 0], rows[s, 1], phase]
            b = image[rows[s, 2], rows[s, 3], phase]
            out = plane_image[s, phase, pad : pad + nz]
            for z in range(nz):
                out[z] = g * a[z] + f * b[z]


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _scatter(image, rows, fraction, steps, pad, plane_image):
    """Transpose of `_gather`: adds to the image."""
    nz = image.shape[3]
    for s in range(steps):
        f = _F32(fraction[s])
        g = _F32(1) - f
        for phase in range(image.shape[2]):
            a = image[rows[s, 0], rows[s, 1], phase]
            b = image[rows[s, 2], rows[s, 3], phase]
            p = plane_image[s, phase, pad : pad + nz]
            for z in range(nz):
                a[z] += g * p[z]
            for z in range(nz):
                b[z] += f * p[z]


@nb.njit(cache=True, nogil=True)
def _shifts(along, steps, first, slope, phases, pad, start, fraction):
    """Where plane 0 of a set reads `plane_image` at every step.

    `first` is the voxel index of plane 0 at the middle of the chord and `slope` its change a mm along the chord. Fills
    `start[step]` = (phase, index) of both voxels and the `fraction` of the second. Returns the lowest and highest
    voxel position over all steps.
    """
    low, high = 1e30, -1e30
    for s in range(steps):
        position = first + along[s] * slope
        low, high = min(low, position), max(high, position)
        base = int(np.floor(position))
        fraction[s] = position - base
        start[s, 0] = base % phases
        start[s, 1] = base // phases + pad
        start[s, 2] = (base + 1) % phases
        start[s, 3] = (base + 1) // phases + pad
    return low, high


@nb.njit(cache=True, nogil=True)
def _tof_weights(along, steps, length, stretch, tof, cdf, weights, bins_of, steps_of):
    """Integral of the TOF kernel over every bin, times the step length.

    `tof` is (bins, bin width, kernel sigma, sigmas), bins = 1 and width 0 without TOF. `cdf` tabulates the truncated and
    normalized kernel's integral. `bins_of[step]` and `steps_of[bin]` are the half-open ranges that are not zero.
    """
    bins, width, sigma, sigmas = int(tof[0]), tof[1], tof[2], tof[3]
    full = length * stretch
    if width == 0.0:
        steps_of[0, 0], steps_of[0, 1] = 0, steps
        for s in range(steps):
            weights[0, s] = full
            bins_of[s, 0], bins_of[s, 1] = 0, 1
        return
    for b in range(bins):
        steps_of[b, 0], steps_of[b, 1] = steps, 0
    scale = (cdf.size - 1) / (2.0 * sigmas)
    for s in range(steps):
        center = along[s] * stretch
        low = max(0, int(np.floor((center - sigmas * sigma) / width + 0.5 * bins)))
        high = min(bins, int(np.ceil((center + sigmas * sigma) / width + 0.5 * bins)))
        bins_of[s, 0], bins_of[s, 1] = low, max(low, high)
        before = 0.0
        for b in range(low, high + 1):
            position = (((b - 0.5 * bins) * width - center) / sigma + sigmas) * scale
            position = min(max(position, 0.0), cdf.size - 1.0)
            i = min(int(position), cdf.size - 2)
            value = cdf[i] + (position - i) * (cdf[i + 1] - cdf[i])
            if b > low:
                weights[b - 1, s] = full * (value - before)
                steps_of[b - 1, 0] = min(steps_of[b - 1, 0], s)
                steps_of[b - 1, 1] = max(steps_of[b - 1, 1], s + 1)
            before = value
    for b in range(bins):
        if steps_of[b, 1] <= steps_of[b, 0]:
            steps_of[b, 0], steps_of[b, 1] = 0, 0


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _shear(plane_image, start, fraction, first, last, offset, sheared):
    """sheared[step, p] = plane_image along the LOR of plane offset + p, for steps first ... last - 1."""
    for s in range(first, last):
        f = _F32(fraction[s])
        g = _F32(1) - f
        i, j = start[s, 1] + offset, start[s, 3] + offset
        a = plane_image[s, start[s, 0], i : i + BLOCK]
        b = plane_image[s, start[s, 2], j : j + BLOCK]
        out = sheared[s]
        for p in range(BLOCK):
            out[p] = g * a[p] + f * b[p]


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _unshear(plane_image, start, fraction, first, last, offset, sheared):
    """Transpose of `_shear`: adds to the plane image."""
    for s in range(first, last):
        f = _F32(fraction[s])
        g = _F32(1) - f
        i, j = start[s, 1] + offset, start[s, 3] + offset
        a = plane_image[s, start[s, 0], i : i + BLOCK]
        b = plane_image[s, start[s, 2], j : j + BLOCK]
        v = sheared[s]
        for p in range(BLOCK):
            a[p] += g * v[p]
        for p in range(BLOCK):
            b[p] += f * v[p]


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _to_bins(sheared, weights, steps_of, bins, values):
    """values[bin, p] = sum over steps of weights[bin, step] x sheared[step, p]; eight steps at a time."""
    for b in range(bins):
        s, end = steps_of[b, 0], steps_of[b, 1]
        out = values[b]
        w = weights[b]
        for p in range(BLOCK):
            out[p] = _F32(0)
        while s + 8 <= end:
            w0, w1, w2, w3 = w[s], w[s + 1], w[s + 2], w[s + 3]
            w4, w5, w6, w7 = w[s + 4], w[s + 5], w[s + 6], w[s + 7]
            for p in range(BLOCK):
                out[p] += (
                    (w0 * sheared[s, p] + w1 * sheared[s + 1, p]) + (w2 * sheared[s + 2, p] + w3 * sheared[s + 3, p])
                ) + ((w4 * sheared[s + 4, p] + w5 * sheared[s + 5, p]) + (w6 * sheared[s + 6, p] + w7 * sheared[s + 7, p]))
            s += 8
        while s < end:
            w0 = w[s]
            for p in range(BLOCK):
                out[p] += w0 * sheared[s, p]
            s += 1


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _from_bins(values, weights, bins_of, first, last, sheared):
    """Transpose of `_to_bins`: overwrites sheared[step] for steps first ... last - 1."""
    for s in range(first, last):
        b, end = bins_of[s, 0], bins_of[s, 1]
        out = sheared[s]
        for p in range(BLOCK):
            out[p] = _F32(0)
        while b + 2 <= end:
            w0, w1 = weights[b, s], weights[b + 1, s]
            for p in range(BLOCK):
                out[p] += w0 * values[b, p] + w1 * values[b + 1, p]
            b += 2
        if b < end:
            w0 = weights[b, s]
            for p in range(BLOCK):
                out[p] += w0 * values[b, p]


@nb.njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _read_block(data, start, stride, count, values):
    """Copy `count` planes of all bins of a sinogram row into a block; returns whether any is not zero."""
    some = False
    for b in range(data.shape[0]):
        out = values[b]
        if stride == 1:
            row = data[b, start : start + count]
        else:
            row = data[b, start : start + (count - 1) * stride + 1 : stride]
        # A sum of magnitudes vectorizes, a search does not; it is zero only where all values are.
        total = _F32(0)
        for p in range(count):
            v = _F32(row[p])
            out[p] = v
            total += abs(v)
        out[count:] = _F32(0)
        some = some or total != _F32(0)
    return some


@nb.njit(cache=True, nogil=True)
def _write_block(data, start, stride, count, values):
    """Inverse of `_read_block`."""
    for b in range(data.shape[0]):
        if stride == 1:
            data[b, start : start + count] = values[b, :count]
        else:
            data[b, start : start + (count - 1) * stride + 1 : stride] = values[b, :count]


@nb.njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _ratio(values, expected, bins):
    """values = values / expected where something is expected, else 0."""
    for b in range(bins):
        for p in range(BLOCK):
            e = expected[b, p]
            values[b, p] = values[b, p] / e if e > _F32(0) else _F32(0)


FORWARD, ADJOINT, EM = 0, 1, 2


@nb.njit(cache=True, nogil=True)
def _project_line(mode, ends, geometry, support_mm, sets, z_geometry, tof, cdf, image, data, back, work):
    """Project all planes and TOF bins of one (view, radial).

    Parameters
    ----------
    mode : int
        FORWARD writes `data`; ADJOINT adds the back projection of `data` to `back`; EM adds that of
        data / forward(image).
    sets : float64 (n, 5)
        Plane sets with one ring difference, whose planes lie `phases` voxels apart: axial distance of the two ends in
        mm (z2 - z1), z of the first plane at the middle of the LOR in mm, planes, first index and stride in the
        sinogram.
    z_geometry : (voxels, voxel size, z of the first, phases, pad)
    data : (bins, planes)
    work : scratch arrays of `make_work`
    """
    rows, fraction, along, plane_image, plane_back, start, z_fraction, weights, bins_of, steps_of, sheared, values, \
        expected = work  # fmt: skip
    steps, length, chord = _trace(ends, geometry, support_mm, rows, fraction, along)
    if steps == 0:
        if mode == FORWARD:
            data[:] = _F32(0)
        return
    nz, vz, oz, phases, pad = int(z_geometry[0]), z_geometry[1], z_geometry[2], int(z_geometry[3]), int(z_geometry[4])
    bins = int(tof[0])
    if mode != ADJOINT:
        _gather(image, rows, fraction, steps, pad, plane_image)
    if mode != FORWARD:
        plane_back[:steps] = _F32(0)
    last_dz = -1.0
    for n in range(sets.shape[0]):
        dz, planes = sets[n, 0], int(sets[n, 2])
        first_plane, stride = int(sets[n, 3]), int(sets[n, 4])
        if abs(dz) != last_dz:
            last_dz = abs(dz)
            _tof_weights(along, steps, length, np.sqrt(chord * chord + dz * dz) / chord, tof, cdf, weights, bins_of,
                         steps_of)  # fmt: skip
        low, high = _shifts(along, steps, (sets[n, 1] - oz) / vz, dz / chord / vz, phases, pad, start, z_fraction)
        # Planes p whose LOR passes within a voxel of the image: -1 < phases p + position < nz for some step.
        p_first = max(0, int(np.ceil((-1.0 - high) / phases)))
        p_last = min(planes, int(np.floor((nz - low) / phases)) + 1)
        if mode == FORWARD:
            for b in range(bins):
                for p in range(planes):
                    if p < p_first or p >= p_last:
                        data[b, first_plane + p * stride] = _F32(0)
        for offset in range(p_first, p_last, BLOCK):
            count = min(BLOCK, p_last - offset)
            at = first_plane + offset * stride
            if mode != FORWARD and not _read_block(data, at, stride, count, values):
                continue
            if mode != ADJOINT:
                _shear(plane_image, start, z_fraction, 0, steps, offset, sheared)
                _to_bins(sheared, weights, steps_of, bins, expected)
            if mode == FORWARD:
                _write_block(data, at, stride, count, expected)
                continue
            if mode == EM:
                _ratio(values, expected, bins)
            _from_bins(values, weights, bins_of, 0, steps, sheared)
            _unshear(plane_back, start, z_fraction, 0, steps, offset, sheared)
    if mode != FORWARD:
        _scatter(back, rows, fraction, steps, pad, plane_back)


@nb.njit(cache=True, nogil=True)
def _make_work(geometry, z_geometry, bins):
    """Scratch arrays of one thread."""
    steps = int(max(geometry[0], geometry[1]))
    phases, pad = int(z_geometry[3]), int(z_geometry[4])
    length = int(np.ceil(z_geometry[0] / phases)) + 2 * pad + BLOCK
    return (
        np.zeros((steps, 4), np.int64),
        np.zeros(steps),
        np.zeros(steps),
        np.zeros((steps, phases, length), np.float32),
        np.zeros((steps, phases, length), np.float32),
        np.zeros((steps, 4), np.int64),
        np.zeros(steps),
        np.zeros((bins, steps), np.float32),
        np.zeros((steps, 2), np.int64),
        np.zeros((bins, 2), np.int64),
        np.zeros((steps, BLOCK), np.float32),
        np.zeros((bins, BLOCK), np.float32),
        np.zeros((bins, BLOCK), np.float32),
    )


@nb.njit(cache=True, nogil=True, parallel=True)
def forward(ends, geometry, support_mm, sets, z_geometry, tof, cdf, image, data):
    """Fill `data` (views, radials, bins, planes) with line integrals of the padded image."""
    views, radials = data.shape[0], data.shape[1]
    for task in nb.prange(FORWARD_TASKS):
        work = _make_work(geometry, z_geometry, data.shape[2])
        for line in range(task, views * radials, FORWARD_TASKS):
            v, r = line // radials, line % radials
            _project_line(FORWARD, ends[v, r], geometry, support_mm, sets, z_geometry, tof, cdf, image, data[v, r],
                          image, work)  # fmt: skip


@nb.njit(cache=True, nogil=True, parallel=True)
def back_project(mode, ends, geometry, support_mm, sets, z_geometry, tof, cdf, images, data, backs):
    """Add the (EM) back projection of `data` (images, views, radials, bins, planes) to `backs`.

    `backs` is (images, parts, ...): radial bin r always goes to part r % parts, whatever the number of threads and however
    views are cut into calls, so that sums are bit for bit the same.
    """
    parts, views, radials = backs.shape[1], data.shape[1], data.shape[2]
    for task in nb.prange(data.shape[0] * parts):
        m, part = task // parts, task % parts
        work = _make_work(geometry, z_geometry, data.shape[3])
        for v in range(views):
            for r in range(part, radials, parts):
                _project_line(mode, ends[v, r], geometry, support_mm, sets, z_geometry, tof, cdf, images[m],
                              data[m, v, r], backs[m, part], work)  # fmt: skip
