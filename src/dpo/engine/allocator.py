"""How a process holds its memory: on some virtual machines touching a page costs more than the work on it."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> bool:
    """Tell glibc not to give large freed buffers back to the system; False where the C library is another one.

    Buffers up to 32 MiB (glibc's limit) then come from the heap, and the heap is not trimmed. The peak stays what it
    was; the memory is just not returned between steps.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB under its large CPU buffers; torch reads this with its first allocation,
    so it has to be said before torch is imported. A setting of the user's stays."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
