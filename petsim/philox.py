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


@nb.njit(cache=True, nogil=True)
def philox(c0, c1, c2, c3, key):
    """Four random 32-bit words (as uint64) of counter (c0, c1, c2, c3) under a 64-bit key."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3)
    k0, k1 = np.uint64(key) & mask, np.uint64(key) >> np.uint64(32)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & mask, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3
