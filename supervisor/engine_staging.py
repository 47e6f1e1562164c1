"""Folders beside installed engines for what is being downloaded and unpacked, which do not outlive their command."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hostler.profiles.file_lock import lock_file

#: How these folders begin.
_PREFIX: Final = ".new-"
_LOCK: Final = ".lock"
#: A folder without a lock may be one that is just being made. After so many seconds it is not.
_NEW_S: Final = 60.0


@contextlib.contextmanager
def staging_folder(engines: Path) -> Iterator[Path]:
    """A new folder below that of the engines. It is removed at the end, or by the next command if this one is killed.

    Raises `OSError`.
    """
    remove_abandoned(engines)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=engines))
    try:
        with (folder / _LOCK).open("wb") as lock:
            lock_file(lock.fileno())
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_build(engines: Path, name: str) -> None:
    """Remove an installed build, whole or not at all: it is out of its place before its files go. Raises `OSError`."""
    with staging_folder(engines) as folder:
        (engines / name).rename(folder / "removed")


def remove_abandoned(engines: Path) -> None:
    """Remove the folders of commands that were killed."""
    for folder in engines.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether no process holds the folder's lock any more. Raises `OSError`."""
    try:
        with (folder / _LOCK).open("rb") as lock:
            lock_file(lock.fileno())
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _NEW_S
    return True
