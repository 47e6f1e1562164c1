"""Uploaded files: stored once they are complete and have the promised checksum, within limits."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hostler.profiles.blobs import BlobError, BlobStore, StorageFull
from hostler.profiles.presets import is_digest

CONTENT = b"0123456789" * 10
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 150)


def names(store: BlobStore, tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").iterdir())


def test_a_file_is_stored_when_it_is_complete(store: BlobStore, tmp_path: Path) -> None:
    upload = store.start_upload(DIGEST)
    upload.write(CONTENT[:40])
    upload.write(CONTENT[40:])
    assert store.path(DIGEST) is None
    assert upload.commit() == DIGEST
    file = store.path(DIGEST)
    assert file is not None and file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
    assert store.path(DIGEST.replace(":", "-").upper().replace("SHA256", "sha256")) == file
    store.remove(DIGEST)
    assert names(store, tmp_path) == []


def test_a_file_with_another_checksum_is_not_stored(store: BlobStore, tmp_path: Path) -> None:
    upload = store.start_upload("sha256:" + "0" * 64)
    upload.write(CONTENT)
    assert upload.commit() == DIGEST
    assert names(store, tmp_path) == []


def test_discarded_uploads_free_their_space(store: BlobStore, tmp_path: Path) -> None:
    for _ in range(3):
        upload = store.start_upload(DIGEST)
        upload.write(CONTENT)
        upload.discard()
    assert names(store, tmp_path) == []


def test_all_files_together_stay_within_the_limit(store: BlobStore) -> None:
    first, second = store.start_upload(DIGEST), store.start_upload("sha256:" + "1" * 64)
    first.write(CONTENT)
    with pytest.raises(StorageFull):
        second.write(CONTENT)
    second.discard()
    first.commit()
    third = store.start_upload("sha256:" + "2" * 64)
    with pytest.raises(StorageFull):
        third.write(CONTENT)
    third.discard()


def test_abandoned_uploads_are_removed(store: BlobStore, tmp_path: Path) -> None:
    store.remove_abandoned(0.0)
    fresh, old = store.start_upload(DIGEST), store.start_upload(DIGEST)
    files = sorted((tmp_path / "blobs").glob(".upload-*"))
    os.utime(files[0], (1.0, 1.0))
    store.remove_abandoned(files[1].stat().st_mtime)
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [files[1].name]
    for upload in (fresh, old):
        upload.discard()


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "g" * 64, "../x", "sha256:" + "a" * 65, "md5:" + "a" * 64]
)
def test_only_digests_name_files(store: BlobStore, digest: str) -> None:
    assert not is_digest(digest) and store.path(digest) is None
    with pytest.raises(BlobError, match="invalid digest format"):
        store.start_upload(digest)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BlobError, match="could not store the upload: Not a directory"):
        BlobStore(tmp_path / "file" / "blobs", 150).start_upload(DIGEST)
