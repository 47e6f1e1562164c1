"""Unpacks an engine's release archive, zip or tar: nothing is written outside of the folder, and not without limit."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec

#: An archive may hold so much unpacked, and so many files and folders: the largest releases, with ROCm's libraries, hold less.
MAX_BYTES: Final = 16 * 1024**3
MAX_FILES: Final = 20_000

_BLOCK: Final = 1024 * 1024

#: What the libraries raise for files that are no archives, cut ones, encrypted ones, and unknown compressions.
_DAMAGED: Final = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error,
    EOFError, LookupError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


class ArchiveError(Exception):
    """A file is no archive, or is one that must not be unpacked; the message says why."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an archive, or a link in it: then `target` is where that leads."""

    path: PurePosixPath
    open: Callable[[], IO[bytes]]
    executable: bool = False
    target: str | None = None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(":")


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack an archive into an empty folder. Raises `ArchiveError` and `OSError`; what is there by then is incomplete.

    Files and folders are readable by all, and belong to the user who runs this. Links lead to files of the archive alone.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _write(_zip_entries(opened, max_files), folder, max_bytes)
        else:
            with tarfile.open(archive) as opened_tar:
                _write(_tar_entries(opened_tar, max_files), folder, max_bytes)
    except _DAMAGED as error:
        raise ArchiveError(
            f"{archive.name} is neither a zip nor a tar archive, or is damaged: {_first_line(error)}"
        ) from error


def _zip_entries(archive: zipfile.ZipFile, max_files: int) -> Iterator[_Entry]:
    for index, info in enumerate(archive.infolist()):
        _check_count(index, max_files)
        if info.is_dir():
            continue
        mode = info.external_attr >> 16
        is_link = stat.S_ISLNK(mode)
        yield _Entry(
            path=_plain(info.filename),
            open=partial(archive.open, info),
            executable=bool(mode & stat.S_IXUSR),
            target=archive.read(info).decode(errors="replace") if is_link and info.file_size < 4096 else None,
        )


def _tar_entries(archive: tarfile.TarFile, max_files: int) -> Iterator[_Entry]:
    for index, member in enumerate(archive):
        _check_count(index, max_files)
        if member.isdir():
            continue
        if not (member.isreg() or member.issym() or member.islnk()):
            raise ArchiveError(f"{member.name} in the archive is neither a file nor a link")
        yield _Entry(
            path=_plain(member.name),
            open=partial(_content, archive, member),
            executable=bool(member.mode & stat.S_IXUSR),
            target=member.linkname if member.issym() else None,
        )


def _check_count(index: int, limit: int) -> None:
    if index >= limit:
        raise ArchiveError(f"the archive has more than {limit} files and folders")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The content of a file, or of the one that a hard link names."""
    content = archive.extractfile(member)
    if content is None:
        raise ArchiveError(f"{member.name} in the archive has no content")
    return content


def _plain(name: str) -> PurePosixPath:
    """A relative path without `..`. Raises `ArchiveError` for any other."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part == ".." or "\\" in part or ":" in part for part in path.parts):
        raise ArchiveError(f"{name!r} in the archive would be written outside of its folder")
    return path


def _write(entries: Iterator[_Entry], folder: Path, max_bytes: int) -> None:
    """Write files first and links last, so that nothing is written through a link."""
    links: list[_Entry] = []
    left = max_bytes
    for entry in entries:
        if entry.target is not None:
            links.append(entry)
            continue
        path = folder / entry.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            created = path.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise ArchiveError(f"{entry.path} is in the archive twice") from None
        with created as file, entry.open() as content:
            left -= _copy(content, file, left, max_bytes)
        path.chmod(0o755 if entry.executable else 0o644)
    for place in folder.rglob("*"):
        if place.is_dir():
            place.chmod(0o755)  # whatever the umask is
    root = folder.resolve()
    for link in links:
        _make_link(folder / link.path, link, root)
    for link in links:
        path = folder / link.path
        try:
            inside = path.resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # a circle
            inside = False
        if not inside:
            raise ArchiveError(f"{link.path} in the archive is a link that leads outside of its folder")


def _copy(content: IO[bytes], file: IO[bytes], left: int, limit: int) -> int:
    """Copy up to `left` bytes; returns how many."""
    copied = 0
    while block := content.read(_BLOCK):
        copied += len(block)
        if copied > left:
            raise ArchiveError(f"the archive holds more than {limit} bytes")
        file.write(block)
    return copied


def _make_link(path: Path, link: _Entry, root: Path) -> None:
    target = PurePosixPath(link.target or "")
    # Before its folder is made: that may lie behind another link.
    if target.is_absolute() or not target.parts or not path.parent.resolve().is_relative_to(root):
        raise ArchiveError(f"{link.path} in the archive is a link that leads outside of its folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(f"{link.path} is in the archive twice") from None
    except OSError:  # Windows allows links to few users
        source = path.parent / target
        if not source.resolve().is_relative_to(root):
            raise ArchiveError(f"{link.path} in the archive is a link that leads outside of its folder") from None
        shutil.copyfile(source, path)
