"""What a serving process asks of the C library and of the garbage collector."""

from __future__ import annotations

import contextlib
import gc
import sys

#: `mallopt`'s parameter for the size, in bytes, from which buffers are mapped one by one, and the value for it.
_M_MMAP_THRESHOLD = -3
_LARGE_BUFFER = 1024 * 1024

#: The parameter for how many free bytes stay at the end of the heap, and the value for it. With glibc's 128 KB, a stream of
#: large events gives its buffers back with each event, to have the system clear them for the next: 0.55 s of CPU for 200 MB
#: in events of 64 KB, and 0.36 with this.
_M_TRIM_THRESHOLD = -1
_KEPT_FREE = 4 * 1024 * 1024


def return_large_buffers() -> None:
    """Have the C library return the memory of large bodies to the system once they are freed, and keep what small ones need.

    glibc raises its own limit after the first large buffer, and then keeps most of what follows.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # other C libraries do not have the call, nor the fault
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def freeze_garbage_collector() -> None:
    """Exempt the objects that exist now from garbage collection, since they live until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
