"""What was once found out about models' files, so that no file is read again to know what it is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from hostler.profiles.sources import cache_directory


class _Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was once found out about a file, and how it looked then."""

    size: int
    mtime_ns: int
    sha256: str


def known_sha256(path: Path, *, cache_dir: Path | None = None) -> str | None:
    """The checksum of a file that was once verified and has not changed since; never computed here."""
    cache = cache_dir or cache_directory()
    proof = _proof(path, cache)
    return proof.sha256 if proof and _is_current(proof, path) else None


def remember(path: Path, sha256: str, cache: Path) -> None:
    """This is the checksum of the file as it is now. Raises `OSError` if that cannot be written down."""
    status = path.stat()
    proof = _Proof(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)
    file = _proof_file(path, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(proof))
    fresh.replace(file)


def _proof_file(path: Path, cache: Path) -> Path:
    if path.is_relative_to(cache / "models"):
        return path.with_name(path.name + ".json")
    return cache / "models" / ".verified" / (hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32] + ".json")


def _proof(path: Path, cache: Path) -> _Proof | None:
    try:
        return msgspec.json.decode(_proof_file(path, cache).read_bytes(), type=_Proof)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_current(proof: _Proof, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (proof.size, proof.mtime_ns) == (status.st_size, status.st_mtime_ns)
