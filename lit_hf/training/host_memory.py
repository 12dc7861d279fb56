"""Memory of the host that a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers of these settings in glibc's malloc.h."""

_MOST = 2**31 - 1

_MOST_BEFORE_2_35 = 32 * 2**20
"""The largest threshold for mapping that earlier versions of glibc take."""


def keep_freed_memory() -> None:
    """Have glibc keep large tensors' memory when they are freed, where a model trains on the CPU.

    By default a tensor of more than 32 MiB at most is mapped anew from the system and given back when it is freed, so
    that each step pays for every page of it again: some 10% of the time of a small model's. What is kept is reused, and
    is not more than the process has had at its peak. Other C libraries are left alone.

    Source: mallopt(3) of the Linux man-pages.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # either setting ends glibc's own adjustment, so that trimming is set only where mapping could be
        if any(library.mallopt(_MMAP_THRESHOLD, size) for size in (_MOST, _MOST_BEFORE_2_35)):
            library.mallopt(_TRIM_THRESHOLD, _MOST)
