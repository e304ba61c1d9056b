"""Keep large buffers mapped between forward passes.

glibc hands every allocation beyond 32 MiB back to the kernel as soon as it is freed, and the next layer pays for fresh,
zeroed pages. Activations of a chunk are that large: without this a third of a score is page faults.
"""

from __future__ import annotations

import ctypes

# malloc.h of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_KEPT_BYTES = 1 << 30


def keep_buffers() -> bool:
    """Tell this process's malloc to reuse large buffers, up to 1 GiB. False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
