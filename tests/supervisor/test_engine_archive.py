"""Archives of engines: what is unpacked, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostler.supervisor.engine_archive import ArchiveError, unpack


def tar(path: Path, *members: tuple[str, bytes | str], kind: bytes = tarfile.SYMTYPE) -> Path:
    """A tar archive of files, which have bytes, and links of a kind, which have a target."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o4777
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *members: tuple[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if isinstance(content, str) else stat.S_IFREG | 0o755) << 16
            archive.writestr(info, content)
    return path


ARCHIVES = pytest.mark.parametrize(("make", "name"), [(tar, "a.tar.gz"), (zipped, "a.zip")])


@ARCHIVES
def test_files_and_links_inside_are_unpacked(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    archive = make(
        tmp_path / name, ("llama/lib/libx.so", "libx.so.0"), ("llama/lib/libx.so.0", b"so"), ("llama/bin/run", b"x")
    )
    folder = tmp_path / "out"
    folder.mkdir()
    unpack(archive, folder)
    assert (folder / "llama/bin/run").read_bytes() == b"x"
    assert (folder / "llama/bin/run").stat().st_mode & 0o7777 == 0o755
    assert (folder / "llama/lib/libx.so").readlink() == Path("libx.so.0")
    assert (folder / "llama/lib/libx.so").read_bytes() == b"so"


@ARCHIVES
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "members",
    [
        [("../out.txt", b"x")],
        [("a/../../out.txt", b"x")],
        [("/out.txt", b"x")],
        [("C:/out.txt", b"x")],
        [("a\\..\\..\\out.txt", b"x")],
        [("link", "/etc/passwd")],
        [("link", "../..")],
        [("a/link", "../../out.txt")],
        [("up", ".."), ("up/out.txt", b"x")],
        [("a", "b"), ("b", "..")],
        [("d/a", "."), ("d/b", "a/../..")],
        [("a", "../.."), ("a/made/link", "x")],
        [("a", "b"), ("b", "../.."), ("a/made/link", "x")],
        [("a", "b"), ("b", "a")],
        [("x", b"1"), ("x", b"2")],
        [("x", b"1"), ("x/y", b"2")],
        [("x", b"1"), ("x", "y")],
    ],
)
def test_nothing_is_written_outside_of_the_folder(
    tmp_path: Path, make: Callable[..., Path], name: str, members: list[tuple[str, bytes | str]]
) -> None:
    (tmp_path / "archive").mkdir()
    archive = make(tmp_path / "archive" / name, *members)
    folder = tmp_path / "place" / "out"
    folder.mkdir(parents=True)
    with pytest.raises(ArchiveError):
        unpack(archive, folder)
    written = [path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)]
    assert sorted(path.name for path in written) == sorted(["archive", name, "place"])


def test_a_hard_link_is_a_copy_of_a_file_inside(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", ("a", b"x"), ("b", "a"), kind=tarfile.LNKTYPE)
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/b").read_bytes() == b"x"
    outside = tar(tmp_path / "b.tar", ("b", "/etc/passwd"), kind=tarfile.LNKTYPE)
    (tmp_path / "other").mkdir()
    with pytest.raises(ArchiveError):
        unpack(outside, tmp_path / "other")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tar(tmp_path / "a.tar", ("device", "x"), kind=kind)
    with pytest.raises(ArchiveError, match="neither a file nor a link"):
        unpack(archive, tmp_path)


@ARCHIVES
def test_an_archive_that_grows_too_large_is_refused(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    archive = make(tmp_path / name, ("a", bytes(600)), ("b", bytes(600)))
    with pytest.raises(ArchiveError, match="more than 1000 bytes"):
        unpack(archive, tmp_path, max_bytes=1000)


@ARCHIVES
def test_too_many_folders_are_refused(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    kind: dict[str, Any] = {"kind": tarfile.DIRTYPE} if make is tar else {}
    content: bytes | str = "" if make is tar else b""
    archive = make(tmp_path / name, *((f"{number}/", content) for number in range(6)), **kind)
    with pytest.raises(ArchiveError, match="more than 5 files and folders"):
        unpack(archive, tmp_path, max_files=5)


@ARCHIVES
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_all_may_read_it_whatever_the_umask_is(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    archive = make(tmp_path / name, ("a/b/run", b"x"))
    (tmp_path / "out").mkdir()
    before = os.umask(0o077)
    try:
        unpack(archive, tmp_path / "out")
    finally:
        os.umask(before)
    modes = [(tmp_path / "out" / each).stat().st_mode & 0o777 for each in ("a", "a/b", "a/b/run")]
    assert modes == [0o755, 0o755, 0o755]


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"PK\x03\x04 cut", b"\x1f\x8b\x08 cut"])
def test_other_files_are_no_archives(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ArchiveError, match="file is neither a zip nor a tar archive, or is damaged") as caught:
        unpack(file, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("a", bytes(range(256)) * 4000))
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ArchiveError):
        unpack(archive, tmp_path)
