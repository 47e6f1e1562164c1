"""Uploaded files: there once they are whole and what they claim to be, within their bounds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hostler.profiles.blobs import BlobError, BlobStore, NoRoom
from hostler.profiles.presets import is_digest

CONTENT = b"0123456789" * 10
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 150)


def names(store: BlobStore, tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").iterdir())


def test_a_file_is_there_when_it_is_whole(store: BlobStore, tmp_path: Path) -> None:
    upload = store.begin(DIGEST)
    upload.write(CONTENT[:40])
    upload.write(CONTENT[40:])
    assert store.path(DIGEST) is None
    assert upload.keep() == DIGEST
    file = store.path(DIGEST)
    assert file is not None and file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
    assert store.path(DIGEST.replace(":", "-").upper().replace("SHA256", "sha256")) == file
    store.remove(DIGEST)
    assert names(store, tmp_path) == []


def test_a_file_that_is_another_one_is_not_kept(store: BlobStore, tmp_path: Path) -> None:
    upload = store.begin("sha256:" + "0" * 64)
    upload.write(CONTENT)
    assert upload.keep() == DIGEST
    assert names(store, tmp_path) == []


def test_a_file_that_is_given_up_leaves_nothing_and_its_room(store: BlobStore, tmp_path: Path) -> None:
    for _ in range(3):
        upload = store.begin(DIGEST)
        upload.write(CONTENT)
        upload.forget()
    assert names(store, tmp_path) == []


def test_all_files_together_take_no_more_than_they_may(store: BlobStore) -> None:
    first, second = store.begin(DIGEST), store.begin("sha256:" + "1" * 64)
    first.write(CONTENT)
    with pytest.raises(NoRoom):
        second.write(CONTENT)
    second.forget()
    first.keep()
    third = store.begin("sha256:" + "2" * 64)
    with pytest.raises(NoRoom):
        third.write(CONTENT)
    third.forget()


def test_what_was_cut_off_long_ago_is_removed(store: BlobStore, tmp_path: Path) -> None:
    store.clear(0.0)
    fresh, old = store.begin(DIGEST), store.begin(DIGEST)
    files = sorted((tmp_path / "blobs").glob(".upload-*"))
    os.utime(files[0], (1.0, 1.0))
    store.clear(files[1].stat().st_mtime)
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [files[1].name]
    for upload in (fresh, old):
        upload.forget()


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "g" * 64, "../x", "sha256:" + "a" * 65, "md5:" + "a" * 64]
)
def test_only_checksums_name_files(store: BlobStore, digest: str) -> None:
    assert not is_digest(digest) and store.path(digest) is None
    with pytest.raises(BlobError, match="invalid digest format"):
        store.begin(digest)
