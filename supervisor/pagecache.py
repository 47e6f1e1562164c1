"""Asks the operating system to read a model's file ahead, so that the engine finds it in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

#: Asked for in pieces, so that it can be given up in between.
_PIECE: Final = 64 * 1024 * 1024


def read_ahead(file: Path, given_up: threading.Event) -> None:
    """Start reading `file` into the page cache. May take as long as the disk does; a file that is not there is nothing."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        for offset in range(0, os.fstat(descriptor).st_size, _PIECE):
            if given_up.is_set():
                return
            os.posix_fadvise(descriptor, offset, _PIECE, os.POSIX_FADV_WILLNEED)
    except OSError:
        return
    finally:
        os.close(descriptor)
