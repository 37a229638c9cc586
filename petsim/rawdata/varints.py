"""Event time blocks of PETSIRD 0.12 in yardl's binary format, to events and back: numbers of 7 bits a byte, lowest first.

A time block begins with the number of its kind, 0 for events. Then come the first and last time in ms and five nested lists,
each with its length before it: single events by module type, prompts and delayeds by two types, triples by three, quadruples
by four. A coincidence is two detection bins and a TOF bin; a detection bin is energy bin + energy bins x element.
"""

from typing import BinaryIO, NamedTuple

import numba as nb
import numpy as np

CHUNK = 1 << 22
"""Bytes of a file held at once."""

PAD = 64
LONGEST = 32
"""Bytes that one step of `decode` reads at most."""

FULL, MORE, OTHER, END, TRUNCATED, BAD_KIND, BAD_LENGTH, BACKWARDS, BAD_BIN, BAD_TOF, BAD_PAIR = range(11)
"""Why `decode` stopped; those from TRUNCATED on are damage."""

UNPLACED, TOF_BEYOND, NO_TURN, NO_ENERGY = range(1, 5)
"""Why `encode` stopped, if not 0."""

SCAN, BATCH, INSIDE, LIST, LEVEL, START, KIND, WRONG, WRONG_OF, FIRST, LAST, VARIED, BLOCKS, COUNTS = range(14)
STATE = COUNTS + 16
"""Places in the state of `decode`. SCAN: count all, give no events. FIRST, LAST: times met. VARIED: several times. From
COUNTS on: items of the five lists, coincidences of types that are not there; then what is left in open lists, and places."""

_FOREIGN, _LEFT, _INDEX = COUNTS + 5, COUNTS + 6, COUNTS + 11
_DEPTH = (2, 3, 3, 4, 5)
_NUMBERS = (2, 3, 3, 5, 5)
_MOST = 1 << 40


class Tables(NamedTuple):
    """What addresses mean.

    Elements are counted through all modules of all types.

    Parameters
    ----------
    first : ndarray
        int64 (types + 1,): first element of a type.
    energies, edges_from : ndarray
        int64 (types,): energy bins, and place of their first edge in `edges_kev`.
    edges_kev : ndarray
        float32.
    tof_bins : ndarray
        int64 (types, types), lower triangle.
    crystal, ring, module_type : ndarray
        uint16 (elements,).
    element : ndarray
        int32 (rings, crystals): -1 where there is none.
    in_rings : bool
        A crystal number is a place on a ring, so that no event joins it with itself.
    has_energies : bool
    """

    first: np.ndarray
    energies: np.ndarray
    edges_from: np.ndarray
    edges_kev: np.ndarray
    tof_bins: np.ndarray
    crystal: np.ndarray
    ring: np.ndarray
    module_type: np.ndarray
    element: np.ndarray
    in_rings: bool
    has_energies: bool


class Source:
    """A file as `decode` takes it: `data[pos:end]` are its next bytes."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.size = file, file.seek(0, 2)
        self.data = np.zeros(CHUNK + PAD, np.uint8)
        self._move(start)

    def _move(self, place: int) -> None:
        self.file.seek(place)
        self.origin, self.pos, self.end, self.at_end = place, 0, 0, False

    @property
    def place(self) -> int:
        """Of the next byte in the file."""
        return self.origin + self.pos

    def fill(self) -> None:
        """Drop what was read and get more."""
        left = self.end - self.pos
        self.data[:left] = self.data[self.pos : self.end]
        self.origin, self.pos = self.origin + self.pos, 0
        got = self.file.readinto(self.data[left:CHUNK])  # pyright: ignore[reportAttributeAccessIssue]
        self.end, self.at_end = left + got, got == 0

    def skip(self, count: int) -> None:
        """Pass over bytes; `EOFError` beyond the end."""
        if count > self.size - self.place:
            raise EOFError
        if count <= self.end - self.pos:
            self.pos += count
        else:
            self._move(self.place + count)

    def numbers(self, count: int) -> np.ndarray:
        """The next varints, int64; `EOFError` beyond the end."""
        if count > self.size - self.place:
            raise EOFError
        values, done = np.empty(count, np.int64), 0
        while True:
            done, self.pos = _numbers(self.data, self.pos, self.end, self.at_end, values, done)
            if done == count:
                return values
            if self.at_end:
                raise EOFError
            self.fill()

    def number(self) -> int:
        """The next varint; `EOFError` beyond the end."""
        return int(self.numbers(1)[0])


@nb.njit(cache=True, nogil=True)
def _varint(data, pos):
    """A number and the place after it; -1 where it has more than 63 bits."""
    value, shift = np.int64(0), np.int64(0)
    while shift < 63:
        byte = np.int64(data[pos])
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, pos
        shift += 7
    return np.int64(-1), pos


@nb.njit(cache=True, nogil=True)
def _index(data, pos):
    """As `_varint` for numbers of 32 bits, without a loop: -1 where it has more."""
    value = np.int64(data[pos])
    if value < 1 << 7:
        return value, pos + 1
    value += (np.int64(data[pos + 1]) - 1) << 7
    if value < 1 << 14:
        return value, pos + 2
    value += (np.int64(data[pos + 2]) - 1) << 14
    if value < 1 << 21:
        return value, pos + 3
    value += (np.int64(data[pos + 3]) - 1) << 21
    if value < 1 << 28:
        return value, pos + 4
    value += (np.int64(data[pos + 4]) - 1) << 28
    return (value if value < 1 << 32 else np.int64(-1)), pos + 5


@nb.njit(cache=True, nogil=True)
def _numbers(data, pos, end, last, values, done):
    while done < values.size and pos < (end if last else end - 10):
        value, after = _varint(data, pos)
        if after > end or value < 0:
            break
        values[done], done, pos = value, done + 1, after
    return done, pos


@nb.njit(cache=True, nogil=True)
def _skip(data, pos, end, count):
    """Pass over numbers, up to `end`: how many are left then, and the place."""
    while count > 256 and end - pos >= 256:
        ends = 0
        for k in range(pos, pos + 256):
            ends += data[k] < 128
        count, pos = count - ends, pos + 256
    while count > 0 and pos < end:
        count -= data[pos] < 128
        pos += 1
    return count, pos


@nb.njit(cache=True, nogil=True)
def decode(data, pos, end, last, state, tables, events, count):
    """Fill `events` from `count` on with those in `data[pos:end]`; goes on where the call before it stopped.

    Parameters
    ----------
    data : ndarray
        uint8, with `PAD` bytes after `end` that may be read but mean nothing.
    pos, end : int
    last : bool
        Nothing follows in the file.
    state : ndarray
        int64 (STATE,), zeros at first.
    tables : Tables
    events : ndarray
        Of dtype `EVENT`.
    count : int

    Returns
    -------
    code, pos, count : int
        Code: FULL; MORE bytes are needed; OTHER: at the content of a time block of kind `state[KIND]`; END; or damage, then
        `pos` is where the number, event or block begins that cannot be.
    """
    while True:
        if pos >= end if last else end - pos < LONGEST:
            return (TRUNCATED if last else MORE), pos, count
        if not state[INSIDE]:
            code, after = _begin(data, pos, end, state)
            if code >= TRUNCATED:
                return code, pos, count
            pos = after
            if code != FULL:
                return code, pos, count
            continue
        what, level = state[LIST], state[LEVEL]
        depth = _DEPTH[what]
        if level and state[_LEFT + level - 1] == 0:
            state[LEVEL] -= 1
            if level > 1:
                state[_LEFT + level - 2] -= 1
                state[_INDEX + level - 2] += 1
            elif what == 4:
                state[INSIDE] = 0
            else:
                state[LIST] += 1
            continue
        # The lists of prompts and delayeds whose module types exist are read, all others are counted.
        known = (what == 1 or what == 2) and state[_INDEX + 1] <= state[_INDEX] < tables.energies.size
        wanted = known and not state[SCAN]
        if level < depth:
            length, after = _varint(data, pos)
            if last and after > end:
                return TRUNCATED, pos, count
            if not 0 <= length < _MOST:
                return BAD_LENGTH, pos, count
            pos = after
            if level == depth - 1:
                state[COUNTS + what if known or not 0 < what < 3 else _FOREIGN] += length
                length *= 1 if wanted else _NUMBERS[what]
            state[_LEFT + level], state[_INDEX + level], state[LEVEL] = length, 0, level + 1
        elif not wanted:
            state[_LEFT + depth - 1], pos = _skip(data, pos, end, state[_LEFT + depth - 1])
        else:
            code, pos, count = _coincidences(data, pos, end, last, state, tables, events, count)
            if code == FULL and count < events.size:
                continue
            if code != MORE:
                return code, pos, count


@nb.njit(cache=True, nogil=True)
def _begin(data, pos, end, state):
    """Begin a time block: FULL if it holds events; else OTHER, END or damage."""
    left, pos = (state[BATCH], pos) if state[BATCH] else _varint(data, pos)
    kind, start, stop = np.int64(0), np.int64(0), np.int64(0)
    if left:
        kind = np.int64(data[pos])
        pos += 1
        if kind == 0:
            start, pos = _varint(data, pos)
            stop, pos = _varint(data, pos)
    if pos > end:
        return TRUNCATED, pos
    if left == 0:
        return END, pos
    if left < 0 or kind > 5:
        state[WRONG] = kind
        return BAD_KIND, pos
    if kind:
        state[BATCH], state[KIND] = left - 1, kind
        return OTHER, pos
    if not state[START] <= start <= stop < 1 << 32:
        state[WRONG] = stop if state[START] <= start else start
        return BACKWARDS, pos
    if not state[BLOCKS]:
        state[FIRST] = start
    state[VARIED] |= start != state[FIRST]
    state[START], state[LAST] = start, max(state[LAST], stop)
    state[BATCH], state[BLOCKS] = left - 1, state[BLOCKS] + 1
    state[INSIDE], state[LIST], state[LEVEL] = 1, 0, 0
    return FULL, pos


@nb.njit(cache=True, nogil=True)
def _coincidences(data, pos, end, last, state, tables, events, count):
    """Decode the list that is open: FULL if it or `events` came to its end, else MORE or damage."""
    row, column, left = state[_INDEX], state[_INDEX + 1], state[_LEFT + 2]
    energies1, energies2 = tables.energies[row], tables.energies[column]
    first1, first2 = tables.first[row], tables.first[column]
    bins1, bins2 = (tables.first[row + 1] - first1) * energies1, (tables.first[column + 1] - first2) * energies2
    tofs, time, delayed = tables.tof_bins[row, column], state[START], state[LIST] - 1
    edges1, edges2 = tables.edges_from[row], tables.edges_from[column]
    stop = end if last else end - 15
    while left > 0 and count < events.size and pos < stop:
        bin1, after = _index(data, pos)
        bin2, after = _index(data, after)
        tof, after = _index(data, after)
        code = FULL
        if after > end:
            code = TRUNCATED
        elif not 0 <= bin1 < bins1 or not 0 <= bin2 < bins2:
            code = BAD_BIN
            wrong = not 0 <= bin1 < bins1
            state[WRONG], state[WRONG_OF] = (bin1, row) if wrong else (bin2, column)
        elif not 0 <= tof < tofs:
            code = BAD_TOF
            state[WRONG], state[WRONG_OF] = tof, tofs
        if code != FULL:
            state[_LEFT + 2] = left
            return code, pos, count
        element1, element2, energy1, energy2 = bin1, bin2, np.int64(0), np.int64(0)
        if energies1 > 1:
            element1 = np.int64(np.uint32(bin1) // np.uint32(energies1))
            energy1 = bin1 - element1 * energies1
        if energies2 > 1:
            element2 = np.int64(np.uint32(bin2) // np.uint32(energies2))
            energy2 = bin2 - element2 * energies2
        element1, element2 = element1 + first1, element2 + first2
        e = events[count]
        e.time_ms = time
        e.crystal1, e.ring1 = tables.crystal[element1], tables.ring[element1]
        e.crystal2, e.ring2 = tables.crystal[element2], tables.ring[element2]
        e.tof_bin, e.is_delayed, e.label = tof, delayed, 0
        e.energy1_kev, e.energy2_kev = 0, 0
        if tables.has_energies:
            at1, at2 = edges1 + energy1, edges2 + energy2
            e.energy1_kev = 0.5 * (np.float64(tables.edges_kev[at1]) + np.float64(tables.edges_kev[at1 + 1]))
            e.energy2_kev = 0.5 * (np.float64(tables.edges_kev[at2]) + np.float64(tables.edges_kev[at2 + 1]))
        if e.crystal1 == e.crystal2 and (tables.in_rings or e.ring1 == e.ring2):
            state[_LEFT + 2] = left
            return BAD_PAIR, pos, count
        left, count, pos = left - 1, count + 1, after
    state[_LEFT + 2] = left
    return (MORE if left > 0 and count < events.size else FULL), pos, count


@nb.njit(cache=True, nogil=True)
def _put(data, used, value):
    """Write a number; returns the place after it."""
    while value > 127:
        data[used] = (value & 127) | 128
        used, value = used + 1, value >> 7
    data[used] = value
    return used + 1


@nb.njit(cache=True, nogil=True)
def block_bytes(types):
    """What an event time block takes at most without its events."""
    return 25 + 10 * types + 5 * types * (types + 1)


@nb.njit(cache=True, nogil=True)
def put_block(data, used, start, stop, types, has_delayeds, starts, order, addresses):
    """Write an event time block.

    Parameters
    ----------
    data : ndarray
        uint8.
    used, start, stop, types : int
        Place in `data`; times in ms; types of modules.
    has_delayeds : bool
    starts, order : ndarray
        int64: where in `order` the events of the lists begin (prompts by pair of types, then delayeds), and which they are.
    addresses : ndarray
        int64 (3, events): detection bins and TOF bin.

    Returns
    -------
    int
        The place after it.
    """
    data[used], data[used + 1] = 1, 0
    used = _put(data, used + 2, start)
    used = _put(data, used, stop)
    data[used] = 0
    used, which = used + 1, 0
    for kind in range(2):
        lists = types if kind == 0 or has_delayeds else 0
        used = _put(data, used, lists)
        for row in range(lists):
            used = _put(data, used, row + 1)
            for _ in range(row + 1):
                used = _put(data, used, starts[which + 1] - starts[which])
                for place in range(starts[which], starts[which + 1]):
                    for part in range(3):
                        used = _put(data, used, addresses[part, order[place]])
                which += 1
    data[used], data[used + 1] = 0, 0
    return used + 2


@nb.njit(cache=True, nogil=True)
def encode(events, place, tables, rule, scratch, data):
    """Write event time blocks, one a millisecond; blocks without events fill the time between.

    Parameters
    ----------
    events : ndarray
        Of dtype `EVENT`, in the order of their times.
    place : int
        Event to begin with.
    tables : Tables
    rule : ndarray
        int64: end of what was written, ms; length of a block, ms; earliest time; whether delayeds are held, whether TOF bins
        are symmetric. The first is kept up to date.
    scratch : ndarray
        int64 (5, n): n events at once; only a millisecond that has more is divided.
    data : ndarray
        uint8, for these events (15 bytes each) and two blocks at least.

    Returns
    -------
    used, place, code : int
        Bytes written; the next event; 0, or why that one cannot be written.
    """
    types = tables.energies.size
    pairs = types * (types + 1) // 2
    starts, nothing = np.zeros(2 * pairs + 1, np.int64), np.zeros(2 * pairs + 1, np.int64)
    addresses, lists, order = scratch[:3], scratch[3], scratch[4]
    some = events[place : place + lists.size]
    good, code = _addresses(some, tables, rule[4], addresses, lists)
    used, room, begin = 0, 2 * block_bytes(types), 0
    while begin < good:
        until = begin + 1
        while until < good and some[until].time_ms == some[begin].time_ms:
            until += 1
        goes_on = until == some.size and begin > 0 and place + until < events.size
        if goes_on or data.size - used < room + 15 * (until - begin):
            return used, place + begin, 0
        starts[:] = 0
        for k in range(begin, until):
            starts[lists[k] + 1] += 1
        for which in range(2 * pairs):
            starts[which + 1] += starts[which]
        for k in range(begin, until):
            order[starts[lists[k]]] = k
            starts[lists[k]] += 1
        for which in range(2 * pairs, 0, -1):
            starts[which] = starts[which - 1]
        starts[0] = 0
        time = max(np.int64(some[begin].time_ms), rule[2])
        if time > rule[0]:
            used = put_block(data, used, rule[0], time, types, rule[3], nothing, order, addresses)
        used = put_block(data, used, time, time + rule[1], types, rule[3], starts, order, addresses)
        rule[0] = time + rule[1]
        begin = until
    return used, place + good, code


@nb.njit(cache=True, nogil=True)
def _addresses(events, tables, is_symmetric, addresses, lists):
    """Detection bins and TOF bins of events, the higher bin first, and their lists: for how many, and why for no more."""
    element, module_type, first, energies = tables.element, tables.module_type, tables.first, tables.energies
    edges_from, edges_kev, tof_bins = tables.edges_from, tables.edges_kev, tables.tof_bins
    rings, crystals = element.shape
    delayeds = energies.size * (energies.size + 1) // 2
    for k in range(events.size):
        e = events[k]
        element1, element2 = np.int64(-1), np.int64(-1)
        if e.ring1 < rings and e.crystal1 < crystals and e.ring2 < rings and e.crystal2 < crystals:
            element1, element2 = np.int64(element[e.ring1, e.crystal1]), np.int64(element[e.ring2, e.crystal2])
        if element1 < 0 or element2 < 0:
            return k, UNPLACED
        type1, type2 = np.int64(module_type[element1]), np.int64(module_type[element2])
        bin1, bin2 = (element1 - first[type1]) * energies[type1], (element2 - first[type2]) * energies[type2]
        if tables.has_energies:
            energy1 = _energy_bin(edges_kev, edges_from[type1], energies[type1], e.energy1_kev)
            energy2 = _energy_bin(edges_kev, edges_from[type2], energies[type2], e.energy2_kev)
            if energy1 < 0 or energy2 < 0:
                return k, NO_ENERGY
            bin1, bin2 = bin1 + energy1, bin2 + energy2
        row, column = max(type1, type2), min(type1, type2)
        tof, tofs = np.int64(e.tof_bin), tof_bins[row, column]
        if not 0 <= tof < tofs:
            return k, TOF_BEYOND
        if type1 < type2 or (type1 == type2 and bin1 < bin2):
            if not is_symmetric:
                return k, NO_TURN
            bin1, bin2, tof = bin2, bin1, tofs - 1 - tof
        addresses[0, k], addresses[1, k], addresses[2, k] = bin1, bin2, tof
        lists[k] = row * (row + 1) // 2 + column + (delayeds if e.is_delayed else 0)
    return events.size, 0


@nb.njit(cache=True, nogil=True)
def _energy_bin(edges_kev, low, bins, energy_kev):
    """The bin of an energy, -1 outside all of them; edges that are not even only take longer."""
    first, last = edges_kev[low], edges_kev[low + bins]
    if not first <= energy_kev <= last:
        return np.int64(-1)
    guess = min(np.int64((energy_kev - first) / (last - first) * bins), bins - 1)
    while edges_kev[low + guess] > energy_kev:
        guess -= 1
    while guess < bins - 1 and edges_kev[low + guess + 1] <= energy_kev:
        guess += 1
    return guess
