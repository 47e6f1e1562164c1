"""Checksums of model files: verified once, and recorded for as long as the file keeps its size and modification time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostler.profiles.sources import BLOCK, cache_directory


class ChecksumRecord(msgspec.Struct, frozen=True, kw_only=True):
    size: int
    mtime_ns: int
    sha256: str


def known_sha256(path: Path, *, cache_dir: Path | None = None) -> str | None:
    """The recorded checksum of a file that has not changed since; never computed here."""
    try:
        record = msgspec.json.decode(
            _record_path(path, cache_dir or cache_directory()).read_bytes(), type=ChecksumRecord
        )
        status = path.stat()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    unchanged = (record.size, record.mtime_ns) == (status.st_size, status.st_mtime_ns)
    return record.sha256 if unchanged else None


def record_sha256(path: Path, sha256: str, cache: Path) -> None:
    """Record the checksum of the file as it is now. Raises `OSError` if the record cannot be written."""
    status = path.stat()
    record = ChecksumRecord(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)
    file = _record_path(path, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(file)


def verify_sha256(path: Path, expected: str | None, cache: Path, on_progress: Callable[[int, int], None]) -> bool:
    """Whether the file has this checksum. Reads it whole, and records the checksum if it is right.

    `on_progress` gets the bytes read and the size for each block, and may raise.
    """
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            on_progress(done, total)
    if expected not in (None, digest.hexdigest()):
        return False
    with contextlib.suppress(OSError):  # with a read-only cache, the file is read again the next time
        record_sha256(path, digest.hexdigest(), cache)
    return True


def _record_path(path: Path, cache: Path) -> Path:
    """Beside a file of the cache; for all others in a folder of their own."""
    if path.is_relative_to(cache / "models"):
        return path.with_name(path.name + ".json")
    return cache / "models" / ".verified" / (hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32] + ".json")
