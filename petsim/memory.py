"""Memory of this process."""

import ctypes
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next array, instead of giving it back to the system.

    Arrays of tens of megabytes come and go all the time, and every page that comes anew costs a page fault, on some virtual
    machines 30 us of it: with glibc's defaults a tenth of make-dataset. Peak memory is the same. Other systems than Linux
    with glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def memory_budget(limit_gb: float) -> float:
    """Bytes that may be used: `limit_gb`, and at most 80 % of what is free now."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = float(line.split()[1]) * 1024
    return min(limit_gb * 1e9, 0.8 * free)
