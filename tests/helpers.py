"""Independent references and the property checks that every operator must pass."""

import pickle

import numpy as np
from scipy.special import erf


def joseph_lor(image, spacing_mm, origin_mm, start, end):
    """Samples of Joseph's method along one LOR, one loop and no symmetry.

    Returns (values, positions): step length x bilinear value at every plane of the principal transaxial axis (float64), and
    their signed distance from the LOR's middle in mm. Samples outside the image are zero.
    """
    start, end = np.asarray(start, float), np.asarray(end, float)
    delta = end - start
    length = np.linalg.norm(delta)
    axis = int(np.argmax(np.abs(delta[:2])))
    others = [1 - axis, 2]
    values, positions = [], []
    for i in range(image.shape[axis]):
        t = (origin_mm[axis] + i * spacing_mm[axis] - start[axis]) / delta[axis]
        if not 0 <= t <= 1:
            continue
        point = start + t * delta
        index = [(point[a] - origin_mm[a]) / spacing_mm[a] for a in others]
        total = 0.0
        n = image.shape[2]
        if not -0.5 <= index[1] <= n - 0.5:
            values.append(0.0)
            positions.append((t - 0.5) * length)
            continue
        # Between the outermost centers and faces the image is constant axially.
        index[1] = min(max(index[1], 0.0), n - 1.0)
        base = [int(np.floor(v)) for v in index]
        for du in (0, 1):
            for dv in (0, 1):
                u, v = base[0] + du, base[1] + dv
                if 0 <= u < image.shape[others[0]] and 0 <= v < image.shape[others[1]]:
                    weight = (1 - abs(index[0] - u)) * (1 - abs(index[1] - v))
                    where = [0, 0, 0]
                    where[axis], where[others[0]], where[others[1]] = i, u, v
                    total += weight * float(image[tuple(where)])
        values.append(total * spacing_mm[axis] * length / abs(delta[axis]))
        positions.append((t - 0.5) * length)
    return np.array(values), np.array(positions)


def tof_weight(bins, width_mm, sigma_mm, sigmas, position_mm):
    """Integral over each TOF bin of a Gaussian at `position_mm`, cut at `sigmas` and normalized (closed form)."""
    edges = (np.arange(bins + 1) - bins / 2) * width_mm
    x = np.clip((edges - position_mm) / sigma_mm, -sigmas, sigmas)
    return np.diff(erf(x / np.sqrt(2))) / (2 * erf(sigmas / np.sqrt(2)))


def lor_ends(layout, view, radial, plane, shift=(0.0, 0.0, 0.0)):
    """3D end points of a bin, found by searching the ring pairs of its plane."""
    for seg in layout.segments():
        if seg.start <= plane < seg.start + seg.planes:
            ring_sum = seg.first_sum + (plane - seg.start) * seg.step
            difference = seg.ring_difference
    z = layout.ring_z_mm()
    rings = [(ring_sum - difference) / 2, (ring_sum + difference) / 2]
    if all(r == int(r) and 0 <= r < len(z) for r in rings):
        ends = [z[int(r)] for r in rings]
    else:
        np.testing.assert_allclose(np.diff(z), z[1] - z[0])
        ends = [z[0] + r * (z[1] - z[0]) for r in rings]
    ends = [end + shift[1] * layout.ring_pitch_mm for end in ends]
    x1, y1, x2, y2 = layout.transaxial_ends(np.array([view]), shift[0], shift[2])[0, radial]
    return (x1, y1, ends[0]), (x2, y2, ends[1])


def check_linear_operator(forward, adjoint, domain, codomain, tolerance=1e-5):
    """Linear, and adjoint <Ax, y> = <x, A'y> relative to |Ax||y|, for positive draws (scale) and normal ones (structure)."""
    rng = np.random.default_rng(0)
    draws = {"uniform": rng.random, "normal": rng.standard_normal}
    for kind, draw in draws.items():
        x, z = draw(domain).astype(np.float32), draw(domain).astype(np.float32)
        y = draw(codomain).astype(np.float32)
        ax, aty = forward(x), adjoint(y)
        assert ax.dtype == np.float32 and aty.dtype == np.float32
        assert ax.shape == tuple(codomain) and aty.shape == tuple(domain)
        left = np.vdot(ax.astype(np.float64), y.astype(np.float64))
        right = np.vdot(x.astype(np.float64), aty.astype(np.float64))
        scale = np.linalg.norm(ax.astype(np.float64)) * np.linalg.norm(y.astype(np.float64))
        assert abs(left - right) < tolerance * scale, f"{kind}: {left} against {right}"
        both = forward((2 * x - 3 * z).astype(np.float32))
        np.testing.assert_allclose(both, 2 * ax - 3 * forward(z), atol=1e-4 * np.abs(ax).max())


def check_dense_transpose(forward, adjoint, domain, codomain):
    """The matrix of `forward` is the transpose of that of `adjoint`, element by element."""
    columns = []
    for i in range(int(np.prod(domain))):
        x = np.zeros(int(np.prod(domain)), np.float32)
        x[i] = 1
        columns.append(forward(x.reshape(domain)).ravel())
    matrix = np.stack(columns, axis=1)
    rows = []
    for i in range(int(np.prod(codomain))):
        y = np.zeros(int(np.prod(codomain)), np.float32)
        y[i] = 1
        rows.append(adjoint(y.reshape(codomain)).ravel())
    np.testing.assert_allclose(np.stack(rows), matrix, atol=2e-6 * np.abs(matrix).max())
    assert np.abs(matrix).max() > 0


def check_pickles(operator, x):
    """A pickled and restored operator gives the same numbers."""
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(operator)).forward(x), operator.forward(x))


def one_line(status, error, expected, *words):
    """A command ended with a status and one line that holds some words, and with no traceback."""
    assert status == expected, error
    assert error.startswith("petsim: ") and error.count("\n") == 1 and "Traceback" not in error
    for word in words:
        assert word in error, error
