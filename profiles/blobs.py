"""Uploaded files, each under its checksum: written beside, and there only once they are whole and what they claim to be.

Blocks: callers on an event loop use a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_SPARE_BYTES = 64 * 1024 * 1024
_FORGOTTEN_S = 3600.0


class BlobError(Exception):
    """A file cannot be kept; the message says why."""


class NoRoom(BlobError):
    """It would take more room than there is, or than uploads may have."""


class BlobStore:
    """A folder of uploaded files that take `max_bytes` in all, at most."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._coming = 0
        self._lock = threading.Lock()

    def path(self, digest: str) -> Path | None:
        """Where the file is; `None` if it is not here."""
        file = self._place(digest)
        return file if file is not None and file.is_file() else None

    def begin(self, digest: str) -> Upload:
        """A file that comes now. Raises `BlobError` if it could not be kept."""
        file = self._place(digest)
        if file is None:
            raise BlobError("invalid digest format")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, beside = tempfile.mkstemp(prefix=".upload-", dir=self._folder)
        except OSError as error:
            raise BlobError(f"uploads cannot be kept: {error.strerror or error}") from error
        return Upload(self, os.fdopen(handle, "wb"), Path(beside), file)

    def remove(self, digest: str) -> None:
        """Forget a file, if it is here."""
        file = self.path(digest)
        if file is not None:
            for each in (file, file.with_name(file.name + ".json")):
                each.unlink(missing_ok=True)

    def clear(self, now: float) -> None:
        """Remove what uploads left that were cut off with their whole process; `now` is in seconds since the epoch."""
        with contextlib.suppress(OSError):
            for left in self._folder.glob(".upload-*"):
                # Another gateway may use the same folder: what grew lately is still coming.
                if left.stat().st_mtime < now - _FORGOTTEN_S:
                    left.unlink(missing_ok=True)

    def reserve(self, length: int) -> None:
        """So many more bytes have come. Raises `NoRoom`."""
        with self._lock:
            self._coming += length
        if self._taken() + self._coming > self._max_bytes:
            raise NoRoom(f"uploaded files may take {self._max_bytes} bytes in all, which this one would exceed")
        if shutil.disk_usage(self._folder).free < length + _SPARE_BYTES:
            raise NoRoom("there is no room for it on that disk")

    def release(self, length: int) -> None:
        """So many bytes no longer come: they are here as a file, or they are gone."""
        with self._lock:
            self._coming -= length

    def _taken(self) -> int:
        return sum(file.stat().st_size for file in self._folder.glob("sha256-*") if file.suffix != ".json")

    def _place(self, digest: str) -> Path | None:
        match = _DIGEST.fullmatch(digest)
        return self._folder / f"sha256-{match[1].lower()}" if match else None


class Upload:
    """One file on its way in. `keep` or `forget` ends it."""

    def __init__(self, store: BlobStore, file: IO[bytes], beside: Path, target: Path) -> None:
        self._store = store
        self._file = file
        self._beside = beside
        self._target = target
        self._sum = hashlib.sha256()
        self._size = 0

    def write(self, block: bytes) -> None:
        """The next piece. Raises `NoRoom`, and `BlobError` for what a disk may do."""
        self._size += len(block)
        self._store.reserve(len(block))
        self._sum.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            raise BlobError(f"uploads cannot be kept: {error.strerror or error}") from error

    def keep(self) -> str:
        """The file is complete: there from now on if it is what it was said to be. Returns what it really is."""
        actual = f"sha256-{self._sum.hexdigest()}"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            if actual == self._target.name:
                self._beside.replace(self._target)
        except OSError as error:
            raise BlobError(f"uploads cannot be kept: {error.strerror or error}") from error
        finally:
            self.forget()
        return actual.replace("-", ":", 1)

    def forget(self) -> None:
        """Nothing of it stays that is not kept."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._beside.unlink(missing_ok=True)
        self._store.release(self._size)
        self._size = 0
