"""Paths of the configuration, which may be anything, and files read whole, but never without end: one may be a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hostler.profiles.file_flags import BINARY, CLOSE_ON_EXEC, NON_BLOCKING

#: Bytes of a name and of a path that the system takes, at most.
_MAX_NAME = 255
_MAX_PATH = 4095


class FileTooLarge(Exception):
    """A file that is too large, or that may have no end."""


def expanded_path(text: str) -> Path:
    """The path with `~` resolved. Raises `ValueError` for a text that cannot name a file."""
    if "\0" in text:
        raise ValueError("a path must not contain NUL characters")
    try:
        path = Path(text).expanduser()
        encoded = os.fsencode(path)
    except RuntimeError:
        raise ValueError(f"the home directory {Path(text).parts[0]} is unknown") from None
    except UnicodeEncodeError:
        raise ValueError("a path must consist of text") from None
    if len(encoded) > _MAX_PATH or any(len(name) > _MAX_NAME for name in encoded.split(b"/")):
        raise ValueError(f"a path must not be longer than {_MAX_PATH} bytes, nor a name in it than {_MAX_NAME}")
    return path


def home_path(text: str | Path) -> Path:
    """`Path.expanduser`, which raises for a home directory that is unknown: such a path stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111


def is_file(path: Path) -> bool:
    """`Path.is_file`, which raises for a forbidden folder and for a name too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def real_path(path: Path) -> Path:
    """`Path.resolve`, which raises for a link that leads back to itself: such a link stays as it is."""
    return Path(os.path.realpath(path))


def read_limited(path: Path, limit: int) -> bytes:
    """The contents of a regular file. Raises `FileTooLarge` and `OSError`. A device or pipe may have no end."""
    # A pipe without a writer would block.
    with os.fdopen(os.open(path, os.O_RDONLY | NON_BLOCKING | CLOSE_ON_EXEC | BINARY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileTooLarge("is not a regular file")
        content = file.read(limit + 1) or b""  # files of the kernel may have nothing for now
    if len(content) > limit:
        raise FileTooLarge(f"is larger than {limit} bytes")
    return content
