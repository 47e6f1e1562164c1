"""Uploaded files, stored under their checksums: visible once they are complete and have the checksum they were sent under.

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
_ABANDONED_S = 3600.0


class BlobError(Exception):
    """An upload cannot be stored; the message says why."""


class StorageFull(BlobError):
    """The disk is full, or the limit for uploads is reached."""


class BlobStore:
    """A folder of uploaded files that take at most `max_bytes` in all. Safe from threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._reserved = 0
        self._lock = threading.Lock()

    def path(self, digest: str) -> Path | None:
        """The file with this checksum; `None` if there is none."""
        file = self._file(digest)
        return file if file is not None and file.is_file() else None

    def start_upload(self, digest: str) -> Upload:
        """Raises `BlobError` for a malformed digest and for a folder that cannot be written."""
        file = self._file(digest)
        if file is None:
            raise BlobError("invalid digest format")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(prefix=".upload-", dir=self._folder)
        except OSError as error:
            raise BlobError(f"could not store the upload: {error.strerror or error}") from error
        return Upload(self, os.fdopen(handle, "wb"), Path(temporary), file)

    def remove(self, digest: str) -> None:
        """Delete a file and its checksum record, if it exists."""
        file = self.path(digest)
        if file is not None:
            file.unlink(missing_ok=True)
            file.with_name(file.name + ".json").unlink(missing_ok=True)

    def remove_abandoned(self, now: float) -> None:
        """Remove partial files whose process was killed; `now` is in seconds since the epoch."""
        with contextlib.suppress(OSError):
            for partial in self._folder.glob(".upload-*"):
                # Another gateway may use the same folder: a file that grew lately is still being uploaded.
                if partial.stat().st_mtime < now - _ABANDONED_S:
                    partial.unlink(missing_ok=True)

    def reserve(self, length: int) -> None:
        """Count bytes of an upload before they are written. Raises `StorageFull`."""
        with self._lock:
            self._reserved += length
        if self._stored() + self._reserved > self._max_bytes:
            raise StorageFull(f"uploaded files may take {self._max_bytes} bytes in total; this one does not fit")
        if shutil.disk_usage(self._folder).free < length + _SPARE_BYTES:
            raise StorageFull("not enough disk space for the upload")

    def release(self, length: int) -> None:
        """Take back a reservation: the bytes are part of a stored file now, or discarded."""
        with self._lock:
            self._reserved -= length

    def _stored(self) -> int:
        return sum(file.stat().st_size for file in self._folder.glob("sha256-*") if file.suffix != ".json")

    def _file(self, digest: str) -> Path | None:
        match = _DIGEST.fullmatch(digest)
        return self._folder / f"sha256-{match[1].lower()}" if match else None


class Upload:
    """One file being uploaded, ended by `commit` or `discard`."""

    def __init__(self, store: BlobStore, file: IO[bytes], temporary: Path, target: Path) -> None:
        self._store = store
        self._file = file
        self._temporary = temporary
        self._target = target
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, block: bytes) -> None:
        """Raises `StorageFull`, and `BlobError` if the disk fails."""
        self._size += len(block)
        self._store.reserve(len(block))
        self._digest.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            raise BlobError(f"could not store the upload: {error.strerror or error}") from error

    def commit(self) -> str:
        """Store the complete file if it has the promised checksum. Returns the digest that it really has."""
        actual = f"sha256-{self._digest.hexdigest()}"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            if actual == self._target.name:
                self._temporary.replace(self._target)
        except OSError as error:
            raise BlobError(f"could not store the upload: {error.strerror or error}") from error
        finally:
            self.discard()
        return actual.replace("-", ":", 1)

    def discard(self) -> None:
        """Remove the upload if it is not committed. Idempotent."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)
        self._store.release(self._size)
        self._size = 0
