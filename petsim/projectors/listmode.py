"""The projector of list-mode events on an image grid."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS
from petsim.projectors import numba_listmode as kernels
from petsim.projectors.contract import support_mask

PARTS = 4
"""The back projection of the first dose is summed in this many fixed parts, whatever the number of threads; those of others
in as many as make tasks of about as many events."""

FORWARD_TASKS = 64
"""Forward projection of a dose is cut into this many tasks, enough to keep the cores of a large machine busy."""


@dataclass(frozen=True, eq=False)
class Events:
    """Coincidences of crystal pairs, in any order.

    Parameters
    ----------
    crystal1, ring1, crystal2, ring2 : ndarray
        uint16 (events,): crystal in its ring, and ring, of both ends.
    tof_bin : ndarray, optional
        int16 (events,), from 0; the middle bin is at the LOR's middle, higher ones nearer to end 2.
    doses : ndarray, optional
        uint8 (events,): the event is in this many doses of a nested ladder, counted from the first (the highest).
        One number holds for all.

    Raises
    ------
    DataError
        Arrays of unequal length or numbers that their types cannot hold.
    """

    crystal1: np.ndarray
    ring1: np.ndarray
    crystal2: np.ndarray
    ring2: np.ndarray
    tof_bin: np.ndarray | None = None
    doses: np.ndarray = field(default_factory=lambda: np.array(1, np.uint8))

    def __post_init__(self) -> None:
        count = len(self.crystal1)
        if np.ndim(self.doses) == 0:
            object.__setattr__(self, "doses", np.full(count, self.doses))
        types = {"crystal1": np.uint16, "ring1": np.uint16, "crystal2": np.uint16, "ring2": np.uint16, "tof_bin": np.int16,
                 "doses": np.uint8}  # fmt: skip
        for name, dtype in types.items():
            given = getattr(self, name)
            if given is None:
                continue
            given = np.asarray(given)
            if given.shape != (count,) or given.dtype.kind not in "iu":
                raise DataError(f"events: {name} is {given.dtype} {given.shape}; give an integer for each of {count} events")
            lowest = 1 if name == "doses" else 0
            if count and (given.min() < lowest or given.max() > np.iinfo(dtype).max):
                raise DataError(
                    f"events: {name} must be {lowest} to {np.iinfo(dtype).max}, found {given.min()} to {given.max()}"
                )
            object.__setattr__(self, name, np.ascontiguousarray(given, dtype))

    def __len__(self) -> int:
        return len(self.crystal1)

    def taken(self, places: np.ndarray) -> "Events":
        """The events at some places."""
        bins = None if self.tof_bin is None else self.tof_bin[places]
        a, b, c, d = (column[places] for column in (self.crystal1, self.ring1, self.crystal2, self.ring2))
        return Events(a, b, c, d, bins, self.doses[places])


@dataclass(frozen=True)
class Tof:
    """Time-of-flight bins along the LOR.

    Parameters
    ----------
    bins : int
        Number of bins; bin i is centered (i - (bins - 1) / 2) x `bin_mm` from the LOR's middle, positive towards end 2.
    bin_mm, sigma_mm : float
        Width of a bin and standard deviation of the Gaussian kernel, in mm along the LOR.
    """

    bins: int
    bin_mm: float
    sigma_mm: float

    def __post_init__(self) -> None:
        if self.bins < 1 or not 0 < self.bin_mm < np.inf or not 0 < self.sigma_mm < np.inf:
            raise DataError(f"TOF needs at least one bin, a width and a sigma above 0 mm; got {self}")

    @property
    def reach_mm(self) -> float:
        """Distance from a bin's center at which its weight becomes zero."""
        return self.bin_mm / 2 + TOF_SIGMAS * self.sigma_mm


class _Sorted(NamedTuple):
    """Events by crystal pair, the lower crystal first.

    `order` holds their places in the caller's arrays; None: they came in order.
    """

    order: np.ndarray | None
    pairs: np.ndarray
    starts: np.ndarray
    rings: np.ndarray
    tof_bin: np.ndarray
    doses: np.ndarray


def pair_order(events: Events, crystals: int) -> np.ndarray:
    """Order in which a projector works on events: by crystal pair, and in a pair by falling number of doses.

    A dose has the first events of a pair. Pairs are in Morton order of their crystals: lines near each other at both ends
    read the same part of the image. Of events that come in this order nothing is sorted again with each projection.

    Parameters
    ----------
    events : Events
    crystals : int
        In a ring.

    Returns
    -------
    ndarray
        int64 (events,): their places.

    Raises
    ------
    DataError
        Too many events.
    """
    key = _pair_keys(events, crystals)
    # Sorting numbers with the index in their last bits is ten times faster than argsort.
    index_bits = len(events).bit_length()
    key = key << index_bits | np.arange(len(events), dtype=np.uint64)
    return (np.sort(key) & (1 << index_bits) - 1).astype(np.int64)


def _pair_keys(events: Events, crystals: int) -> np.ndarray:
    """Numbers that rise in the order of `pair_order`, uint64 (events,), with room for an index beside them."""
    low, high, _ = _ends(events)
    bits = (crystals - 1).bit_length()
    if 2 * bits + 8 + len(events).bit_length() > 64:
        raise DataError(f"events: {len(events)} are too many for {crystals} crystals a ring; project them in portions")
    crystal, spread = np.arange(crystals, dtype=np.uint64), np.zeros(crystals, np.uint64)
    for bit in range(bits):
        spread |= (crystal >> bit & 1) << (2 * bit)
    return (spread[low] << 1 | spread[high]) << 8 | 255 - events.doses


def _ends(events: Events) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lower and the higher crystal of every event, and whether the first one is the higher."""
    swap = events.crystal1 > events.crystal2
    return np.where(swap, events.crystal2, events.crystal1), np.where(swap, events.crystal1, events.crystal2), swap


def _sort(events: Events, crystals: int, tof_bins: int) -> _Sorted:
    """Sort as `pair_order` says."""
    key, order = _pair_keys(events, crystals), None
    if (key[1:] < key[:-1]).any():
        order = pair_order(events, crystals)
        events = events.taken(order)
    low, high, swap = _ends(events)
    new = np.ones(len(events) + 1, bool)
    new[1:-1] = (np.diff(low) != 0) | (np.diff(high) != 0)
    starts = np.flatnonzero(new)
    first = starts[:-1]
    rings = np.stack([events.ring1, events.ring2], axis=1)
    rings[swap] = rings[swap, ::-1]
    if tof_bins and events.tof_bin is not None:
        tof_bin = np.where(swap, tof_bins - 1 - events.tof_bin, events.tof_bin).astype(np.int16)
    else:
        tof_bin = np.zeros(len(events), np.int16)
    pairs = np.stack([low[first], high[first]], axis=1)
    return _Sorted(order, pairs, starts, rings, tof_bin, events.doses)


class ListmodeProjector:
    """Line integrals (mm x image unit) along the LORs of list-mode events, and the exact adjoint.

    Joseph's method with steps along the transaxial axis that a LOR follows most closely; samples outside the image are
    zero, but its outermost planes reach to their outer faces.
    With TOF an event's integral is weighted by the kernel's share in its bin. An event can belong to several doses
    of a nested ladder, which have an image each: it is projected through the images of its doses only.

    Parameters
    ----------
    crystal_xy_mm : ndarray
        (crystals, 2): transaxial LOR ends in scanner coordinates, which are the grid's millimeters less `center_mm`.
    ring_z_mm : ndarray
        (rings,): axial LOR ends.
    grid : Grid
        Any voxel size.
    events : Events
    center_mm : tuple of float, optional
        Position of the scanner's center in the grid's coordinates; None: the middle of the grid.
    support_mm : float, optional
        Radius of the cylinder outside which the image counts as zero; lines are cut there. None: the whole grid.
    tof : Tof, optional
        None projects without TOF, whether or not the events have bins.

    Attributes
    ----------
    support : ndarray
        bool, broadcasts to the grid's shape: voxels that count.

    Raises
    ------
    DataError
        Events outside the crystals, rings or bins, or whose ends are one crystal.
    """

    def __init__(
        self,
        crystal_xy_mm: np.ndarray,
        ring_z_mm: np.ndarray,
        grid: Grid,
        events: Events,
        center_mm: tuple[float, float, float] | None = None,
        support_mm: float | None = None,
        tof: Tof | None = None,
    ) -> None:
        self.grid, self.tof = grid, tof
        self._xy = np.ascontiguousarray(crystal_xy_mm, np.float64)
        self._z = np.ascontiguousarray(ring_z_mm, np.float64)
        if self._xy.ndim != 2 or self._xy.shape[1] != 2 or self._z.ndim != 1:
            raise DataError(
                f"crystal_xy_mm must be (crystals, 2) and ring_z_mm (rings,), got {self._xy.shape}, {self._z.shape}"
            )
        self._check(events)
        self._events = _sort(events, len(self._xy), tof.bins if tof else 0)
        counts = np.diff(self._events.starts)
        self._many = bool(counts.size and counts.max() > kernels.FLUSH)
        in_dose = len(self) - np.cumsum(np.bincount(self._events.doses, minlength=256))
        self._parts = np.maximum(1, np.ceil(PARTS * in_dose / max(1, len(self)))).astype(np.int64)

        center = grid.center_mm if center_mm is None else center_mm
        x0, y0, z0 = (o - c for o, c in zip(grid.origin_mm, center, strict=True))
        self.support = support_mask(grid, center_mm, support_mm)
        padded = [n + 2 * kernels.PAD for n in grid.shape]
        self._cells = math.prod(padded) + kernels.LANES
        self._space = kernels.Space(
            shape=np.array(grid.shape, np.int64),
            voxel_mm=np.array(grid.spacing_mm, np.float64),
            origin_mm=np.array([x0, y0, z0], np.float64),
            stride_x=padded[1] * padded[2],
            stride_y=padded[2],
            support_mm=float(support_mm or 0.0),
            tof_bins=tof.bins if tof else 0,
            tof_bin_mm=float(tof.bin_mm) if tof else 0.0,
            tof_sigma_mm=float(tof.sigma_mm) if tof else 0.0,
            tof_reach_mm=tof.reach_mm if tof else 0.0,
        )

    def _check(self, events: Events) -> None:
        limits = {"crystal1": len(self._xy), "crystal2": len(self._xy), "ring1": len(self._z), "ring2": len(self._z)}
        if self.tof:
            if events.tof_bin is None:
                raise DataError("events have no TOF bins; give tof_bin, or project without tof")
            limits["tof_bin"] = self.tof.bins
        for name, limit in limits.items():
            highest = int(getattr(events, name).max(initial=0))
            if len(events) and highest >= limit:
                raise DataError(f"events: {name} must be 0 to {limit - 1}, found {highest}")
        if np.any(events.crystal1 == events.crystal2):
            where = int(np.argmax(events.crystal1 == events.crystal2))
            raise DataError(
                f"events: event {where} has crystal {events.crystal1[where]} at both ends; leave such events out"
            )

    def __len__(self) -> int:
        return len(self._events.doses)

    def _in_order(self, values: np.ndarray) -> np.ndarray:
        """Values (..., events) of the caller's in the order of the projector."""
        return values if self._events.order is None else np.take(values, self._events.order, axis=-1)

    def _tasks(self, parts: np.ndarray) -> np.ndarray:
        """Tasks of the kernels: the events of each dose in so many parts."""
        tasks = []
        for dose, count in enumerate(parts):
            cuts = np.searchsorted(self._events.starts, np.linspace(0, len(self), count + 1))
            cuts = cuts.clip(0, len(self._events.pairs))
            tasks += [(dose, cuts[k], cuts[k + 1], len(tasks) + k) for k in range(count)]
        return np.array(tasks, np.int64).reshape(-1, 4)

    def _padded(self, images: np.ndarray) -> np.ndarray:
        """Images (doses, x, y, z), each flat with zeros around it and behind it, axially copies of the outermost planes."""
        if images.ndim != 4 or images.shape[1:] != self.grid.shape:
            raise ValueError(f"images have shape {images.shape}, the projector's grid {self.grid.shape}")
        out = np.empty((len(images), self._cells), np.float32)
        kernels.pad(np.ascontiguousarray(images, np.float32), self._in_support(), self._space, out)
        return out

    def _in_support(self) -> np.ndarray:
        """bool (x, y)."""
        return np.broadcast_to(self.support[..., 0], self.grid.shape[:2])

    def _project(self, mode: int, parts: np.ndarray, images: np.ndarray, values: np.ndarray, weight: np.ndarray,
                 background: np.ndarray, backs: np.ndarray) -> None:  # fmt: skip
        e = self._events
        kernels.project(mode, self._tasks(parts), e.pairs, e.starts, self._xy, self._z, e.rings, e.tof_bin, e.doses,
                        self._space, images, values, weight, background, backs, self._many)  # fmt: skip

    def _back(self, mode: int, doses: int, images: np.ndarray, values: np.ndarray, weight: np.ndarray,
              background: np.ndarray) -> np.ndarray:  # fmt: skip
        """Back project; returns images (doses, x, y, z)."""
        parts = self._parts[:doses]
        backs = np.zeros((parts.sum(), self._cells), np.float32)
        self._project(mode, parts, images, values, weight, background, backs)
        out = np.empty((doses, *self.grid.shape), np.float32)
        first = np.concatenate([[0], np.cumsum(parts)])
        kernels.sum_parts(backs, first, self._in_support(), self._space, out)
        return out

    def forward(self, images: np.ndarray) -> np.ndarray:
        """Line integrals of the events.

        Parameters
        ----------
        images : ndarray
            (dose, x, y, z) on the grid, or (x, y, z), which is the first dose.

        Returns
        -------
        ndarray
            float32 (dose, events), or (events,), image unit x mm; 0 at doses that the event does not belong to.
        """
        images = np.asarray(images)
        padded = self._padded(images if images.ndim == 4 else images[None])
        values = np.zeros((len(padded), len(self)), np.float32)
        parts = np.full(len(padded), FORWARD_TASKS)
        self._project(kernels.FORWARD, parts, padded, values, _NONE, _NO_IMAGE, _NO_IMAGE)
        out = values
        if self._events.order is not None:
            out = np.empty_like(values)
            out[:, self._events.order] = values
        return out if images.ndim == 4 else out[0]

    def adjoint(self, values: np.ndarray) -> np.ndarray:
        """Back projection: the transpose of `forward`.

        Parameters
        ----------
        values : ndarray
            (dose, events), or (events,) for the first dose.

        Returns
        -------
        ndarray
            float32 (dose, x, y, z), or (x, y, z).
        """
        values = np.asarray(values, np.float32)
        if values.ndim not in (1, 2) or values.shape[-1] != len(self):
            raise ValueError(f"values have shape {values.shape}, the projector {len(self)} events")
        ordered = np.ascontiguousarray(self._in_order(np.atleast_2d(values)))
        backs = self._back(kernels.ADJOINT, len(ordered), _NO_IMAGE, ordered, _NONE, _NO_IMAGE)
        return backs if values.ndim == 2 else backs[0]

    def em_back(
        self, images: np.ndarray, weight: np.ndarray | None = None, background: np.ndarray | None = None
    ) -> np.ndarray:
        """Back projection of an EM update, in one pass: the adjoint of weight / (weight x forward(images) + background).

        An image divided by its sensitivity and multiplied by this is the list-mode EM update (doi 10.1109/42.700739).

        Parameters
        ----------
        images : ndarray
            (dose, x, y, z) or (x, y, z).
        weight : ndarray, optional
            (events,): attenuation x normalization of an event's bin. None: 1.
        background : ndarray, optional
            (events,), or (dose, events) where doses differ: expected counts besides trues of an event's bin. None: 0.

        Returns
        -------
        ndarray
            float32, like `images`. An event of whose bin nothing is expected adds nothing.
        """
        images = np.asarray(images)
        padded = self._padded(images if images.ndim == 4 else images[None])
        factors = []
        for name, given, default in (("weight", weight, 1.0), ("background", background, 0.0)):
            factor = np.full(len(self), default, np.float32) if given is None else np.asarray(given, np.float32)
            if factor.shape != (len(self),) and (name == "weight" or factor.shape != (len(padded), len(self))):
                raise ValueError(f"{name} has shape {factor.shape}, the projector {len(self)} events")
            factors.append(factor if given is None else np.ascontiguousarray(self._in_order(factor)))
        factors[1] = np.atleast_2d(factors[1])
        backs = self._back(kernels.EM, len(padded), padded, np.empty((len(padded), 0), np.float32), *factors)
        return backs if images.ndim == 4 else backs[0]


_NONE = np.empty(0, np.float32)
_NO_IMAGE = np.empty((1, 0), np.float32)
"""Arrays that a mode does not use."""
