"""Records of verified checksums: each holds while its file keeps the size and the modification time it had then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from hostler.profiles.sources import cache_directory


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


def _record_path(path: Path, cache: Path) -> Path:
    """Beside a file of the cache; for all others in a folder of their own."""
    if path.is_relative_to(cache / "models"):
        return path.with_name(path.name + ".json")
    return cache / "models" / ".verified" / (hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32] + ".json")
