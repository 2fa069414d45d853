"""Freed memory, kept for the next step."""

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the process to use again; see mallopt(3).

    By default glibc gives large freed tensors back to the kernel, which hands the next one out page by zeroed
    page: an eighth of a training step on two CPU cores. Only glibc does this, and only there anything is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        # older versions refuse more than 32 MiB
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
