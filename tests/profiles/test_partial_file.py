"""What has arrived of a download, and whether the rest belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.partial_file import PartialFile

SHA = "a" * 64
RANGES = {"Accept-Ranges": "bytes", "ETag": '"1"'}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A file of which 10 bytes have arrived."""
    file = tmp_path / "file"
    assert PartialFile(file).begin(200, RANGES, SHA) == 0
    file.write_bytes(b"0123456789")
    return file


def test_the_rest_is_asked_for(begun: Path) -> None:
    partial = PartialFile(begun)
    assert (partial.can_continue, partial.size) == (True, 10)
    assert partial.range_headers() == {"Range": "bytes=10-", "If-Range": '"1"'}
    assert partial.begin(206, {"Content-Range": "bytes 10-19/20", "ETag": '"1"'}, SHA) == 10


def test_a_whole_file_begins_anew(begun: Path) -> None:
    assert PartialFile(begun).begin(200, RANGES, SHA) == 0


@pytest.mark.parametrize(("checksum", "start"), [("b" * 64, 10), (SHA, 11)])
def test_the_rest_of_another_file_is_refused(begun: Path, checksum: str, start: int) -> None:
    partial = PartialFile(begun)
    assert partial.begin(206, {"Content-Range": f"bytes {start}-19/20"}, checksum) is None
    assert not begun.exists() and partial.range_headers() == {}


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": '"1"'}, {"Accept-Ranges": "none", "ETag": '"1"'}, {"Accept-Ranges": "bytes"}]
)
def test_a_server_without_ranges_or_tags_is_not_continued(tmp_path: Path, headers: dict[str, str]) -> None:
    partial = PartialFile(tmp_path / "file")
    partial.begin(200, headers, "")
    (tmp_path / "file").write_bytes(b"x")
    assert not PartialFile(tmp_path / "file").can_continue


def test_without_a_checksum_the_rest_has_the_same_tag(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for etag, start in (('"1"', 10), ("", 10), ('"2"', None)):
        PartialFile(file).begin(200, RANGES, "")
        file.write_bytes(b"0123456789")
        headers = {"Content-Range": "bytes 10-19/20", "ETag": etag}
        assert PartialFile(file).begin(206, headers, "") == start


def test_the_rest_says_where_it_starts(begun: Path) -> None:
    assert PartialFile(begun).begin(206, {"ETag": '"1"'}, SHA) is None
    assert not begun.exists()
