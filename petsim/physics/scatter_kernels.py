"""Loops of the scatter estimate (numba, CPU): rays from scatter points to detectors, sums over pairs, interpolation.

Detectors are nodes (phi, z) on the cylinder of LOR ends. Everything works on bare arrays that `petsim.physics.scatter`
prepares. Each output number is summed by one thread in a fixed order, so results do not depend on the number of threads.
"""

import math

import numba as nb
import numpy as np

from petsim.projectors.rows import combine

_F32 = np.float32
_FAST = {"contract", "nsz", "arcp"}

LENGTH, DEPTH, PASSED, FACING, CLIMB, LEAST, MOST = (np.uint64(field) for field in range(7))
FIELDS = 7
"""What is kept of a ray: its length [mm], int mu, exp(-int mu), cos(incidence)/length^2 [1/mm^2], axial rise [mm], and the
least and most rise per transaxial mm of the other photon within the largest scattering angle."""

LANES = 8
"""Channels of a voxel are padded to a multiple of this many, which are interpolated at once."""


@nb.njit(cache=True, nogil=True, inline="always")
def _leaves_after(start, direction, last):
    """Distance at which a ray leaves the interval [0, last] of one axis."""
    if direction > 0:
        return (last - start) / direction
    return -start / direction if direction < 0 else np.inf


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _corner_weights(fx, fy, fz, weight, coefs):
    """Weights of the eight voxels of a trilinear interpolation, the last axis fastest."""
    gx, gy, gz = (_F32(1) - fx) * weight, _F32(1) - fy, _F32(1) - fz
    fx *= weight
    coefs[0], coefs[1], coefs[2], coefs[3] = gx * gy * gz, gx * gy * fz, gx * fy * gz, gx * fy * fz
    coefs[4], coefs[5], coefs[6], coefs[7] = fx * gy * gz, fx * gy * fz, fx * fy * gz, fx * fy * fz


@nb.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST, error_model="numpy")
def trace(image, origin, voxel, points, angles, detector_z, radius, reach, most_tan, step, first, response, lowest, rays,
          places_used, forward, backward):  # fmt: skip
    """Rays from some scatter points to all detectors that can take part.

    Parameters
    ----------
    image : ndarray
        (x, y, z, channel): mu [1/mm], then the activities [Bq/mL] and padding; a border of zeros.
    origin, voxel : ndarray
        Center of voxel (0, 0, 0) and voxel size, mm.
    points : ndarray
        (point, 3), mm.
    angles, detector_z : ndarray
        Detectors, rad and mm.
    radius : float
        Of the cylinder of detectors, mm.
    reach : int
        Largest difference of two detectors along z.
    most_tan : float
        Tangent of the largest scattering angle; huge from 90 degrees on.
    step : float
        mm between samples along a ray.
    first, response : ndarray
        Sample j adds `response[j, sub]` (TOF bin x image, alike for all images) times itself to the bins from `first[j]` on.
    lowest : int
        TOF bin of the first place of `forward`.
    rays : ndarray
        (point, phi, field, z), set: see `LENGTH`.
    places_used : ndarray
        (point, phi, z), set: places used of `forward`; 0 for detectors that no pair needs.
    forward, backward : ndarray
        (point, phi, z, sub, place, image), set: activity on the ray by TOF bin for a point at TOF position sub / subs of a
        bin, sub = 0 ... subs, seen along the LOR and against it.
    """
    subs, places = forward.shape[3] - 1, forward.shape[4]
    images = forward.shape[5]
    width, row = response.shape[2] // images, places * images
    flat_image, flat_forward, flat_backward = image.reshape(-1), forward.reshape(-1), backward.reshape(-1)
    flat_response = response.reshape(-1)
    nx, ny, nz, lanes = image.shape
    corners = np.empty(8, np.int64)
    for n in range(8):
        corners[n] = ((n // 4 * ny + n // 2 % 2) * nz + n % 2) * lanes
    channel, opposite = np.empty(width * images, np.int64), np.empty(row, np.int64)
    for n in range(channel.size):
        channel[n] = n % images + 1
    for n in range(row):
        opposite[n] = (places - 1 - n // images) * images + n % images
    for task in nb.prange(points.shape[0] * angles.size):
        p, phi = task // angles.size, task % angles.size
        sums, tiled, coefs = np.empty(lanes, np.float32), np.empty(width * images, np.float32), np.empty(8, np.float32)
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        cos, sin = math.cos(angles[phi]), math.sin(angles[phi])
        dx, dy = radius * cos - x, radius * sin - y
        across = math.hypot(dx, dy)
        off_axis = math.hypot(x, y)
        # In voxels.
        x0, y0, z0 = (x - origin[0]) / voxel[0], (y - origin[1]) / voxel[1], (z - origin[2]) / voxel[2]
        for ring in range(detector_z.size):
            dz = detector_z[ring] - z
            # Tangents of the largest angle and of the ray's tilt, added.
            climb = dz / across
            least = -(most_tan + climb) / (1 - most_tan * climb) if most_tan * climb < 1 else -np.inf
            most = (most_tan - climb) / (1 + most_tan * climb) if most_tan * climb > -1 else np.inf
            places_used[p, phi, ring] = 0
            # No detector in reach is between the two at any distance that detectors have from the point.
            if detector_z[max(ring - reach, 0)] - z > most * (radius + math.copysign(off_axis, most)):
                continue
            if detector_z[min(ring + reach, detector_z.size - 1)] - z < least * (radius - math.copysign(off_axis, least)):
                continue
            length = math.sqrt(across * across + dz * dz)
            ux, uy, uz = dx / length / voxel[0], dy / length / voxel[1], dz / length / voxel[2]
            end = min(length, _leaves_after(x0, ux, nx - 1), _leaves_after(y0, uy, ny - 1),
                      _leaves_after(z0, uz, nz - 1))  # fmt: skip
            samples = min(int(end / step) + 1, first.size)
            used = first[samples - 1] + width - lowest
            ahead = ((p * angles.size + phi) * detector_z.size + ring) * (subs + 1) * row
            for sub in range(subs + 1):
                flat_forward[ahead + sub * row : ahead + sub * row + used * images] = 0
            depth = _F32(0)
            for j in range(samples):
                # The last step reaches only to the border.
                part = min(step, end - j * step)
                s = j * step + 0.5 * part
                fx, fy, fz = x0 + ux * s, y0 + uy * s, z0 + uz * s
                vx, vy, vz = min(int(fx), nx - 2), min(int(fy), ny - 2), min(int(fz), nz - 2)
                _corner_weights(_F32(fx - vx), _F32(fy - vy), _F32(fz - vz), _F32(part), coefs)
                combine(sums, 0, flat_image, ((vx * ny + vy) * nz + vz) * lanes, corners, coefs, 0, 1, 8, lanes, 0)
                depth += sums[0]
                for n in range(tiled.size):
                    tiled[n] = sums[channel[n]]
                at = ahead + (first[j] - lowest) * images
                for sub in range(subs + 1):
                    target = flat_forward[at + sub * row : at + sub * row + tiled.size]
                    share = flat_response[(j * (subs + 1) + sub) * tiled.size : (j * (subs + 1) + sub + 1) * tiled.size]
                    for n in range(tiled.size):
                        target[n] += share[n] * tiled[n]
            # Bin m of a point at sub / subs, seen against the LOR, is bin 1 - m of one at 1 - sub / subs.
            for sub in range(subs + 1):
                here, behind = ahead + sub * row, ahead + (subs - sub) * row
                for n in range(used * images):
                    flat_backward[behind + opposite[n]] = flat_forward[here + n]
            out = rays[p, phi, :, ring]
            out[LENGTH], out[DEPTH], out[PASSED] = length, depth, math.exp(-depth)
            out[FACING], out[CLIMB] = (dx * cos + dy * sin) / length**3, dz
            out[LEAST], out[MOST] = least, most
            places_used[p, phi, ring] = used


@nb.njit(cache=True, nogil=True, inline="always")
def _decayed(x):
    """exp(-x), good to 2e-4 for x up to 5 and in absolute terms beyond: (exp(-x/64))^64, so that loops vectorize."""
    y = x * _F32(-1 / 64)
    e = _F32(1) + y * (_F32(1) + y * (_F32(1 / 2) + y * (_F32(1 / 6) + y * _F32(1 / 24))))
    e *= e
    e *= e
    e *= e
    e *= e
    e *= e
    return e * e


@nb.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _pair_weights(rays, one, other, rings, count, across, scale, lowest_cos, per_cos, angular, to_bins, work, row):
    """Weights of the activity on a ray and on `count` others, and the TOF bin of their scatter point.

    `rays[one + field x rings]` is the one, `rays[other + field x rings + k]` the others. Sets, in rows of `work`: the weight
    towards the one and towards the other, (work space,) and the TOF bin. A loop of look-ups lies between two that vectorize.
    Indices are unsigned, and no views are made, since both would cost more than the sums.
    """
    length, depth, climb = rays[one + LENGTH * rings], rays[one + DEPTH * rings], rays[one + CLIMB * rings]
    passed, facing = rays[one + PASSED * rings], rays[one + FACING * rings] * scale
    lengths, depths, climbs = other + LENGTH * rings, other + DEPTH * rings, other + CLIMB * rings
    passes, faces = other + PASSED * rings, other + FACING * rings
    towards, spare, bins = row, row + row, row + row + row
    last = np.int32(angular.size // 2 - 1)
    for k in range(count):
        # The photon on its way from the one goes on to the other.
        cos = -(across + climb * rays[climbs + k]) / (length * rays[lengths + k])
        work[bins + k] = (cos - lowest_cos) * per_cos
    for k in range(count):
        t = work[bins + k]
        at = np.uint64(min(max(np.int32(t), np.int32(0)), last))
        work[k] = angular[at + at] if t >= _F32(0) else _F32(0)
        work[spare + k] = angular[at + at + np.uint64(1)]
    for k in range(count):
        w, mu = work[k] * facing * rays[faces + k], work[spare + k]
        work[k] = w * passed * _decayed(mu * rays[depths + k])
        work[towards + k] = w * rays[passes + k] * _decayed(mu * depth)
        work[bins + k] = (length - rays[lengths + k]) * to_bins


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _add_row(total, at, profile, here, above, count, first, second):
    """total[at + n] += first x profile[here + n] + second x profile[above + n]."""
    out, a, b = total[at : at + count], profile[here : here + count], profile[above : above + count]
    for n in range(count):
        out[n] += first * a[n] + second * b[n]


@nb.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST, error_model="numpy")
def add_pairs(points, scales, angles, detector_z, radius, reach, first_difference, rays, places_used, forward, backward,
              lowest, angular, lowest_cos, to_bins, table):  # fmt: skip
    """Add the scatter at some points to the table of all detector pairs.

    Parameters
    ----------
    points, angles, detector_z, radius, reach, rays, places_used, forward, backward, lowest
        As in `trace`.
    scales : ndarray
        (point,): mu x volume of a point, mm^2.
    first_difference : int
        Least difference of the two phi indices.
    angular : ndarray
        (cell of the cosine of the scattering angle from `lowest_cos` to 1, 2): (1/sigma) dsigma/dOmega x relative acceptance
        [1/sr], and mu of the scattered photon relative to that at 511 keV.
    to_bins : float
        Turns differences of the ray lengths [mm] into TOF bins; 0 without TOF.
    table : ndarray
        (phi, difference, z, z difference, TOF bin x image), added to.
    """
    phis, rings = angles.size, detector_z.size
    subs, places, images = forward.shape[3] - 1, forward.shape[4], forward.shape[5]
    bins, row = table.shape[4] // images, places * images
    half = (bins - 1) // 2
    per_cos = _F32(angular.shape[0] / (1 - lowest_cos))
    flat_rays, flat_angular = rays.reshape(-1), angular.reshape(-1)
    flat_table, flat_forward, flat_backward = table.reshape(-1), forward.reshape(-1), backward.reshape(-1)
    for task in nb.prange(phis * table.shape[1]):
        i, d = task // table.shape[1], task % table.shape[1]
        j = (i + d + first_difference) % phis
        work = np.empty(4 * rings, np.float32)
        towards_a, towards_b, shift = work[:rings], work[rings : 2 * rings], work[3 * rings :]
        ax, ay = radius * math.cos(angles[i]), radius * math.sin(angles[i])
        bx, by = radius * math.cos(angles[j]), radius * math.sin(angles[j])
        for p in range(points.shape[0]):
            x, y, z = points[p, 0], points[p, 1], points[p, 2]
            across = (ax - x) * (bx - x) + (ay - y) * (by - y)
            rho = math.hypot(bx - x, by - y)
            if -across < lowest_cos * rho * math.hypot(ax - x, ay - y):
                continue
            one, two = (p * phis + i) * FIELDS * rings, (p * phis + j) * FIELDS * rings
            for ring in range(rings):
                if places_used[p, i, ring] == 0:
                    continue
                low, high = max(0, ring - reach), min(rings, ring + reach + 1)
                least, most = rays[p, i, LEAST, ring] * rho + z, rays[p, i, MOST, ring] * rho + z
                while low < high and (places_used[p, j, low] == 0 or detector_z[low] < least):
                    low += 1
                while high > low and (places_used[p, j, high - 1] == 0 or detector_z[high - 1] > most):
                    high -= 1
                if low == high:
                    continue
                n = high - low
                _pair_weights(flat_rays, np.uint64(one + ring), np.uint64(two + low), np.uint64(rings), np.uint64(n),
                              _F32(across), _F32(scales[p]), _F32(lowest_cos), per_cos, flat_angular, _F32(to_bins), work,
                              np.uint64(rings))  # fmt: skip
                to = ((i * table.shape[1] + d) * rings + ring) * table.shape[3] + reach - ring
                back = ((p * phis + i) * rings + ring) * (subs + 1) * row
                start = places - places_used[p, i, ring]
                for k in range(n):
                    if towards_a[k] + towards_b[k] <= 0:
                        continue
                    whole = int(shift[k] + _F32(1024)) - 1024
                    f = (shift[k] - _F32(whole)) * _F32(subs)
                    sub = min(int(f), subs - 1)
                    f -= _F32(sub)
                    out = (to + low + k) * bins * images
                    # Place 0 of the profile is TOF bin `base`.
                    base = half + 2 - lowest - places + whole
                    begin, end = max(start, -base), min(places, bins - base)
                    if begin < end:
                        at = back + sub * row + begin * images
                        _add_row(flat_table, out + (begin + base) * images, flat_backward, at, at + row,
                                 (end - begin) * images, towards_a[k] * (_F32(1) - f), towards_a[k] * f)  # fmt: skip
                    base = half + lowest + whole
                    begin, end = max(0, -base), min(places_used[p, j, low + k], bins - base)
                    if begin < end:
                        at = (((p * phis + j) * rings + low + k) * (subs + 1) + sub) * row + begin * images
                        _add_row(flat_table, out + (begin + base) * images, flat_forward, at, at + row,
                                 (end - begin) * images, towards_b[k] * (_F32(1) - f), towards_b[k] * f)  # fmt: skip


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _cubic(f, weights):
    """Weights of four neighboring nodes at a fraction f between the second and the third (Catmull and Rom)."""
    weights[0] = f * (-0.5 + f * (1.0 - 0.5 * f))
    weights[1] = 1.0 + f * f * (-2.5 + 1.5 * f)
    weights[2] = f * (0.5 + f * (2.0 - 1.5 * f))
    weights[3] = f * f * (-0.5 + 0.5 * f)


@nb.njit(cache=True, nogil=True, parallel=True, fastmath=True)
def interpolate(values, scale, nodes, fractions, swapped, width, places, parts, out):
    """Bins of some views by interpolation, cubic in the angles and linear in z.

    Parameters
    ----------
    values : ndarray
        (phi, difference, tof, z x z difference).
    scale : float
    nodes : ndarray
        (view, radial, 2): second of the four phi nodes of the first end, and what to add to it for the other end.
    fractions : ndarray
        (view, radial, 2): positions between the second and the third node.
    swapped : ndarray
        (view, radial): whether ends 1 and 2 of the LOR are exchanged.
    width : int
        z differences less one: distance in (z, z difference) from one z of the first end to the next, same second end.
    places : ndarray
        (2, plane): lower nodes in (z, z difference) for ends in order and exchanged.
    parts : ndarray
        (2, 2, plane): fractions of z of the first and the second end likewise.
    out : ndarray
        (view, radial, tof, plane), set.
    """
    phis, bins, pairs = values.shape[0], values.shape[2], values.shape[3]
    views, radials, planes = out.shape[0], out.shape[1], out.shape[3]
    for task in nb.prange(views * radials):
        v, r = task // radials, task % radials
        order = 1 if swapped[v, r] else 0
        one, two = np.empty(4), np.empty(4)
        _cubic(fractions[v, r, 0], one)
        _cubic(fractions[v, r, 1], two)
        block = np.zeros((bins, pairs), np.float32)
        flat = block.reshape(-1)
        for a in range(4):
            i = (nodes[v, r, 0] + a - 1) % phis
            for b in range(4):
                w = _F32(scale * one[a] * two[b])
                row = values[i, nodes[v, r, 1] + b - a].reshape(-1)
                for n in range(flat.size):
                    flat[n] += w * row[n]
        place, first, second = places[order], parts[order, 0], parts[order, 1]
        for t in range(bins):
            row = block[bins - 1 - t if order == 1 else t]
            target = out[v, r, t]
            for p in range(planes):
                at = np.uint64(place[p])
                next_z = np.uint64(place[p] + width)
                here = row[at] + second[p] * (row[at + np.uint64(1)] - row[at])
                above = row[next_z] + second[p] * (row[next_z + np.uint64(1)] - row[next_z])
                target[p] = max(here + first[p] * (above - here), _F32(0))
