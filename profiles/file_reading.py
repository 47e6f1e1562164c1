"""Reads files whole, but never without end: a path of the configuration may name a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class FileTooLarge(Exception):
    """A file that is too large, or that may have no end."""


def read_limited(path: Path, limit: int) -> bytes:
    """The contents of a regular file. Raises `FileTooLarge` and `OSError`. A device or pipe may have no end."""
    # A pipe without a writer would block.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileTooLarge("is not a regular file")
        content = file.read(limit + 1) or b""  # files of the kernel may have nothing for now
    if len(content) > limit:
        raise FileTooLarge(f"is larger than {limit} bytes")
    return content
