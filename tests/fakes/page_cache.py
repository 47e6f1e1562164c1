"""How much of a file is in the page cache, and a file that is not."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import anyio
import pytest


def cached_share(file: Path) -> float:
    """The share of the file's pages that are in memory."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), states)
        del first
    assert not failed
    return sum(state & 1 for state in states) / pages


def uncached_file(file: Path, size: int) -> Path:
    """A file of that size of which nothing is in memory. Skips the test where the file system keeps it there."""
    with file.open("wb") as stream:
        stream.write(os.urandom(size))
        stream.flush()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(file) > 0.1:
        pytest.skip("this file system keeps files in memory")
    return file


async def until_cached(file: Path) -> None:
    """Wait until the whole file is in memory: the kernel reads it in the background."""
    with anyio.fail_after(20):
        while cached_share(file) < 1.0:  # noqa: ASYNC110 - the kernel reports nothing
            await anyio.sleep(0.01)
