"""Locks of whole files between processes. The system releases them when their holder dies."""

from __future__ import annotations

import os
import sys
import time

#: How often a lock is asked for where the system cannot wait for it, in seconds.
_POLL_S = 0.05
#: Windows locks bytes, and keeps others from reading them: so one that no file has.
_FAR_BYTE = 0x7FFF_FFFF


def lock_file(descriptor: int, *, wait: bool = False) -> None:
    """Lock the open file until it is closed. Without `wait` it raises `BlockingIOError` if another process has it."""
    if sys.platform == "win32":
        while not _lock_byte(descriptor):
            if not wait:
                raise BlockingIOError("the file is locked by another process")
            time.sleep(_POLL_S)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(descriptor: int) -> bool:
    """Lock a byte of the file on Windows; whether it was free."""
    import msvcrt

    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
    return True
